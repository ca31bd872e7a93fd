"""The laws of the container: what comes back, how small it is, and what is said of it."""

import json
import math
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from prunus.compression.codecs import CODECS
from prunus.compression.container import EncodingConfig, inspect, load, pack, read, read_header, unpack, write
from prunus.compression.container.file_format import DTYPES
from prunus.compression.container.read import parse_file
from prunus.errors import ContainerError, ModelMismatchError
from prunus.models import MODELS

settings.register_profile("compiled", deadline=None)
settings.load_profile("compiled")

ENCODINGS = [
    EncodingConfig(codec, bits, share)
    for codec in CODECS
    for bits in (None, 1, 3, 16)
    for share in (True, False)
]
every_encoding = pytest.mark.parametrize(
    "encoding",
    ENCODINGS,
    ids=lambda c: f"{c.codec}-{c.index_bits or 'auto'}-{'shared' if c.use_codebook else 'raw'}",
)
FLOATS = [dtype for dtype in DTYPES.values() if dtype.is_floating_point]


def same(a, b):
    """Names in order, dtypes, shapes and every bit."""
    assert list(a) == list(b)
    for name in a:
        assert a[name].dtype == b[name].dtype
        assert a[name].shape == b[name].shape
        bits = [t.detach().contiguous().reshape(-1).view(torch.uint8) for t in (a[name], b[name])]
        assert torch.equal(*bits), name


def sparse(shape, density=0.1, values=31, seed=0, dtype=torch.float32):
    """A tensor with holes whose other entries take few values (or any, where `values` is None)."""
    g = torch.Generator().manual_seed(seed)
    kept = torch.rand(shape, generator=g) < density
    if values is None:
        dense = torch.randn(shape, generator=g)
    else:
        dense = torch.randn(values, generator=g)[torch.randint(values, shape, generator=g)]
    return torch.where(kept, dense, torch.zeros(())).to(dtype)


def lenet(density=0.05, half=True):
    """LeNet-300-100 as Deep Compression leaves it: sparse in patches, 31 values, biases in half precision."""
    state = MODELS["lenet-300-100"](seed=1).state_dict()
    for name, w in state.items():
        if w.dim() == 1:
            state[name] = torch.linspace(-0.5, 0.5, len(w)).half().float()
            continue
        place = torch.linspace(-2, 2, w.shape[1])
        weight = torch.exp(-(place**2))  # the border is used less
        score = w.abs() * weight
        keep = score >= score.flatten().topk(round(density * w.numel())).values.min()
        level = (w / w.abs().max() * 15).round().clamp(-15, 15) / 15
        value = torch.where(level == 0, torch.full_like(level, 1 / 32), level) * w.abs().max()
        state[name] = torch.where(keep, value.half().float() if half else value, torch.zeros(()))
    return state


# --- what comes back


@every_encoding
@pytest.mark.parametrize("density", [0.0, 0.003, 0.1, 0.7, 1.0])
def test_a_tensor_comes_back_bit_for_bit(encoding, density):
    state = {
        "shared": sparse((40, 50), density, 31),
        "conv": sparse((8, 4, 3, 3), density, 200),
        "raw": sparse((40, 30), density, None),
        "row": sparse((500,), density, 3),
    }
    same(unpack(pack(state, encoding=encoding))[1], state)


@every_encoding
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_every_dtype_comes_back(encoding, dtype):
    ints = torch.randint(0, 2, (7, 9), generator=torch.Generator().manual_seed(0))
    state = {"a": ints.to(dtype), "scalar": torch.tensor(1).to(dtype), "empty": torch.zeros(3, 0).to(dtype)}
    if dtype.is_floating_point:
        state["sparse"] = sparse((30, 30), 0.2, 9, dtype=dtype)
    elif dtype != torch.bool:
        state["limits"] = torch.tensor([torch.iinfo(dtype).min, torch.iinfo(dtype).max], dtype=dtype)
    same(unpack(pack(state, encoding=encoding))[1], state)


@st.composite
def states(draw):
    """A few tensors of any float bits: zeros of both signs, subnormals, few values or many."""
    state = {}
    for name in draw(st.lists(st.text(max_size=8), max_size=3, unique=True)):
        dtype = draw(st.sampled_from(FLOATS))
        shape = tuple(draw(st.lists(st.integers(0, 6), max_size=4)))
        values = [*draw(st.lists(st.floats(-100, 100, width=16), max_size=5)), 0.0, -0.0, 5e-8]
        chosen = draw(st.lists(st.sampled_from(values), min_size=math.prod(shape), max_size=math.prod(shape)))
        state[name] = torch.tensor(chosen, dtype=torch.float64).to(dtype).reshape(shape)
    return state


@given(states(), st.sampled_from(ENCODINGS))
def test_any_state_comes_back_and_takes_the_same_bytes_again(state, encoding):
    data = pack(state, encoding=encoding)
    back = unpack(data)[1]
    same(back, state)
    assert pack(back, encoding=encoding) == data


def test_minus_zero_is_a_value_and_plus_zero_a_hole():
    state = {"w": torch.tensor([0.0, -0.0, 1.0, -0.0] + [0.0] * 100)}
    back = unpack(pack(state))[1]["w"]
    assert torch.equal(torch.signbit(back), torch.signbit(state["w"]))
    assert inspect_bytes(pack(state)).layers[0].nonzero == 3


def test_views_and_gradients_are_written_as_what_they_hold():
    w = nn.Parameter(torch.randn(6, 8))
    state = {"turned": w.t(), "part": w[::2, 1:5], "spread": torch.ones(1).expand(5), "w": w}
    before = {name: t.detach().clone() for name, t in state.items()}
    same(unpack(pack(state))[1], before)
    same({name: t.detach() for name, t in state.items()}, before)


def test_what_is_read_owns_its_memory():
    back = unpack(pack({"a": torch.zeros(4), "b": torch.ones(4), "n": torch.arange(3)}))[1]
    for tensor in back.values():
        tensor.add_(1)
    assert back["a"].tolist() == [1.0] * 4
    assert back["n"].tolist() == [1, 2, 3]


def test_metadata_comes_back(tmp_path):
    made = {"by": "prunus", "densities": {"fc1.weight": 0.04}, "seeds": [0, 1], "é": None, "exact": 0.1}
    model = {"name": "lenet-300-100", "arguments": {"dropout": 0.5}}
    write(tmp_path / "f.prunus", {}, model=model, metadata=made)
    header = read_header(tmp_path / "f.prunus")
    assert header["made"] == made
    assert header["model"] == model
    assert unpack((tmp_path / "f.prunus").read_bytes()) == (header, {})


@pytest.mark.parametrize(
    ("made", "model"),
    [
        ([1], None),
        ("by hand", None),
        ({1: "a", "1": "b"}, None),
        ({"big": 1e300 * 1e300}, None),
        ({"digits": 10**5000}, None),
        ({}, {"name": "lenet-5"}),
        ({}, {"name": 5, "arguments": {}}),
        ({}, {"name": "lenet-5", "arguments": {"sizes": [1, 2]}}),
        ({}, {"name": "lenet-5", "arguments": {}, "more": 1}),
        ({}, "lenet-5"),
    ],
)
def test_what_would_not_be_read_is_not_written(made, model, tmp_path):
    with pytest.raises(ContainerError, match=r"^(No file may say this|The header cannot be written)"):
        write(tmp_path / "f.prunus", {"w": torch.ones(2)}, model=model, metadata=made)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    "state",
    [
        {1: torch.ones(2)},
        {1: torch.ones(2), "1": torch.ones(2)},
        {"w": torch.zeros(0, 1 << 61)},
        {"w": torch.zeros(0, 1 << 40, 1 << 22)},
    ],
)
def test_no_tensor_is_written_that_would_not_be_read(state):
    with pytest.raises(ContainerError, match=r"^No file may say this of itself"):
        pack(state)


def test_another_process_writes_the_same_bytes(tmp_path):
    program = (
        "import sys, torch; from prunus.compression.container import write;"
        "w = torch.arange(-3000, 3000).reshape(60, 100).remainder(97).sub(90).relu() / 8;"
        "write(sys.argv[1], {'w': w}, metadata={'b': 1, 'a': {'d': 2}})"
    )
    subprocess.run([sys.executable, "-c", program, str(tmp_path / "f")], check=True)
    w = torch.arange(-3000, 3000).reshape(60, 100).remainder(97).sub(90).relu() / 8
    assert (tmp_path / "f").read_bytes() == pack({"w": w}, metadata={"a": {"d": 2}, "b": 1})


# --- how small it is


def entropy_bytes(symbols):
    counts = np.unique(symbols, return_counts=True)[1]
    return float(-(counts * np.log2(counts / counts.sum())).sum() / 8)


def test_a_sparse_shared_tensor_takes_its_entropy_and_three_per_cent():
    w = lenet()["fc1.weight"]
    flat = w.flatten().numpy()
    where = np.flatnonzero(flat)
    bound = entropy_bytes(np.diff(where, prepend=-1)) + entropy_bytes(flat[where])
    size = inspect_bytes(pack({"w": w})).layers[0].bytes
    assert size <= 1.03 * bound + 80


def test_the_stages_of_deep_compression_each_take_less():
    state = lenet()
    codings = [
        EncodingConfig("bitpack", 5, use_codebook=False),
        EncodingConfig("bitpack", 5),
        EncodingConfig("huffman", 5),
        EncodingConfig("huffman"),
        EncodingConfig("range"),
    ]
    sizes = [len(pack(state, encoding=encoding)) for encoding in codings]
    assert sizes == sorted(sizes, reverse=True)
    assert len(set(sizes)) == len(sizes)


def test_the_width_chosen_is_the_best_there_is():
    state = {"w": lenet()["fc2.weight"]}
    for codec in CODECS:
        sizes = [len(pack(state, encoding=EncodingConfig(codec, bits))) for bits in range(2, 13)]
        assert len(pack(state, encoding=EncodingConfig(codec))) <= min(sizes) + 8


def test_no_tensor_takes_more_than_its_bytes_and_a_flag():
    g = torch.Generator().manual_seed(0)
    for dtype in FLOATS:
        for tensor in (torch.randn(300, generator=g), torch.randn(1), torch.zeros(1), torch.zeros(0)):
            layer = inspect_bytes(pack({"w": tensor.to(dtype)})).layers[0]
            assert layer.bytes <= layer.original_bytes + 1


def test_the_order_of_writing_follows_the_holes():
    rows = torch.zeros(64, 64)
    rows[::9] = 1.0
    sizes = [len(pack({"w": w.contiguous()})) for w in (rows, rows.t())]
    assert abs(sizes[0] - sizes[1]) <= 1


def test_float32_that_float16_can_say_takes_half():
    exact, inexact = torch.linspace(-1, 1, 257).half().float(), torch.linspace(-1, 1, 257) / 3
    state = {"exact": exact, "inexact": inexact, "large": 1e6 * exact, "small": 1e-9 * exact}
    assert [layer.bytes for layer in inspect_bytes(pack(state)).layers] == [1 + 2 * 257] + [1 + 4 * 257] * 3
    same(unpack(pack(state))[1], state)


def test_a_file_is_framed_in_few_bytes():
    inspection = inspect_bytes(pack(lenet(), model={"name": "lenet-300-100", "arguments": {}}))
    assert inspection.framing_bytes < 400


# --- what is said of it


def inspect_bytes(data):
    """The inspection of a file that holds these bytes."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "f.prunus"
        path.write_bytes(data)
        return inspect(path)


@every_encoding
def test_an_inspection_adds_up_to_the_byte(encoding, tmp_path):
    state = {**lenet(), "steps": torch.tensor(7), "nothing": torch.zeros(0, 3)}
    size = write(tmp_path / "f.prunus", state, metadata={"x": 1}, encoding=encoding)
    found = inspect(tmp_path / "f.prunus")
    assert size == found.file_bytes == (tmp_path / "f.prunus").stat().st_size
    assert sum(layer.bytes for layer in found.layers) + found.framing_bytes == size
    assert found.original_bytes == sum(t.numel() * t.element_size() for t in state.values())
    assert found.ratio == found.original_bytes / size
    for layer, (name, tensor) in zip(found.layers, state.items(), strict=True):
        assert (layer.name, layer.shape, layer.weights) == (name, tuple(tensor.shape), tensor.numel())
        assert layer.nonzero == torch.count_nonzero(tensor)
        streams = layer.entries * (layer.coded_weight_bits + layer.coded_index_bits) / 8
        assert layer.bytes - 12 <= streams + layer.codebook_bytes <= layer.bytes


@pytest.mark.parametrize("made", [{}, {"by": "hand"}, {"é": [1.5, {"\u2028": None}]}])
@pytest.mark.parametrize("model", [None, {"name": "lenet-300-100", "arguments": {"dropout": 0.5}}])
def test_an_inspection_knows_what_it_costs_to_say_how_a_file_was_made(made, model):
    state = {"w": sparse((20, 30), 0.1, 7), "ü": torch.tensor(7)}
    found = inspect_bytes(pack(state, metadata=made, model=model))
    assert found.file_bytes - found.metadata_bytes == len(pack(state))


@every_encoding
def test_average_bits_are_all_bits_over_all_stored_entries(encoding):
    data = pack({**lenet(), "steps": torch.tensor(7), "nothing": torch.zeros(0, 3)}, encoding=encoding)
    found, blobs = inspect_bytes(data), parse_file(data).blobs
    entries = sum(blob.entries for blob in blobs)
    average = found.average
    assert average.entries == entries == sum(layer.entries for layer in found.layers)
    values = sum(len(blob.codes.data if blob.codes else blob.values) for blob in blobs)
    assert average.coded_weight_bits * entries == pytest.approx(8 * values)
    gaps = sum(len(blob.gaps.data) for blob in blobs if blob.gaps)
    assert average.coded_index_bits * entries == pytest.approx(8 * gaps)
    assert average.weight_bits >= average.coded_weight_bits - 1e-3
    assert average.index_bits * entries == sum(b.index_bits * b.entries for b in blobs)
    books = sum(layer.codebook_bytes for layer in found.layers)
    streams = entries * (average.coded_weight_bits + average.coded_index_bits) / 8
    assert 0 <= found.file_bytes - found.framing_bytes - books - streams <= 12 * len(blobs)


def test_average_bits_of_nothing_are_none():
    average = inspect_bytes(pack({"nothing": torch.zeros(0, 3)})).average
    assert (average.entries, average.weight_bits, average.coded_index_bits) == (0, 0.0, 0.0)


def test_an_inspection_says_what_was_stored():
    w = sparse((200, 300), 0.05, 31)
    layer = inspect_bytes(pack({"w": w}, encoding=EncodingConfig("bitpack", 4))).layers[0]
    gaps = np.diff(np.flatnonzero(w.numpy()), prepend=-1)
    assert layer.distinct == len(w.unique()) - 1 == 31
    assert (layer.weight_bits, layer.index_bits) == (5, 4)
    assert layer.coded_index_bits == pytest.approx(4, abs=0.01)
    assert layer.density == len(gaps) / w.numel()
    assert layer.entries > layer.nonzero == len(gaps)
    raw = inspect_bytes(pack({"w": w}, encoding=EncodingConfig(use_codebook=False))).layers[0]
    assert (raw.distinct, raw.weight_bits, raw.codebook_bytes) == (None, 32.0, 0)


def test_an_inspection_as_json_has_the_names_others_rely_on():
    found = inspect_bytes(pack(lenet(), metadata={"seed": 3})).to_json()
    again = json.loads(json.dumps(found, allow_nan=False))
    assert again == found
    assert found["original_bytes"] == 1_066_440
    assert found["made"] == {"seed": 3}
    assert {"file_bytes", "ratio", "layers", "model"} <= found.keys()
    assert {"name", "shape", "density", "bytes"} <= found["layers"][0].keys()


# --- files and modules


def test_writing_replaces_a_file_whole(tmp_path):
    path = tmp_path / "f.prunus"
    path.write_bytes(b"before")
    assert write(path, {"w": torch.ones(3)}) == path.stat().st_size
    same(read(path), {"w": torch.ones(3)})
    assert [p.name for p in tmp_path.iterdir()] == ["f.prunus"]
    assert stat.S_IMODE(path.stat().st_mode) & 0o600 == 0o600


@pytest.mark.parametrize("name", MODELS)
def test_a_built_in_model_comes_back_as_a_module(name, tmp_path):
    module = MODELS[name](seed=4)
    write(tmp_path / "f.prunus", module.state_dict(), model={"name": name, "arguments": {}})
    loaded = load(tmp_path / "f.prunus")
    same(loaded.state_dict(), module.state_dict())
    assert type(loaded) is type(module)
    assert not loaded.training


def test_a_users_own_module_is_filled_and_given_back(tmp_path):
    def own():
        return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.LazyLinear(2))

    source, target = own(), own()
    x = torch.randn(2, 3, 8, 8)
    source(x), target(x)
    write(tmp_path / "f.prunus", source.state_dict())
    assert load(tmp_path / "f.prunus", into=target) is target
    same(target.state_dict(), source.state_dict())
    assert torch.equal(target.eval()(x), source.eval()(x))
    assert target[1].num_batches_tracked.dtype == torch.int64


def test_a_file_of_another_model_is_named_apart(tmp_path):
    write(tmp_path / "f.prunus", {"weight": torch.zeros(2, 3), "extra": torch.zeros(1)})
    module = nn.Linear(4, 2)
    before = {name: t.clone() for name, t in module.state_dict().items()}
    with pytest.raises(ModelMismatchError) as error:
        load(tmp_path / "f.prunus", into=module)
    assert "missing: bias" in str(error.value)
    assert "unexpected: extra" in str(error.value)
    assert "weight (float32 [2, 3] in the file, float32 [2, 4] in the model)" in str(error.value)
    same(module.state_dict(), before)


def test_weights_are_not_rounded_into_a_module_of_another_dtype(tmp_path):
    write(tmp_path / "f.prunus", nn.Linear(4, 2).state_dict())
    with pytest.raises(ModelMismatchError, match=r"float32 .* in the file, float16"):
        load(tmp_path / "f.prunus", into=nn.Linear(4, 2).half())
