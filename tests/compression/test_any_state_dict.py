"""A file holds any state_dict bit for bit: every dtype, NaN, tied tensors once, extra state of modules."""

from collections import OrderedDict

import hypothesis
import numpy as np
import pytest
import torch
from hypothesis import strategies as st
from torch import nn
from torch.optim.swa_utils import AveragedModel

import prunus
from prunus.compression.container import (
    EncodingConfig,
    encode_tensors,
    inspect,
    load,
    pack,
    read,
    unpack,
)
from prunus.compression.container.file_format import DTYPES, as_bytes
from prunus.errors import ContainerError, CorruptFileError, ModelMismatchError

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
ENCODINGS = [EncodingConfig(codec) for codec in ("bitpack", "huffman", "range")]


@st.composite
def tensors(draw):
    """Tensors of any dtype and any bits, dense, sparse, or of few values."""
    dtype = draw(st.sampled_from(list(DTYPES.values())))
    shape = draw(st.lists(st.integers(0, 9), max_size=3))
    values = np.random.default_rng(draw(st.integers(0, 2**32))).integers(
        0, 256, (int(np.prod(shape)), dtype.itemsize), np.uint8
    )
    values[:: draw(st.integers(1, 4))] = draw(
        st.sampled_from([values[:1], np.zeros(dtype.itemsize, np.uint8)])
    )
    if dtype == torch.bool:
        values &= 1
    return torch.from_numpy(values.reshape(-1)).view(dtype).reshape(shape)


scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary()
plain = st.recursive(
    scalars,
    lambda items: (
        st.lists(items, max_size=3)
        | st.lists(items, max_size=3).map(tuple)
        | st.dictionaries(st.text(max_size=3) | st.integers(), items, max_size=3)
    ),
    max_leaves=8,
)


def same(value, other):
    """Equal in type and bits."""
    if isinstance(value, torch.Tensor):
        return (
            value.dtype == other.dtype
            and value.shape == other.shape
            and torch.equal(as_bytes(value), as_bytes(other))
        )
    return repr(value) == repr(other)


@hypothesis.settings(max_examples=150, deadline=None)
@hypothesis.given(
    st.dictionaries(
        st.text(min_size=1, max_size=4), tensors() | plain.filter(lambda v: v is not None), max_size=5
    ),
    st.sampled_from(ENCODINGS),
)
def test_any_state_dict_is_read_back_bit_for_bit(state, encoding):
    back = unpack(pack(state, encoding=encoding))[1]
    assert list(back) == list(state)
    assert all(same(value, back[name]) for name, value in state.items())


class Tied(nn.Module):
    def __init__(self, tied):
        super().__init__()
        self.embed, self.decode = nn.Embedding(500, 16), nn.Linear(16, 500, bias=False)
        if tied:
            self.decode.weight = self.embed.weight


def test_tied_tensor_is_stored_once_and_read_as_one(tmp_path):
    model = Tied(tied=True)
    model.embed.weight.data[3] = -0.0
    size, twice = prunus.save(model, tmp_path / "one"), prunus.save(Tied(tied=False), tmp_path / "two")
    assert size < 0.55 * twice
    state = read(tmp_path / "one")
    assert state["embed.weight"].data_ptr() == state["decode.weight"].data_ptr()
    inspected = inspect(tmp_path / "one")
    assert [layer.original_bytes for layer in inspected.layers] == [32000, 0]
    assert inspected.layers[1].nonzero == inspected.layers[0].nonzero
    for other in (Tied(tied=True), Tied(tied=False)):
        load(tmp_path / "one", into=other)
        assert torch.equal(other.embed.weight, model.embed.weight)
        assert torch.equal(other.decode.weight, model.embed.weight)
    with pytest.raises(ModelMismatchError, match=r"different values for embed\.weight and decode\.weight"):
        load(tmp_path / "two", into=Tied(tied=True))


@pytest.mark.parametrize("name", ["embed.weight", "decode.weight"])
@pytest.mark.parametrize("part_bytes", [64, 32 << 20])
def test_one_name_of_a_tied_tensor_is_enough(name, part_bytes, tmp_path, monkeypatch):
    monkeypatch.setattr("prunus.compression.container.loading.PART_BYTES", part_bytes)
    model = Tied(tied=True)
    (tmp_path / "one").write_bytes(pack({name: model.embed.weight}))  # as from a safetensors file
    other = load(tmp_path / "one", into=Tied(tied=True))
    assert torch.equal(other.embed.weight, model.embed.weight)
    assert torch.equal(other.decode.weight, model.embed.weight)
    with pytest.raises(ModelMismatchError, match="missing: "):
        load(tmp_path / "one", into=Tied(tied=False))


class Scaled(nn.Linear):
    amax = 0.0

    def get_extra_state(self):
        return {"amax": self.amax, "shape": (2, 3), "history": torch.tensor([1.0, float("nan")])}

    def set_extra_state(self, state):
        self.amax, self.shape = state["amax"], state["shape"]


def test_extra_state_of_modules_is_kept(tmp_path, monkeypatch):
    model = Scaled(2, 3)
    model.amax = float("inf")
    prunus.save(model, tmp_path / "f.prunus")
    other = load(tmp_path / "f.prunus", into=Scaled(2, 3))
    assert (other.amax, other.shape) == (float("inf"), (2, 3))
    layers = {layer.name: layer for layer in inspect(tmp_path / "f.prunus").layers}
    assert layers["_extra_state"].dtype == "json"
    for initial in (None, OrderedDict(amax=1.0), torch.ones(2)):  # the state before the first use
        other = Scaled(2, 3)
        monkeypatch.setattr(other, "get_extra_state", lambda initial=initial: initial)
        assert load(tmp_path / "f.prunus", into=other).shape == (2, 3)
    with pytest.raises(ContainerError, match="odd is or contains a device"):
        pack({"odd": [torch.device("cpu")]})


def test_wrapped_module_is_saved_as_the_module_inside(tmp_path):
    model = nn.Sequential(nn.Linear(2, 3))
    wrapped = nn.DataParallel(torch.compile(model))
    prunus.save(wrapped, tmp_path / "f.prunus")
    assert list(read(tmp_path / "f.prunus")) == ["0.weight", "0.bias"]
    average = AveragedModel(model)
    average.update_parameters(model)
    prunus.save(average, tmp_path / "average.prunus")
    assert (tmp_path / "average.prunus").read_bytes() == (tmp_path / "f.prunus").read_bytes()
    with pytest.raises(ModelMismatchError, match="n_averaged"):  # an average of how many models is not known
        load(tmp_path / "average.prunus", into=AveragedModel(model))
    for target in (nn.Sequential(nn.Linear(2, 3)), nn.DataParallel(nn.Sequential(nn.Linear(2, 3)))):
        load(tmp_path / "f.prunus", into=target)
        assert all(torch.equal(a, b) for a, b in zip(target.parameters(), model.parameters(), strict=True))
    with (tmp_path / "g.prunus").open("wb") as file:  # as earlier versions wrote it
        file.write(pack(wrapped.state_dict()))
    target = load(tmp_path / "g.prunus", into=nn.Sequential(nn.Linear(2, 3)))
    assert torch.equal(target[0].weight, model[0].weight)


def test_module_is_not_changed_by_a_file_that_cannot_be_decoded(tmp_path, monkeypatch):
    monkeypatch.setattr("prunus.compression.container.loading.PART_BYTES", 64)
    source, target = (
        nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8)),
        nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8)),
    )
    for model in (source, target):
        model[1].register_buffer("flag", torch.tensor(True))
    (encoded,) = encode_tensors(source.state_dict(), [EncodingConfig()])
    (tmp_path / "good.prunus").write_bytes(encoded.to_bytes())
    encoded.blobs[-1] = b"\0\2"  # a truth value of 2
    (tmp_path / "bad.prunus").write_bytes(encoded.to_bytes())
    before = [p.detach().clone() for p in target.parameters()]
    with pytest.raises(CorruptFileError, match="neither 0 nor 1"):
        load(tmp_path / "bad.prunus", into=target)
    assert all(torch.equal(a, b) for a, b in zip(before, target.parameters(), strict=True))
    load(tmp_path / "good.prunus", into=target)
    assert all(torch.equal(a, b) for a, b in zip(source.parameters(), target.parameters(), strict=True))


def test_tensor_whose_entries_share_memory_is_refused_before_the_module_is_changed(tmp_path):
    class Expanded(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(2, 2)
            self.register_buffer("expanded", torch.randn(2, 2).expand(3, 2, 2))

    prunus.save(Expanded(), tmp_path / "e.prunus")
    module = Expanded()
    before = module.layer.weight.detach().clone()
    with pytest.raises(ModelMismatchError, match="several entries of 'expanded' of Expanded share one place"):
        prunus.load(tmp_path / "e.prunus", into=module)
    assert torch.equal(module.layer.weight, before)
    module = Expanded()
    module.expanded = torch.zeros(8).as_strided((3, 2, 2), (2, 2, 1))  # no dimension is expanded
    module.register_buffer("sparse", torch.eye(2).to_sparse())
    with pytest.raises(ModelMismatchError, match="missing: sparse"):
        prunus.load(tmp_path / "e.prunus", into=module)
