"""The residual networks: depth, bridges, normalization, initialization, and trained weights that are known."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F

import prunus
from prunus.data import data_root
from prunus.data.cifar10 import MEAN, STD
from prunus.errors import ModelMismatchError
from prunus.models import MODELS
from prunus.models.loading import load_weights
from prunus.models.resnet import IMAGENET_MEAN, IMAGENET_STD, BasicBlock, ResNet
from prunus.seeds import make_generator

KNOWN = "resnet20-cifar10-jpeg.safetensors"
"""ResNet-20 as trained and published by others, with what `cifar-10` is at hand from."""

each_depth = pytest.mark.parametrize("depth", [20, 32, 56, 110])


@each_depth
def test_depth_equals_the_number_in_the_name(depth):
    model = MODELS[f"resnet-{depth}"]()
    layers = [module for module in model.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    assert len(layers) == depth
    assert len([module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]) == depth - 1
    with torch.no_grad():
        assert model.eval()(torch.zeros(2, 3, 32, 32)).shape == (2, 10)


def test_parameter_names_are_those_of_published_weights():
    state = MODELS["resnet-20"]().state_dict()
    batch_norm = {"weight", "bias", "running_mean", "running_var", "num_batches_tracked"}
    blocks = [f"layer{stage}.{place}." for stage in (1, 2, 3) for place in (0, 1, 2)]
    names = {f"{block}conv{i}.weight" for block in blocks for i in (1, 2)} | {"conv1.weight"}
    names |= {f"{block}bn{i}.{name}" for block in blocks for i in (1, 2) for name in batch_norm}
    assert set(state) == names | {f"bn1.{n}" for n in batch_norm} | {"linear.weight", "linear.bias"}


@pytest.mark.parametrize(("inputs", "outputs", "stride"), [(16, 16, 1), (16, 32, 2), (32, 64, 2), (4, 7, 2)])
def test_shortcut_takes_every_second_position_and_pads_channels(inputs, outputs, stride):
    block = BasicBlock(inputs, outputs, stride).eval()
    nn.init.zeros_(block.bn2.weight)
    nn.init.zeros_(block.bn2.bias)
    x = torch.rand(2, inputs, 8, 8, generator=make_generator(0, "x")) + 0.1
    y = block(x)
    assert y.shape == (2, outputs, 8 // stride, 8 // stride)
    before = (outputs - inputs) // 2
    for channel in range(outputs):
        is_old_channel = before <= channel < before + inputs
        expected = (
            x[:, channel - before, ::stride, ::stride] if is_old_channel else torch.zeros(2, *y.shape[2:])
        )
        assert torch.equal(y[:, channel], expected)


def test_block_equals_its_equation():
    block = BasicBlock(4, 8, 2).eval()
    draw = make_generator(0, "block")
    for tensor in (*block.parameters(), block.bn1.running_mean, block.bn2.running_mean):
        tensor.data.normal_(0, 0.5, generator=draw)
    x = torch.randn(2, 4, 6, 6, generator=draw)

    def normed(y, bn):
        y = (y - bn.running_mean[:, None, None]) / torch.sqrt(bn.running_var + bn.eps)[:, None, None]
        return y * bn.weight[:, None, None] + bn.bias[:, None, None]

    inner = normed(F.conv2d(x, block.conv1.weight, stride=2, padding=1), block.bn1).clamp(min=0)
    outer = normed(F.conv2d(inner, block.conv2.weight, padding=1), block.bn2)
    nothing = torch.zeros(2, 2, 3, 3)
    bridge = torch.cat([nothing, x[:, :, [0, 2, 4]][..., [0, 2, 4]], nothing], 1)
    torch.testing.assert_close(block(x), (outer + bridge).clamp(min=0))


def test_input_normalization_is_converted():
    pixels = torch.rand(2, 3, 32, 32, generator=make_generator(0, "pixels"))

    def normalized(mean, std):
        return (pixels - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]

    model, plain = MODELS["resnet-20"]().eval(), MODELS["resnet-20"]().eval()
    plain.scale.fill_(1.0)
    plain.shift.fill_(0.0)
    with torch.no_grad():
        actual, expected = model(normalized(MEAN, STD)), plain(normalized(IMAGENET_MEAN, IMAGENET_STD))
    torch.testing.assert_close(actual, expected)
    assert not torch.allclose(model(normalized(IMAGENET_MEAN, IMAGENET_STD)), expected)


def test_weights_are_kaiming_normal_and_batchnorm_is_default():
    model = MODELS["resnet-56"](seed=1)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            fan_in, n = module.weight[0].numel(), module.weight.numel()
            assert float(module.weight.detach().var()) == pytest.approx(2 / fan_in, rel=6 * (2 / n) ** 0.5)
        elif isinstance(module, nn.BatchNorm2d):
            assert torch.equal(module.weight, torch.ones_like(module.weight))
            assert not module.bias.any()
    assert not model.linear.bias.any()


def test_normalization_is_rebuilt_when_a_file_is_loaded(tmp_path):
    model = MODELS["resnet-20"](seed=2).eval()
    prunus.save(model, tmp_path / "m")
    assert not {"scale", "shift"} & set(prunus.read(tmp_path / "m"))
    x = torch.randn(2, 3, 32, 32, generator=make_generator(0, "x"))
    with torch.no_grad():
        assert torch.equal(prunus.load(tmp_path / "m")(x), model(x))


def test_load_weights_accepts_files_without_batchnorm_counters(tmp_path):
    """Others' files often lack them; nothing is computed from them."""
    source, target = MODELS["resnet-20"](seed=1), MODELS["resnet-20"](seed=2)
    state = {n: t.contiguous() for n, t in source.state_dict().items() if "num_batches" not in n}
    save_file(state, tmp_path / "w.safetensors")
    load_weights(target, tmp_path / "w.safetensors")
    assert all(torch.equal(t, source.state_dict()[n]) for n, t in target.state_dict().items())
    del state["bn1.running_var"]
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(ModelMismatchError, match=r"another model: bn1\.running_var is missing\.$"):
        load_weights(target, tmp_path / "w.safetensors")


@pytest.mark.slow
def test_published_weights_have_the_published_accuracy():
    """88.30 % of the test split."""
    path = data_root() / KNOWN
    if not path.exists():
        pytest.skip(f"{path} is not there")
    model = MODELS["resnet-20"]()
    assert isinstance(model, ResNet)
    model.load_state_dict(load_file(path))
    load_weights(model, path)
    result = prunus.evaluate(model, prunus.load_data("cifar-10").test)
    assert result.accuracy == pytest.approx(88.30, abs=0.005)
