"""`prunus.quantize`: centroids that train in the user's own loop, as in prunus' own training."""

import copy
import warnings

import pytest
import torch
from safetensors.torch import load, save
from torch import nn
from torch.nn import functional as F

import prunus
from prunus.compression.quantization import CodebookConstraint, centroid_gradient
from prunus.data.batches import iter_batches
from prunus.errors import (
    CheckpointError,
    ModelError,
    NoEffectWarning,
    NonFiniteError,
    QuantizationError,
    SpecError,
)
from prunus.seeds import derive_seed

RECIPE = prunus.Recipe(2, 0.01, 40, weight_decay=1e-3)
OPTIMIZERS = {
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.01, momentum=0.9, weight_decay=1e-3),
    "adamw": lambda parameters: torch.optim.AdamW(parameters, lr=0.01),
    "rmsprop": lambda parameters: torch.optim.RMSprop(parameters, lr=0.001),
    "adafactor": lambda parameters: torch.optim.Adafactor(parameters, lr=0.01),
    "lbfgs": lambda parameters: torch.optim.LBFGS(parameters, lr=0.01, max_iter=1),
}


@pytest.fixture(scope="module")
def data(digits):
    return digits.take(200, 50)


def network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 24), nn.ReLU(), nn.Linear(24, 10))


def own_loop(model, optimizer, split, seed, epochs=2):
    for epoch in range(epochs):
        for inputs, labels in iter_batches(split, RECIPE.batch_size, seed, epoch):

            def loss():
                optimizer.zero_grad()
                value = F.cross_entropy(model(inputs), labels)  # noqa: B023
                value.backward()
                return value

            loss() if not isinstance(optimizer, torch.optim.LBFGS) else None
            optimizer.step(loss if isinstance(optimizer, torch.optim.LBFGS) else None)


def centroids(model, masks):
    return [len(model.get_parameter(name)[mask].unique()) for name, mask in masks.items()]


def test_deep_compression_in_an_own_loop_equals_that_of_prunus_bit_for_bit(data, tmp_path):
    """With the dense backend, which any training loop of the user is."""
    recipe = prunus.CompressionRecipe(
        dense=RECIPE, density=0.5, schedule="one_shot", rounds=1, retrain=RECIPE, final_retrain=RECIPE, bits=3,
        finetune=RECIPE, kmeans_init="linear", half_precision_biases=False,
    )  # fmt: skip
    expected = prunus.compress(
        network(), tmp_path / "expected.prunus", data=data, preset=recipe, seed=5, backend="dense"
    )

    model = network()

    def optimizer():
        return torch.optim.Adam(
            model.parameters(), lr=RECIPE.learning_rate, weight_decay=RECIPE.weight_decay, fused=True
        )

    retraining, finetuning = optimizer(), optimizer()
    masks = prunus.prune(model, 0.5).masks.attach(retraining)
    own_loop(model, retraining, data.train, derive_seed(5, "retrain", 1))
    masks.detach()
    quantized = prunus.quantize(model, masks, bits=3, seed=5).attach(finetuning)
    own_loop(model, finetuning, data.train, derive_seed(5, "finetune"))
    assert quantized.verify() == 0
    size = prunus.save(model, tmp_path / "own.prunus", encoding=recipe.encoding)
    loaded = prunus.load(tmp_path / "own.prunus", into=network(1))
    for name, tensor in expected.model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    assert abs(size - expected.file_bytes) < 150  # the metadata of the recipe

    seeds = iter([derive_seed(5, "retrain", 1), derive_seed(5, "finetune")])

    def fit(model, constraint):
        model.load_state_dict(copy.deepcopy(model.state_dict()), assign=True)  # replaces the parameters
        optimizer = torch.optim.Adam(
            model.parameters(), lr=RECIPE.learning_rate, weight_decay=RECIPE.weight_decay, fused=True
        )
        constraint.attach(optimizer)
        own_loop(model, optimizer, data.train, next(seeds))
        model.load_state_dict(
            copy.deepcopy(model.state_dict()), assign=True
        )  # as the best weights of a training

    compressed = prunus.compress(
        network(), tmp_path / "fit.prunus", data=data, preset=recipe, seed=5, fit=fit
    )
    assert (tmp_path / "fit.prunus").read_bytes() == (tmp_path / "expected.prunus").read_bytes()
    assert compressed.epochs == []
    with pytest.raises(SpecError, match="fit or checkpoints"):
        prunus.compress(network(), data=data, preset=recipe, fit=fit, checkpoints=tmp_path)
    with pytest.raises(SpecError, match="got fit and epochs, optimizer"):
        prunus.compress(network(), data=data, fit=fit, optimizer="sgd", epochs={"retrain": 1}, rounds=1)


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("is_optimizer_first", [True, False])
def test_weights_equal_their_centroids_after_training_with_any_optimizer(kind, is_optimizer_first, data):
    model = network()
    optimizer = OPTIMIZERS[kind](model.parameters()) if is_optimizer_first else None
    masks = prunus.prune(model, 0.4).masks
    quantized = prunus.quantize(model, masks, bits=2)
    before = {name: book.detach().clone() for name, book in quantized.codebooks.items()}
    optimizer = optimizer or OPTIMIZERS[kind](model.parameters())
    quantized.attach(optimizer)
    own_loop(model, optimizer, data.train, 0, epochs=1)
    assert quantized.verify() == 0
    assert centroids(model, masks) == [4, 4]
    for name, mask in masks.items():
        assert not model.get_parameter(name)[~mask].any()
        assert not torch.equal(quantized.codebooks[name], before[name])
    values = copy.deepcopy(model.state_dict())
    quantized.detach()
    assert all(torch.equal(values[name], tensor) for name, tensor in model.state_dict().items())
    own_loop(model, optimizer, data.train, 0, epochs=1)
    assert quantized.verify() > 0


@pytest.mark.parametrize(("reserve_zero", "width"), [(False, 4), (True, 3)])
def test_a_reserved_code_holds_the_filler_zeros_so_that_codes_are_as_wide_as_asked(
    reserve_zero, width, tmp_path
):
    model = nn.Linear(200, 50)
    masks = prunus.prune(model, 0.05).masks
    quantized = prunus.quantize(model, masks, bits=3, reserve_zero=reserve_zero)
    assert len(quantized.codebooks["weight"]) == 8 - reserve_zero
    prunus.save(model, tmp_path / "m", encoding=prunus.EncodingConfig("bitpack", index_bits=3))
    layer = prunus.inspect(tmp_path / "m").layers[0]
    assert layer.entries > masks["weight"].sum()  # there are filler zeros
    assert layer.weight_bits == width
    assert torch.equal(prunus.read(tmp_path / "m")["weight"], model.weight)


def test_the_norm_of_the_gradients_is_that_of_the_centroids_also_when_accumulated(data):
    model, plain = network(), network()
    quantized = prunus.quantize(model, prunus.prune(model, 0.4).masks, bits=2)
    quantized.attach(torch.optim.SGD(model.parameters(), lr=0.1))
    plain.load_state_dict(model.state_dict())
    for start in (0, 50):
        for net in (model, plain):
            split = data.train.inputs[start : start + 50], data.train.labels[start : start + 50]
            F.cross_entropy(net(split[0]), split[1]).backward()
    for name, tensor in quantized.quantized.items():
        expected = centroid_gradient(plain.get_parameter(name).grad, tensor)
        actual = centroid_gradient(model.get_parameter(name).grad, tensor)
        assert torch.allclose(actual, expected, atol=1e-6)
        assert int(model.get_parameter(name).grad.count_nonzero()) == len(expected)
        assert torch.allclose(model.get_parameter(name).grad.norm(), expected.norm(), atol=1e-6)


def test_a_killed_training_continues_from_the_users_own_checkpoint(data):
    def start(model, quantized):
        optimizer = OPTIMIZERS["adamw"](model.parameters())
        quantized.attach(optimizer)
        return optimizer

    model = network()
    quantized = prunus.quantize(model, prunus.prune(model, 0.4).masks, bits=2)
    optimizer = start(model, quantized)
    own_loop(model, optimizer, data.train, 1, epochs=1)
    state, stepped = copy.deepcopy(model.state_dict()), copy.deepcopy(optimizer.state_dict())
    stored = save(quantized.state_dict())
    own_loop(model, optimizer, data.train, 2, epochs=1)

    resumed = network(9)
    resumed.load_state_dict(state)
    again = prunus.CodebookConstraint.from_state_dict(resumed, load(stored))
    optimizer = start(resumed, again)
    optimizer.load_state_dict(stepped)
    own_loop(resumed, optimizer, data.train, 2, epochs=1)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), resumed.parameters(), strict=True))
    assert again.verify() == 0
    with pytest.raises(CheckpointError, match="codes and masks of this training, got one with others"):
        prunus.quantize(network(3), bits=2).load_state_dict(load(stored))
    with pytest.raises(
        CheckpointError, match="codes and masks of this training, got one with others"
    ):  # copying one centroid to all would be silent
        again.load_state_dict({**load(stored), "1.weight/codebook": torch.ones(1)})
    for part in ("codes", "mask"):
        for broken in (torch.zeros(3, dtype=torch.uint8), None):
            state = {**load(stored), f"1.weight/{part}": broken}
            state = {name: tensor for name, tensor in state.items() if tensor is not None}
            with pytest.raises(CheckpointError, match=r"codebook, codes and mask of '1\.weight'"):
                CodebookConstraint.from_state_dict(network(), state)
    for part, change in (("codes", lambda codes: codes.long() - 4), ("codebook", lambda book: book[None])):
        state = load(stored)
        state[f"1.weight/{part}"] = change(state[f"1.weight/{part}"])
        with pytest.raises(CheckpointError, match=r"codebook, codes and mask of '1\.weight'"):
            CodebookConstraint.from_state_dict(network(), state)
    with pytest.raises(ModelError):  # a state of something else
        CodebookConstraint.from_state_dict(network(), {"step": torch.ones(())})


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_float_types_keep_their_type(dtype, data):
    model = network().to(dtype)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    quantized = prunus.quantize(model, prunus.prune(model, 0.4).masks, bits=3).attach(optimizer)
    assert quantized.verify() == 0
    F.cross_entropy(model(data.train.inputs.to(dtype)), data.train.labels).backward()
    optimizer.step()
    assert model[1].weight.dtype == dtype
    assert len(model[1].weight.unique()) == 9
    assert quantized.verify() == 0


def test_a_model_quantized_in_inference_mode_can_be_trained(data):
    model = network()
    with torch.inference_mode():
        quantized = prunus.quantize(model, bits=2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    quantized.attach(optimizer)
    own_loop(model, optimizer, data.train, 0, epochs=1)
    assert quantized.verify() == 0


def test_masks_by_the_names_of_a_compiled_model_are_used():
    model = network()
    quantized = prunus.quantize(model, {"_orig_mod.1.weight": torch.rand(24, 64) < 0.5}, bits=2)
    assert list(quantized.codebooks) == ["1.weight"]
    assert len(model[1].weight.unique()) == 5


def test_bad_arguments_change_nothing(data):
    model = network()
    before = copy.deepcopy(model.state_dict())
    masks = prunus.prune(network(), 0.4).masks
    with_values = prunus.Masks(model, masks, {name: torch.ones(mask.shape) for name, mask in masks.items()})
    for arguments, error, message in (
        ({"bits": 9}, QuantizationError, "1 to 8 bits"),
        ({"bits": {"conv": 3}}, QuantizationError, "Expected bits for"),
        ({"masks": {"9.weight": torch.ones(2, 2).bool()}}, ModelError, "no parameter of that name"),
        ({"masks": {"1.weight": torch.ones(2, 2).bool()}}, ModelError, "has shape"),
        ({"masks": {}}, ModelError, "got none; leave masks out to quantize all weights"),
        ({"masks": with_values}, ModelError, "masks with other values"),
    ):
        with pytest.raises(error, match=message):
            prunus.quantize(model, **arguments)
        assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    packed = nn.ParameterDict({"codes": nn.Parameter(torch.arange(9), requires_grad=False)})
    with pytest.raises(ModelError, match=r"floating-point weights to quantize, got 'codes' of torch\.int64"):
        prunus.quantize(packed, {"codes": torch.ones(9).bool()})
    broken = network()
    broken[1].weight.data[0, 0] = torch.nan
    with pytest.raises(NonFiniteError, match=r"'1\.weight' cannot be quantized"):
        prunus.quantize(broken)
    quantized = prunus.quantize(model, bits=2)
    with pytest.raises(ModelError, match="steps none of its 2 masked or quantized parameters"):
        quantized.attach(torch.optim.SGD(network().parameters(), lr=0.1))
    with pytest.raises(ModelError, match=r"one loss per step.*max_iter=20; pass max_iter=1"):
        quantized.attach(torch.optim.LBFGS(model.parameters()))
    model[1] = nn.Linear(32, 24)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ModelError, match=r"shape \[24, 64\], which is quantized, got \[24, 32\]"):
        quantized.attach(optimizer)
    assert not optimizer._optimizer_step_post_hooks


def test_a_model_whose_channels_are_removed_while_codebooks_are_attached_is_refused():
    model = network()
    prunus.quantize(model, bits=2).attach(torch.optim.SGD(model.parameters(), lr=0.1))
    prunus.slim(model, torch.zeros(1, 8, 8), density=0.5).apply()
    with pytest.raises(ModelError, match=r"which is quantized, got \[1[02], "):
        model(torch.zeros(1, 8, 8)).sum().backward()


def test_a_model_that_is_quantized_already_is_not_changed():
    model = network()
    prunus.quantize(model, bits=2)
    before = copy.deepcopy(model.state_dict())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        again = prunus.quantize(model, bits=2)
    assert isinstance(again, CodebookConstraint)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("make", [torch.optim.SGD, torch.optim.SparseAdam])
def test_embeddings_with_sparse_gradients_train_their_centroids(make):
    model = nn.Embedding(8, 6, sparse=True)
    quantized = prunus.quantize(model, {"weight": torch.rand(8, 6) < 0.7}, bits=2)
    dense = copy.deepcopy(model)
    dense.sparse = False
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NoEffectWarning)  # it is quantized already
        reference = prunus.quantize(dense, {"weight": model.weight != 0}, bits=2)
    optimizers = make(model.parameters(), lr=0.05), torch.optim.SGD(dense.parameters(), lr=0.05)
    for each, optimizer in ((quantized, optimizers[0]), (reference, optimizers[1])):
        each.attach(optimizer)
        for _ in range(3):
            optimizer.zero_grad()
            each.model(torch.tensor([1, 3, 3])).square().sum().backward()
            assert each.model.weight.grad.is_sparse == (each is quantized)
            optimizer.step()
        assert each.verify() == 0
    if make is torch.optim.SGD:
        assert torch.allclose(model.weight, dense.weight, atol=1e-6)
    assert len(model.weight.unique()) <= 5
