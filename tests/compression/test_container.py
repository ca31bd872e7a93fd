"""Properties of the container: round trips, sizes and inspection."""

import json
import lzma
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

import prunus
from prunus.compression.codecs import CODECS
from prunus.compression.container import (
    EncodingConfig,
    encode_tensors,
    inspect,
    load,
    pack,
    read,
    read_header,
    tensor_encoder,
    unpack,
    write,
)
from prunus.compression.container.file_format import DTYPES
from prunus.compression.container.reading import parse_file
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
    """A sparse tensor whose nonzero entries take few values (any values if `values` is None)."""
    g = torch.Generator().manual_seed(seed)
    is_nonzero = torch.rand(shape, generator=g) < density
    if values is None:
        dense = torch.randn(shape, generator=g)
    else:
        dense = torch.randn(values, generator=g)[torch.randint(values, shape, generator=g)]
    return torch.where(is_nonzero, dense, torch.zeros(())).to(dtype)


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


# --- round trips


@every_encoding
@pytest.mark.parametrize("density", [0.0, 0.003, 0.1, 0.7, 1.0])
def test_unpack_inverts_pack_bit_for_bit(encoding, density):
    state = {
        "shared": sparse((40, 50), density, 31),
        "conv": sparse((8, 4, 3, 3), density, 200),
        "raw": sparse((40, 30), density, None),
        "large": sparse((90, 100), density, None),
        "halves": sparse((90, 100), density, None).half().float(),
        "row": sparse((500,), density, 3),
    }
    same(unpack(pack(state, encoding=encoding))[1], state)


@every_encoding
@pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental")
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_unpack_inverts_pack_for_every_dtype(encoding, dtype):
    ints = torch.randint(0, 2, (7, 9), generator=torch.Generator().manual_seed(0))
    state = {"a": ints.to(dtype), "scalar": torch.tensor(1).to(dtype), "empty": torch.zeros(3, 0).to(dtype)}
    if dtype.is_floating_point:
        state["sparse"] = sparse((30, 30), 0.2, 9, dtype=dtype)
        state["many values"] = sparse((70, 70), 1.0, None, dtype=dtype)
        state["pruned"] = sparse((100, 100), 0.5, None, dtype=dtype)
    elif dtype != torch.bool and not dtype.is_complex:
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
        entries = draw(
            st.lists(st.sampled_from(values), min_size=math.prod(shape), max_size=math.prod(shape))
        )
        state[name] = torch.tensor(entries, dtype=torch.float64).to(dtype).reshape(shape)
    return state


@given(states(), st.sampled_from(ENCODINGS))
def test_pack_of_unpacked_state_gives_the_same_bytes(state, encoding):
    data = pack(state, encoding=encoding)
    back = unpack(data)[1]
    same(back, state)
    assert pack(back, encoding=encoding) == data


def test_encode_tensors_equals_pack_for_every_encoding():
    state = {**lenet(), "raw": sparse((40, 30), 0.3, None), "steps": torch.tensor(3)}
    for encoding, encoded in zip(ENCODINGS, encode_tensors(state, ENCODINGS), strict=True):
        assert encoded.to_bytes(metadata={"a": 1}) == pack(state, metadata={"a": 1}, encoding=encoding)


def test_pack_stores_negative_zero_as_a_value():
    state = {"w": torch.tensor([0.0, -0.0, 1.0, -0.0] + [0.0] * 100)}
    back = unpack(pack(state))[1]["w"]
    assert torch.equal(torch.signbit(back), torch.signbit(state["w"]))
    assert inspect_bytes(pack(state)).layers[0].nonzero == 3


def test_pack_stores_views_and_parameters_by_value():
    w = nn.Parameter(torch.randn(6, 8))
    state = {"turned": w.t(), "part": w[::2, 1:5], "spread": torch.ones(1).expand(5), "w": w}
    before = {name: t.detach().clone() for name, t in state.items()}
    same(unpack(pack(state))[1], before)
    same({name: t.detach() for name, t in state.items()}, before)


def test_unpacked_tensors_own_their_memory():
    back = unpack(pack({"a": torch.zeros(4), "b": torch.ones(4), "n": torch.arange(3)}))[1]
    for tensor in back.values():
        tensor.add_(1)
    assert back["a"].tolist() == [1.0] * 4
    assert back["n"].tolist() == [1, 2, 3]


def test_read_header_returns_metadata_and_model(tmp_path):
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
def test_write_raises_for_metadata_that_read_would_refuse(made, model, tmp_path):
    with pytest.raises(
        ContainerError, match=r"^(No reader would accept this header|The header cannot be written)"
    ):
        write(tmp_path / "f.prunus", {"w": torch.ones(2)}, model=model, metadata=made)
    assert not any(tmp_path.iterdir())


def test_file_states_the_version_that_wrote_it(tmp_path):
    prunus.save(torch.nn.Linear(2, 2), tmp_path / "f.prunus")
    assert prunus.inspect(tmp_path / "f.prunus").metadata["prunus"] == prunus.__version__


@pytest.mark.parametrize("metadata", [{"edits": 3}, {"negative_zeros_cleared": 1}, ["edits"]])
def test_save_raises_for_metadata_that_prunus_writes_itself(metadata, tmp_path):
    with pytest.raises(ContainerError, match=r"Expected metadata as a dict without the keys 'edits' and"):
        prunus.save(torch.nn.Linear(2, 2), tmp_path / "f.prunus", metadata=metadata)
    assert not any(tmp_path.iterdir())


def test_an_encoding_of_another_type_is_named():
    for encode in (prunus.saved_size, lambda model, encoding: pack(model.state_dict(), encoding=encoding)):
        with pytest.raises(ContainerError, match=r"prunus\.EncodingConfig, got 'huffman'; pass"):
            encode(torch.nn.Linear(2, 2), encoding="huffman")


@pytest.mark.parametrize(
    "state",
    [
        {1: torch.ones(2)},
        {1: torch.ones(2), "1": torch.ones(2)},
        {"w": torch.zeros(0, 1 << 61)},
        {"w": torch.zeros(0, 1 << 40, 1 << 22)},
    ],
)
def test_pack_raises_for_tensors_that_unpack_would_refuse(state):
    with pytest.raises(ContainerError, match=r"^No reader would accept this header"):
        pack(state)


def test_write_gives_the_same_bytes_in_another_process(tmp_path):
    program = (
        "import sys, torch; from prunus.compression.container import write;"
        "w = torch.arange(-3000, 3000).reshape(60, 100).remainder(97).sub(90).relu() / 8;"
        "write(sys.argv[1], {'w': w}, metadata={'b': 1, 'a': {'d': 2}})"
    )
    subprocess.run([sys.executable, "-c", program, str(tmp_path / "f")], check=True)
    w = torch.arange(-3000, 3000).reshape(60, 100).remainder(97).sub(90).relu() / 8
    assert (tmp_path / "f").read_bytes() == pack({"w": w}, metadata={"a": {"d": 2}, "b": 1})


# --- sizes


def entropy_bytes(symbols):
    counts = np.unique(symbols, return_counts=True)[1]
    return float(-(counts * np.log2(counts / counts.sum())).sum() / 8)


def test_blob_of_a_sparse_quantized_tensor_is_within_3_percent_of_entropy():
    w = lenet()["fc1.weight"]
    flat = w.flatten().numpy()
    where = np.flatnonzero(flat)
    bound = entropy_bytes(np.diff(where, prepend=-1)) + entropy_bytes(flat[where])
    size = inspect_bytes(pack({"w": w})).layers[0].bytes
    assert size <= 1.03 * bound + 80


def test_encodings_of_later_stages_are_smaller():
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


def test_automatic_index_bits_are_the_smallest_encoding():
    state = {"w": lenet()["fc2.weight"]}
    for codec in CODECS:
        sizes = [len(pack(state, encoding=EncodingConfig(codec, bits))) for bits in range(2, 13)]
        assert len(pack(state, encoding=EncodingConfig(codec))) <= min(sizes) + 8


def test_blob_is_at_most_one_byte_longer_than_the_tensor():
    g = torch.Generator().manual_seed(0)
    for dtype in FLOATS:
        noise = torch.randint(256, (10_000, dtype.itemsize), dtype=torch.uint8, generator=g).view(dtype)
        for tensor in (torch.randn(300, generator=g), torch.randn(1), torch.zeros(1), torch.zeros(0), noise):
            layer = inspect_bytes(pack({"w": tensor.to(dtype)})).layers[0]
            assert layer.bytes <= layer.original_bytes + 1


def test_pack_chooses_the_cheaper_order_of_positions():
    rows = torch.zeros(64, 64)
    rows[::9] = 1.0
    sizes = [len(pack({"w": w.contiguous()})) for w in (rows, rows.t())]
    assert abs(sizes[0] - sizes[1]) <= 1


def test_float32_values_exact_in_float16_take_half_the_bytes():
    exact, inexact = torch.linspace(-1, 1, 257).half().float(), torch.linspace(-1, 1, 257) / 3
    state = {"exact": exact, "inexact": inexact, "large": 1e6 * exact, "small": 1e-9 * exact}
    assert [layer.bytes for layer in inspect_bytes(pack(state)).layers] == [1 + 2 * 257] + [1 + 4 * 257] * 3
    same(unpack(pack(state))[1], state)


@pytest.mark.parametrize("density", [1.0, 0.5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_many_different_values_take_the_entropy_of_their_exponents(dtype, density):
    """And of their positions; the bits of the mantissas and the signs are stored as they are."""
    w = sparse((300, 200), density, None, dtype=dtype)
    nonzero = w[w != 0].float()
    _, counts = np.unique(np.frexp(nonzero.numpy())[1], return_counts=True)
    exponents = -(counts * np.log2(counts / counts.sum())).sum() / 8
    share = np.array([density, 1 - density][: 2 if density < 1 else 1])
    expected = (
        exponents + len(nonzero) * (dtype.itemsize - 1) - w.numel() * (share * np.log2(share)).sum() / 8
    )
    size = inspect_bytes(pack({"w": w})).layers[0].bytes
    assert expected < size < 1.01 * expected
    assert size < 0.95 * len(lzma.compress(w.view(torch.uint8).numpy().tobytes()))


def test_float32_values_exact_in_bfloat16_take_the_bytes_of_bfloat16():
    w = sparse((300, 200), 1.0, None, dtype=torch.bfloat16)
    sizes = [inspect_bytes(pack({"w": tensor})).layers[0].bytes for tensor in (w, w.float())]
    assert sizes[1] < 1.02 * sizes[0]


def test_few_values_have_no_byte_planes():
    w = sparse((tensor_encoder.MIN_PLANE_ENTRIES,), 1.0, None)
    sizes = [inspect_bytes(pack({"w": tensor})).layers[0].bytes for tensor in (w[1:].clone(), w)]
    assert sizes[0] == 4 * (len(w) - 1) + 1
    assert sizes[1] < 0.9 * 4 * len(w)


def test_framing_is_below_400_bytes():
    inspection = inspect_bytes(pack(lenet(), model={"name": "lenet-300-100", "arguments": {}}))
    assert inspection.framing_bytes < 400


# --- inspection


def inspect_bytes(data):
    """The inspection of a file that holds these bytes."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "f.prunus"
        path.write_bytes(data)
        return inspect(path)


@every_encoding
def test_inspect_sizes_add_up_to_the_file_size(encoding, tmp_path):
    state = {**lenet(), "steps": torch.tensor(7), "nothing": torch.zeros(0, 3)}
    state |= {"unshared": sparse((90, 100), 1.0, None), "pruned": sparse((90, 100), 0.6, None)}
    size = write(tmp_path / "f.prunus", state, metadata={"x": 1}, encoding=encoding)
    inspection = inspect(tmp_path / "f.prunus")
    assert size == inspection.file_bytes == (tmp_path / "f.prunus").stat().st_size
    assert sum(layer.bytes for layer in inspection.layers) + inspection.framing_bytes == size
    assert inspection.original_bytes == sum(t.numel() * t.element_size() for t in state.values())
    assert inspection.ratio == inspection.original_bytes / size
    for layer, (name, tensor) in zip(inspection.layers, state.items(), strict=True):
        assert (layer.name, layer.shape, layer.weights) == (name, tuple(tensor.shape), tensor.numel())
        assert layer.nonzero == torch.count_nonzero(tensor)
        streams = layer.entries * (layer.coded_weight_bits + layer.coded_index_bits) / 8
        assert layer.bytes - 32 <= streams + layer.codebook_bytes <= layer.bytes


@pytest.mark.parametrize("made", [{}, {"by": "hand"}, {"é": [1.5, {"\u2028": None}]}])
@pytest.mark.parametrize("model", [None, {"name": "lenet-300-100", "arguments": {"dropout": 0.5}}])
def test_inspect_metadata_bytes_are_the_size_difference_without_metadata(made, model):
    state = {"w": sparse((20, 30), 0.1, 7), "ü": torch.tensor(7)}
    inspection = inspect_bytes(pack(state, metadata=made, model=model))
    assert inspection.file_bytes - inspection.metadata_bytes == len(pack(state))


@every_encoding
def test_inspect_average_is_weighted_by_stored_entries(encoding):
    data = pack({**lenet(), "steps": torch.tensor(7), "nothing": torch.zeros(0, 3)}, encoding=encoding)
    inspection, blobs = inspect_bytes(data), parse_file(data).blobs
    entries = sum(blob.entries for blob in blobs)
    average = inspection.average
    assert average.entries == entries == sum(layer.entries for layer in inspection.layers)
    values = sum(len(blob.codes.data if blob.codes else blob.values) for blob in blobs)
    values += sum(len(plane.data) for blob in blobs for plane in blob.planes)
    assert average.coded_weight_bits * entries == pytest.approx(8 * values)
    gaps = sum(len(blob.gaps.data) for blob in blobs if blob.gaps)
    assert average.coded_index_bits * entries == pytest.approx(8 * gaps)
    assert average.weight_bits >= average.coded_weight_bits - 1e-3
    assert average.index_bits * entries == sum(b.index_bits * b.entries for b in blobs)
    books = sum(layer.codebook_bytes for layer in inspection.layers)
    streams = entries * (average.coded_weight_bits + average.coded_index_bits) / 8
    assert 0 <= inspection.file_bytes - inspection.framing_bytes - books - streams <= 32 * len(blobs)


def test_inspect_average_is_zero_without_entries():
    average = inspect_bytes(pack({"nothing": torch.zeros(0, 3)})).average
    assert (average.entries, average.weight_bits, average.coded_index_bits) == (0, 0.0, 0.0)


def test_inspect_returns_stored_statistics():
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


def test_inspection_json_has_documented_keys():
    inspection = inspect_bytes(pack(lenet(), metadata={"seed": 3})).to_json()
    again = json.loads(json.dumps(inspection, allow_nan=False))
    assert again == inspection
    assert inspection["original_bytes"] == 1_066_440
    assert inspection["metadata"] == {"seed": 3}
    assert {"file_bytes", "ratio", "layers", "model"} <= inspection.keys()
    assert {"name", "shape", "density", "bytes"} <= inspection["layers"][0].keys()


# --- files and modules


def test_write_replaces_a_file_atomically(tmp_path):
    path = tmp_path / "f.prunus"
    path.write_bytes(b"before")
    assert write(path, {"w": torch.ones(3)}) == path.stat().st_size
    same(read(path), {"w": torch.ones(3)})
    assert [p.name for p in tmp_path.iterdir()] == ["f.prunus"]
    assert stat.S_IMODE(path.stat().st_mode) & 0o600 == 0o600


@pytest.mark.parametrize("name", [n for n in MODELS if n.startswith(("lenet", "conv", "resnet-20"))])
def test_load_builds_a_built_in_model(name, tmp_path):
    module = MODELS[name](seed=4)
    write(tmp_path / "f.prunus", module.state_dict(), model={"name": name, "arguments": {}})
    loaded = load(tmp_path / "f.prunus")
    same(loaded.state_dict(), module.state_dict())
    assert type(loaded) is type(module)
    assert not loaded.training


def test_load_fills_and_returns_the_given_module(tmp_path):
    def make_model():
        return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.LazyLinear(2))

    source, target = make_model(), make_model()
    x = torch.randn(2, 3, 8, 8)
    source(x), target(x)
    write(tmp_path / "f.prunus", source.state_dict())
    assert load(tmp_path / "f.prunus", into=target) is target
    same(target.state_dict(), source.state_dict())
    assert torch.equal(target.eval()(x), source.eval()(x))
    assert target[1].num_batches_tracked.dtype == torch.int64


def test_load_lists_differences_to_another_model(tmp_path):
    write(tmp_path / "f.prunus", {"weight": torch.zeros(2, 3), "extra": torch.zeros(1)})
    module = nn.Linear(4, 2)
    before = {name: t.clone() for name, t in module.state_dict().items()}
    with pytest.raises(ModelMismatchError) as error:
        load(tmp_path / "f.prunus", into=module)
    assert "missing: bias" in str(error.value)
    assert "unexpected: extra" in str(error.value)
    assert "weight (float32 [2, 3] in the file, float32 [2, 4] in the model)" in str(error.value)
    same(module.state_dict(), before)


def test_load_raises_for_a_module_of_another_dtype(tmp_path):
    write(tmp_path / "f.prunus", nn.Linear(4, 2).state_dict())
    with pytest.raises(ModelMismatchError, match=r"float32 .* in the file, float16"):
        load(tmp_path / "f.prunus", into=nn.Linear(4, 2).half())
