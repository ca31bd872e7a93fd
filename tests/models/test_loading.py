"""Make models from names and functions, and load weights into them."""

import math

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from prunus.errors import DataError, ModelError, ModelMismatchError, NonFiniteError, UnknownNameError
from prunus.models import lenet_300_100
from prunus.models.loading import load_weights, make_model
from prunus.models.safetensors_file import missing_names, safetensors_bytes, tied_names
from prunus.seeds import derive_seed


def linear() -> nn.Module:
    return nn.Linear(4, 2)


def seeded(*, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Linear(4, 2)


def default_seed(seed: int = 0) -> nn.Module:
    return seeded(seed=seed)


def records_seed(seed: int = -1, width: int = 3) -> nn.Module:
    model = nn.Linear(4, width)
    model.seed = seed
    return model


def positional_only(seed: int = 7, /) -> nn.Module:
    return records_seed(seed)


def any_keyword(**options: int) -> nn.Module:
    return records_seed(**options)


def equal(first: nn.Module, second: nn.Module) -> bool:
    pairs = zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize(
    "model",
    ["lenet-300-100", linear, seeded, default_seed],
    ids=lambda model: getattr(model, "__name__", model),
)
def test_make_model_depends_on_its_seed_alone(model):
    first = make_model(model, 1)
    torch.manual_seed(12345)
    before = torch.get_rng_state()
    assert equal(first, make_model(model, 1))
    assert not equal(first, make_model(model, 2))
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("name", ["lenet.pt", "net.py", "networks.small"])
def test_a_file_or_a_module_is_not_a_model(name):
    with pytest.raises(UnknownNameError, match=r"a built-in model or package\.module:function, got"):
        make_model(name)


def test_make_model_seeds_as_before():
    """A built-in model gets the seed itself; torch's stream of a function is seeded with (seed, "init")."""
    assert equal(make_model("lenet-300-100", 3), lenet_300_100(seed=3))
    torch.manual_seed(derive_seed(3, "init"))
    assert equal(make_model(linear, 3), nn.Linear(4, 2))
    assert equal(make_model(seeded, 3), seeded(seed=3))


@pytest.mark.parametrize(("function", "seed"), [(records_seed, 5), (positional_only, 7), (any_keyword, -1)])
def test_make_model_passes_the_seed_when_the_signature_names_it(function, seed):
    assert make_model(function, 5).seed == seed


def test_make_model_takes_a_reference(tmp_path, monkeypatch):
    (tmp_path / "loading_nets.py").write_text(
        "from torch import nn\ndef net(seed): return nn.Linear(4, 1 + seed)\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert make_model("loading_nets:net", 2).out_features == 3
    with pytest.raises(UnknownNameError, match="lenet-5"):
        make_model("lenet-6")


def fails(seed: int) -> nn.Module:
    raise RuntimeError("no weights")


def exits() -> nn.Module:
    raise SystemExit(3)


def refuses() -> nn.Module:
    raise DataError("no data")


@pytest.mark.parametrize(
    ("function", "error", "message"),
    [
        (fails, ModelError, "The function of the model 'fails' failed: RuntimeError: no weights"),
        (exits, ModelError, "The function of the model 'exits' failed: SystemExit: 3"),
        (refuses, DataError, "no data"),
        (lambda: 3, ModelError, "to return a torch.nn.Module, got a int"),
        (lambda: nn.LazyLinear(2), ModelError, "lazy"),
        (lambda: nn.Linear(2, 2).to("meta"), ModelError, "meta device"),
    ],
)
def test_make_model_refuses_functions_that_fail_or_return_something_else(function, error, message):
    with pytest.raises(error, match=message):
        make_model(function)


def test_load_weights_copies_either_format(tmp_path):
    source, state = seeded(seed=1), seeded(seed=1).state_dict()
    torch.save(state, tmp_path / "plain.pt")
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "nested.pt")
    save_file(state, tmp_path / "w.safetensors")
    for path in tmp_path.iterdir():
        target = seeded(seed=2)
        load_weights(target, path)
        assert equal(target, source), path.name


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"bias": None}, ModelMismatchError, "bias is missing"),
        ({"scale": torch.ones(1)}, ModelMismatchError, "scale is unknown"),
        ({"bias": torch.ones(3)}, ModelMismatchError, r"bias is \[3\], not \[2\]"),
        (
            {"bias": torch.ones(2, dtype=torch.int64)},
            ModelMismatchError,
            "bias is torch.int64, not torch.float32",
        ),
        ({"bias": torch.tensor([1.0, float("nan")])}, NonFiniteError, "1 of 2 entries of 'bias'"),
        ({"weight": torch.zeros(2, 4), "bias": torch.zeros(2)}, ModelError, "every parameter there is zero"),
        ({"weight": torch.ones(2, 4).to_sparse()}, ModelError, "'weight' is sparse"),
        ({"bias": 3}, ModelError, "Expected a state_dict, tensors by name"),
    ],
)
def test_load_weights_refuses_other_content_and_leaves_the_model(change, error, message, tmp_path):
    state = {**seeded(seed=1).state_dict(), **change}
    torch.save({name: value for name, value in state.items() if value is not None}, tmp_path / "w.pt")
    target = seeded(seed=2)
    with pytest.raises(error, match=message):
        load_weights(target, tmp_path / "w.pt")
    assert equal(target, seeded(seed=2))


def test_buffer_of_zeros_is_no_empty_layer(tmp_path):
    model = linear()
    model.register_buffer("token_types", torch.zeros(1, 5, dtype=torch.int64))
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    load_weights(model, tmp_path / "weights.pt")


def test_load_weights_runs_no_code_of_a_pickle(tmp_path):
    class Attack:
        def __reduce__(self):
            return (open, (str(tmp_path / "touched"), "w"))

    torch.save({"weight": Attack()}, tmp_path / "w.pt")
    with pytest.raises(ModelError, match=r"save model.state_dict\(\)"):
        load_weights(linear(), tmp_path / "w.pt")
    assert not (tmp_path / "touched").exists()


def test_one_name_of_a_tied_weight_is_enough():
    weight = torch.ones(2)
    state = {"a": weight, "b": torch.ones(2), "c": weight}
    assert tied_names(state) == {"c": "a"}
    assert missing_names(state, ["b", "c"]) == []
    assert missing_names(state, ["b"]) == ["a", "c"]
    assert safetensors_bytes(state) == safetensors_bytes(dict(state))


def test_tied_weight_needs_one_finite_value(tmp_path):
    model = nn.ModuleDict({"a": nn.Linear(2, 2, bias=False), "b": nn.Linear(2, 2, bias=False)})
    model["b"].weight = model["a"].weight
    ones = torch.ones(2, 2)
    torch.save({"a.weight": ones, "b.weight": 2 * ones}, tmp_path / "two.pt")
    with pytest.raises(ModelMismatchError, match=r"same values for a\.weight and b\.weight"):
        load_weights(model, tmp_path / "two.pt")
    torch.save({"b.weight": math.nan * ones}, tmp_path / "nan.pt")
    with pytest.raises(NonFiniteError, match=r"'b\.weight'"):
        load_weights(model, tmp_path / "nan.pt")
    torch.save({"a.weight": ones, "b.weight": ones.double()}, tmp_path / "one.pt")
    load_weights(model, tmp_path / "one.pt")
    assert torch.equal(model["a"].weight, ones)
