"""Properties of generated tensors: their numbers, their distribution, and files of a seed and a mask."""

import numpy as np
import pytest
import torch

import prunus
from prunus.compression.container import EncodingConfig, inspect, pack, unpack
from prunus.errors import ContainerError, NonFiniteError, UnknownNameError
from prunus.pruning.prunable import prunable_weights
from prunus.seeded_tensors import CHUNK, DEVIATION, GENERATORS, SeededTensor, seeded_tensor_with_std
from prunus.tickets.supermask.weights import WEIGHT_INITS

WORD = (1 << 64) - 1


def philox(counter, seed, stream):
    """Four words of Philox4x64-10, from the paper's rounds, in Python's integers."""
    a, b, c, d = counter & WORD, counter >> 64, 0, 0
    left, right = seed, stream
    for round_ in range(10):
        if round_:
            left, right = (left + 0x9E3779B97F4A7C15) & WORD, (right + 0xBB67AE8584CAA73B) & WORD
        first, second = 0xD2E7470EE14C6C93 * a, 0xCA5A826395121157 * c
        a, b, c, d = (second >> 64) ^ b ^ left, second & WORD, (first >> 64) ^ d ^ right, first & WORD
    return [a, b, c, d]


def words(seed, stream, count):
    return [word for block in range(-(-count // 4)) for word in philox(block + 1, seed, stream)][:count]


def integers_of_the_specification(generator, seed, size):
    """The integers of SPEC.md."""
    if generator == "signs":
        stream = words(seed, 0, -(-size // 64))
        return [1 - 2 * (stream[i // 64] >> i % 64 & 1) for i in range(size)]
    coins, steps = words(seed, 1, size), words(seed, 2, -(-size // 4))
    return [
        (1 << 17) * (coins[i].bit_count() - 32) + 2 * (steps[i // 4] >> 16 * (i % 4) & 0xFFFF) - 65535
        for i in range(size)
    ]


@pytest.mark.parametrize("seed", [0, 1, 2**63 + 12345, 2**64 - 1])
@pytest.mark.parametrize("generator", GENERATORS)
def test_generators_match_the_specification(generator, seed):
    for size in (0, 1, 3, 64, 67, 131):
        expected = integers_of_the_specification(generator, seed, size)
        assert GENERATORS[generator](seed, size).tolist() == expected
        assert all(float(np.float32(n)) == n for n in expected)


@pytest.mark.parametrize("generator", GENERATORS)
def test_generated_numbers_do_not_depend_on_the_size(generator):
    """Across the borders of the chunks as well."""
    many = GENERATORS[generator](7, 2 * CHUNK + 5)
    for size in (1, 1000, CHUNK - 1, CHUNK, CHUNK + 1):
        assert np.array_equal(GENERATORS[generator](7, size), many[:size])


def test_generators_match_golden_values():
    assert GENERATORS["signs"](0, 8).tolist() == [-1, -1, 1, -1, -1, 1, 1, -1]
    assert GENERATORS["normals"](0, 4).tolist() == [333825, -770055, -495591, 303357]


def test_generated_numbers_have_the_stated_distribution():
    n = 1_000_000
    share = float((GENERATORS["signs"](3, n) > 0).mean())
    assert abs(share - 0.5) < 5 * 0.5 / n**0.5
    z = GENERATORS["normals"](3, n).astype(np.float64) / DEVIATION["normals"]
    assert abs(z.mean()) < 5 / n**0.5
    assert abs(z.var() - 1) < 5 * (2 / n) ** 0.5
    assert abs((z**3).mean()) < 5 * (15 / n) ** 0.5
    assert abs((z**4).mean() - 3 + 0.031) < 5 * (96 / n) ** 0.5
    for bound, mass in ((0.5, 0.38292), (1.0, 0.68269), (2.0, 0.95450), (3.0, 0.99730)):
        assert abs((np.abs(z) < bound).mean() - mass) < 2 * 0.0013 + 5 * 0.5 / n**0.5
    assert abs(np.corrcoef(z[:-1], z[1:])[0, 1]) < 5 / n**0.5
    other = GENERATORS["normals"](4, n)
    assert abs(np.corrcoef(z, other)[0, 1]) < 5 / n**0.5


@pytest.mark.parametrize("kind", ["glorot", "signed_glorot", "kaiming", "signed_kaiming"])
def test_seeded_layer_has_the_standard_deviation_of_its_initialization(kind):
    weight = torch.empty(200, 30, 3, 3)
    frozen = WEIGHT_INITS[kind]({"w": weight}, 2.0, 0).values["w"]
    variance = 4 * (2 / (270 + 1800) if "glorot" in kind else 2 / 270)
    assert float(frozen.double().square().mean()) == pytest.approx(variance, rel=0.02)
    assert torch.equal(frozen, WEIGHT_INITS[kind]({"w": torch.ones(200, 30, 3, 3)}, 2.0, 0).values["w"])
    assert not torch.equal(frozen, WEIGHT_INITS[kind]({"w": weight}, 2.0, 1).values["w"])


def masked(how, shape, factor, density=0.5, signed=False):
    """A tensor as a learned mask leaves it."""
    g = torch.Generator().manual_seed(1)
    mask = (torch.rand(shape, generator=g) < density).float()
    if signed:
        mask *= torch.where(torch.rand(shape, generator=g) < 0.3, -1.0, 1.0)
    return torch.from_numpy(how.values(shape)) * (mask * factor) + 0.0


@pytest.mark.parametrize(
    "encoding",
    [EncodingConfig("bitpack"), EncodingConfig("huffman"), EncodingConfig()],
    ids=lambda c: c.codec,
)
@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("factor", [1.0, 1.9873])
@pytest.mark.parametrize("generator", GENERATORS)
def test_seeded_tensor_is_read_back_bit_for_bit(generator, factor, signed, encoding):
    how = seeded_tensor_with_std(generator, 99, 0.0430)
    for shape in ((30, 20), (4, 3, 5, 5), (1,), (0, 3)):
        tensor = masked(how, shape, factor, signed=signed)
        data = pack({"w": tensor}, generated={"w": how}, factors={"w": factor}, encoding=encoding)
        back = unpack(data)[1]["w"]
        assert back.shape == tensor.shape
        assert torch.equal(back.reshape(-1).view(torch.int32), tensor.reshape(-1).view(torch.int32))


@pytest.mark.parametrize("factor", [1.0, -2.5, 0.0])
@pytest.mark.parametrize("generator", GENERATORS)
def test_seeded_tensor_is_read_back_with_positive_zeros(generator, factor):
    """The products with 0 are -0.0 where the weight is negative: equal in value, and in the bytes of the file."""
    how = seeded_tensor_with_std(generator, 3, 0.1)
    mask = torch.arange(60).view(6, 10) % 3 == 0
    tensor = torch.from_numpy(how.values((6, 10))) * mask * factor
    assert ((tensor == 0) & tensor.signbit()).any()
    data, plus = (pack({"w": w}, generated={"w": how}, factors={"w": factor}) for w in (tensor, tensor + 0.0))
    assert data == plus
    back = unpack(data)[1]["w"]
    assert torch.equal(back, tensor)
    assert not (back.signbit() & (back == 0)).any()


@pytest.mark.parametrize(("scale", "factor"), [(3e38, 1.0), (3e38, 2.0), (1e-38, 1e-30), (1e-10, 3e38)])
@pytest.mark.parametrize("generator", GENERATORS)
def test_seeded_tensor_at_the_limits_of_float32_is_read_back_or_refused(generator, scale, factor):
    how = SeededTensor(generator, 5, scale)
    with np.errstate(over="ignore"):
        product = torch.from_numpy(how.values((40,)) * np.float32(factor))
    mask = (torch.arange(40) % 2).bool()
    for nonzero in (mask, mask & product.isfinite()):
        tensor = torch.where(nonzero, product, 0.0)
        if not tensor.isfinite().all():
            with pytest.raises(NonFiniteError, match="w holds"):
                pack({"w": tensor}, generated={"w": how}, factors={"w": factor})
            continue
        data = pack({"w": tensor}, generated={"w": how}, factors={"w": factor})
        assert torch.equal(unpack(data)[1]["w"], tensor)


@pytest.mark.parametrize("density", [0.03, 0.5, 0.9, 1.0])
def test_seeded_tensor_has_the_size_of_its_mask(density):
    """Within half a per cent and 100 bytes of the entropy of the mask."""
    how = seeded_tensor_with_std("normals", 5, 0.1)
    tensor = masked(how, (300, 784), 1.0, density)
    p = float((tensor != 0).float().mean())
    entropy = 0.0 if p == 1 else -(p * np.log2(p) + (1 - p) * np.log2(1 - p)) * tensor.numel() / 8
    size = len(pack({"w": tensor}, generated={"w": how}))
    assert entropy <= size < 1.005 * entropy + 220


@pytest.mark.parametrize("weights", ["signed_glorot", "glorot"])
def test_seeded_lenet_takes_36_kilobytes_and_evaluates(weights, tmp_path):
    model = prunus.models.lenet_300_100(seed=3)
    frozen = WEIGHT_INITS[weights](dict(prunable_weights(model)), 1.0, 8)
    with torch.no_grad():
        for name, parameter in prunable_weights(model).items():
            g = torch.Generator().manual_seed(len(name))
            parameter.copy_(frozen.values[name] * (torch.rand(parameter.shape, generator=g) < 0.5) + 0.0)
    assert prunus.save(model, tmp_path / "f.prunus", generated=frozen.seeded) <= 36_000
    back = prunus.load(tmp_path / "f.prunus")
    inputs = torch.rand(50, 1, 28, 28)
    assert torch.equal(back(inputs), model.eval()(inputs))
    inspection = inspect(tmp_path / "f.prunus")
    assert inspection.file_bytes == inspection.framing_bytes + sum(layer.bytes for layer in inspection.layers)
    layer = next(layer for layer in inspection.layers if layer.name == "fc1.weight")
    assert layer.nonzero == int(model.fc1.weight.count_nonzero())
    assert layer.coded_weight_bits < 1.01


def test_pack_raises_for_values_that_the_seed_does_not_generate():
    how = SeededTensor("signs", 1, 0.5)
    tensor = masked(how, (10, 10), 1.0)
    tensor[0, 0] = 0.25
    with pytest.raises(
        ContainerError, match=r"w holds 1 entries that are neither 0 nor 1 times the numbers of seed 1"
    ):
        pack({"w": tensor}, generated={"w": how})
    with pytest.raises(ContainerError, match=r"w holds .* neither 0 nor 3 times"):
        pack({"w": masked(how, (10, 10), 1.0)}, generated={"w": how}, factors={"w": 3.0})
    with pytest.raises(ContainerError, match="float64"):
        pack({"w": tensor.double()}, generated={"w": how})
    with pytest.raises(ContainerError, match="`generated` to name tensors of the state, got v"):
        pack({"w": tensor}, generated={"v": how})
    with pytest.raises(UnknownNameError, match="normals"):
        SeededTensor("normal", 1, 0.5).values((2,))


GOLDEN = "12 00 00 01 00 00 00 00 00 00 00 00 00 00 3f 08 00 00 00 00 00 00 80 3f 68"


def test_seeded_blob_has_golden_bytes():
    """Flags, packed codes, signs, seed 1, scale 0.5; a codebook of 0 and 1; the mask 01101."""
    how = SeededTensor("signs", 1, 0.5)
    tensor = torch.from_numpy(how.values((5,))) * torch.tensor([0, 1, 1, 0, 1.0]) + 0.0
    data = pack({"w": tensor}, generated={"w": how}, encoding=EncodingConfig("bitpack"))
    assert data[-4 - 25 : -4].hex(" ") == GOLDEN
    assert torch.equal(unpack(data)[1]["w"], tensor)
