"""Built-in models of the papers: counts of parameters and MACs, names of the parameters, widths."""

import itertools

import pytest
import torch

import prunus
from prunus.errors import ModelError
from prunus.models import MODELS

PUBLISHED = {
    # torchvision's page "Models and pre-trained weights": parameters, and GFLOPS, which are multiply-accumulates
    "vgg-11": (132_863_336, 7.61e9),
    "vgg-13": (133_047_848, 11.31e9),
    "vgg-16": (138_357_544, 15.47e9),
    "vgg-19": (143_667_240, 19.63e9),
    "vgg-11-bn": (132_868_840, 7.61e9),
    "vgg-13-bn": (133_053_736, 11.31e9),
    "vgg-16-bn": (138_365_992, 15.47e9),
    "vgg-19-bn": (143_678_248, 19.63e9),
    "resnet-18": (11_689_512, 1.81e9),
    "resnet-34": (21_797_672, 3.66e9),
    "resnet-50": (25_557_032, 4.09e9),
    "densenet-121": (7_978_856, 2.83e9),
    "mobilenet-v2": (3_504_872, 0.30e9),
    # DeiT-S: 22.05 M parameters (timm), 4.6 G (Touvron et al. 2021, Table 5)
    "vit-small": (22_050_664, 4.6e9),
    # Li et al. 2017, Table 1: parameters and FLOP, which are multiply-accumulates
    "resnet-56": (0.853e6, 1.25e8),
    "resnet-110": (1.72e6, 2.53e8),
    # Liu et al. 2017 (Network Slimming), Table 1: parameters, and FLOPs, which are twice the multiply-accumulates
    "vgg-19-bn-cifar": (20.04e6, 7.97e8 / 2),
    "preresnet-164": (1.70e6, 4.99e8 / 2),
    "densenet-40": (1.02e6, 5.33e8 / 2),
    # Huang et al. 2017, Table 2
    "densenet-bc-100": (0.8e6, None),
    # He et al. 2016 (pre-activation), Table 2
    "preresnet-110": (1.7e6, None),
}


def on_meta(name, **arguments):
    with torch.device("meta"):
        return MODELS[name](**arguments)


def example(name):
    return torch.zeros(1, *MODELS[name].input_shape, device="meta")


@pytest.mark.parametrize("name", PUBLISHED)
def test_counts_are_those_published(name):
    parameters, macs = PUBLISHED[name]
    model = on_meta(name)
    count = sum(p.numel() for p in model.parameters())
    assert (
        count == parameters if isinstance(parameters, int) else count == pytest.approx(parameters, rel=0.04)
    )
    assert f"{count:,} parameters" in MODELS[name].description
    if macs is not None:
        assert prunus.count_macs(model, example(name)) == pytest.approx(macs, rel=0.008)


@pytest.mark.parametrize("name", [name for name in MODELS if not name.startswith("lenet")])
def test_description_states_the_count_and_half_the_width_has_about_a_quarter(name):
    model, narrow = on_meta(name), on_meta(name, width=0.5)
    counts = [sum(p.numel() for p in net.parameters()) for net in (model, narrow)]
    assert f"{counts[0]:,} parameters" in MODELS[name].description
    assert 0.2 < counts[1] / counts[0] < (0.6 if name == "mobilenet-v2" else 0.37)
    assert narrow(example(name)).shape == model(example(name)).shape


@pytest.mark.parametrize("name", ["resnet-20", "preresnet-56", "resnet-18", "densenet-40"])
def test_stages_of_one_channel_fit_each_other(name):
    assert on_meta(name, width=1e-3)(example(name)).shape == on_meta(name)(example(name)).shape


@pytest.mark.parametrize(
    ("name", "weights"), [("conv-2", 4_300_992), ("conv-4", 2_425_024), ("conv-6", 2_261_184)]
)
def test_conv_networks_have_the_published_number_of_weights(name, weights):
    assert sum(p.numel() for p in on_meta(name).parameters() if p.dim() > 1) == weights
    assert f"{weights:,} weights" in MODELS[name].description


def normed(name, suffixes=("weight", "bias", "running_mean", "running_var", "num_batches_tracked")):
    return {f"{name}.{suffix}" for suffix in suffixes}


def resnet_names(blocks, convolutions):
    names = {"conv1.weight", "fc.weight", "fc.bias"} | normed("bn1")
    for stage, number in enumerate(blocks, start=1):
        for block, i in itertools.product(range(number), range(1, convolutions + 1)):
            names |= {f"layer{stage}.{block}.conv{i}.weight"} | normed(f"layer{stage}.{block}.bn{i}")
        if stage > 1 or convolutions == 3:
            names |= {f"layer{stage}.0.downsample.0.weight"} | normed(f"layer{stage}.0.downsample.1")
    return names


def densenet_names():
    names = {"features.conv0.weight", "classifier.weight", "classifier.bias"}
    names |= normed("features.norm0") | normed("features.norm5")
    for block, layers in enumerate((6, 12, 24, 16), start=1):
        for layer, i in itertools.product(range(1, layers + 1), (1, 2)):
            path = f"features.denseblock{block}.denselayer{layer}"
            names |= {f"{path}.conv{i}.weight"} | normed(f"{path}.norm{i}")
        if block < 4:
            path = f"features.transition{block}"
            names |= {f"{path}.conv.weight"} | normed(f"{path}.norm")
    return names


def mobilenet_names():
    names = {"classifier.1.weight", "classifier.1.bias", "features.1.conv.1.weight"} | normed(
        "features.1.conv.2"
    )
    pairs = ["features.0", "features.18", "features.1.conv.0"]
    pairs += [f"features.{block}.conv.{i}" for block in range(2, 18) for i in (0, 1)]
    for pair in pairs:
        names |= {f"{pair}.0.weight"} | normed(f"{pair}.1")
    for block in range(2, 18):
        names |= {f"features.{block}.conv.2.weight"} | normed(f"features.{block}.conv.3")
    return names


def vgg_names(convolutions, norms):
    linear = {f"classifier.{i}.{kind}" for i in (0, 3, 6) for kind in ("weight", "bias")}
    names = {f"features.{i}.{kind}" for i in convolutions for kind in ("weight", "bias")}
    return linear | names | {name for i in norms for name in normed(f"features.{i}")}


VGG_16_BN = (0, 3, 7, 10, 14, 17, 20, 24, 27, 30, 34, 37, 40)
TORCHVISION = {
    "resnet-18": resnet_names((2, 2, 2, 2), 2),
    "resnet-34": resnet_names((3, 4, 6, 3), 2),
    "resnet-50": resnet_names((3, 4, 6, 3), 3),
    "densenet-121": densenet_names(),
    "mobilenet-v2": mobilenet_names(),
    "vgg-16": vgg_names((0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28), ()),
    "vgg-16-bn": vgg_names(VGG_16_BN, [i + 1 for i in VGG_16_BN]),
}
"""The names of the parameters and buffers in the weights that torchvision publishes."""


@pytest.mark.parametrize("name", TORCHVISION)
def test_names_of_parameters_are_those_of_torchvision(name):
    assert set(on_meta(name).state_dict()) == TORCHVISION[name]


def test_width_is_stored_in_a_file_and_rebuilt(tmp_path):
    model = MODELS["densenet-40"](width=0.25, seed=1)
    prunus.save(model, tmp_path / "m")
    loaded = prunus.load(tmp_path / "m")
    assert all(torch.equal(t, loaded.state_dict()[name]) for name, t in model.state_dict().items())


@pytest.mark.parametrize("width", [0, -1, float("nan"), 1e9])
def test_width_out_of_range_is_refused(width):
    with pytest.raises(ModelError, match="width above 0"):
        on_meta("resnet-20", width=width)


def test_what_cannot_be_counted_is_refused():
    with pytest.raises(ModelError, match="recurrent"):
        prunus.count_macs(torch.nn.LSTM(2, 2), torch.zeros(1, 1, 2))
    with pytest.raises(ModelError, match="inputs that ResNet takes"):
        prunus.count_macs(MODELS["resnet-20"](), torch.zeros(1, 4))
    with pytest.raises(ModelError, match=r"Expected a torch\.nn\.Module"):
        prunus.count_macs("resnet-20", torch.zeros(1, 4))
