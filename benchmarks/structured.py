"""Half of the channels of each group removed, compared with Torch-Pruning: CPU seconds of each part."""

import time
from collections.abc import Callable
from importlib.metadata import version

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.timing import Timed, table
from prunus.pruning.structured.budgets import channels_to_keep
from prunus.pruning.structured.graph import trace_model
from prunus.pruning.structured.groups import group_labels
from prunus.pruning.structured.plan import SlimPlan
from prunus.pruning.structured.sizes import resolve_sizes
from prunus.pruning.structured.walk import label_graph

IMAGES = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))


def conv(inputs: int, outputs: int, size: int = 1, stride: int = 1, groups: int = 1) -> nn.Sequential:
    layer = nn.Conv2d(inputs, outputs, size, stride, size // 2, groups=groups, bias=False)
    return nn.Sequential(layer, nn.BatchNorm2d(outputs))


class Bottleneck(nn.Module):
    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.a, self.b, self.c = conv(inputs, width), conv(width, width, 3, stride), conv(width, 4 * width)
        self.shortcut = (
            conv(inputs, 4 * width, 1, stride) if stride > 1 or inputs != 4 * width else nn.Identity()
        )

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.c(F.relu(self.b(F.relu(self.a(x))))) + self.shortcut(x))


class Inverted(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int, expand: int) -> None:
        super().__init__()
        wide = inputs * expand
        first = [conv(inputs, wide), nn.ReLU6()] if expand > 1 else []
        self.layers = nn.Sequential(
            *first, conv(wide, wide, 3, stride, wide), nn.ReLU6(), conv(wide, outputs)
        )
        self.is_residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x) if self.is_residual else self.layers(x)


class DenseBlock(nn.Module):
    def __init__(self, inputs: int, layers: int, growth: int = 32) -> None:
        super().__init__()
        sizes = [inputs + i * growth for i in range(layers)]
        self.norms = nn.ModuleList(nn.BatchNorm2d(size) for size in sizes)
        self.wide = nn.ModuleList(conv(size, 4 * growth) for size in sizes)
        self.narrow = nn.ModuleList(nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False) for _ in sizes)

    def forward(self, x: Tensor) -> Tensor:
        for norm, wide, narrow in zip(self.norms, self.wide, self.narrow, strict=True):
            x = torch.cat([x, narrow(F.relu(wide(F.relu(norm(x)))))], 1)
        return x


class Attention(nn.Module):
    def __init__(self, size: int, heads: int) -> None:
        super().__init__()
        self.num_heads, self.head_dim = heads, size // heads
        self.norm, self.qkv, self.out = nn.LayerNorm(size), nn.Linear(size, 3 * size), nn.Linear(size, size)
        self.mlp = nn.Sequential(
            nn.LayerNorm(size), nn.Linear(size, 4 * size), nn.GELU(), nn.Linear(4 * size, size)
        )

    def forward(self, x: Tensor) -> Tensor:
        b, t, _ = x.shape
        qkv = self.qkv(self.norm(x)).reshape(b, t, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(*qkv.unbind(0)).transpose(1, 2).reshape(b, t, -1)
        x = x + self.out(y)
        return x + self.mlp(x)


class Classifier(nn.Module):
    """A stem and blocks, the mean over positions, and a linear head."""

    def __init__(self, body: nn.Module, features: int, positions: tuple[int, ...] = (2, 3)) -> None:
        super().__init__()
        self.body, self.head, self.positions = body, nn.Linear(features, 1000), positions

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(x)
        return self.head(x.mean(self.positions) if self.positions else x)


def resnet50() -> nn.Module:
    blocks: list[nn.Module] = [conv(3, 64, 7, 2), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    inputs = 64
    for width, count, stride in ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2)):
        for i in range(count):
            blocks.append(Bottleneck(inputs, width, stride if i == 0 else 1))
            inputs = 4 * width
    return Classifier(nn.Sequential(*blocks), 2048)


def vgg16() -> nn.Module:
    layers: list[nn.Module] = []
    inputs = 3
    for count, width in ((2, 64), (2, 128), (3, 256), (3, 512), (3, 512)):
        for _ in range(count):
            layers += [conv(inputs, width, 3), nn.ReLU()]
            inputs = width
        layers.append(nn.MaxPool2d(2))
    hidden = [
        nn.Linear(25088, 4096),
        nn.ReLU(),
        nn.Linear(4096, 4096),
        nn.ReLU(),
    ]
    return Classifier(nn.Sequential(*layers, nn.Flatten(), *hidden), 4096, ())


def densenet121() -> nn.Module:
    blocks: list[nn.Module] = [conv(3, 64, 7, 2), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    size = 64
    for i, layers in enumerate((6, 12, 24, 16)):
        blocks.append(DenseBlock(size, layers))
        size += 32 * layers
        blocks += [nn.BatchNorm2d(size), nn.ReLU()]
        if i < 3:
            blocks += [nn.Conv2d(size, size // 2, 1, bias=False), nn.AvgPool2d(2)]
            size //= 2
    return Classifier(nn.Sequential(*blocks), size)


def mobilenet_v2() -> nn.Module:
    blocks: list[nn.Module] = [conv(3, 32, 3, 2), nn.ReLU6()]
    inputs = 32
    stages = (
        (1, 16, 1, 1),
        (6, 24, 2, 2),
        (6, 32, 3, 2),
        (6, 64, 4, 2),
        (6, 96, 3, 1),
        (6, 160, 3, 2),
        (6, 320, 1, 1),
    )
    for expand, width, count, stride in stages:
        for i in range(count):
            blocks.append(Inverted(inputs, width, stride if i == 0 else 1, expand))
            inputs = width
    return Classifier(nn.Sequential(*blocks, conv(320, 1280), nn.ReLU6()), 1280)


class Patches(nn.Module):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.project, self.positions = nn.Conv2d(3, size, 16, 16), nn.Parameter(torch.randn(1, 196, size))

    def forward(self, x: Tensor) -> Tensor:
        return self.project(x).flatten(2).transpose(1, 2) + self.positions


def vit_small() -> nn.Module:
    blocks = [Attention(384, 6) for _ in range(12)]
    return Classifier(nn.Sequential(Patches(384), *blocks, nn.LayerNorm(384)), 384, (1,))


NETWORKS = {
    "ResNet-50": resnet50,
    "VGG-16-BN": vgg16,
    "DenseNet-121": densenet121,
    "MobileNetV2": mobilenet_v2,
    "ViT-S": vit_small,
}


class Run:
    """Both libraries on one network; what is not compared (the export, proofs by running) is timed apart."""

    def __init__(self, make: Callable[[], nn.Module]) -> None:
        self.make = make
        self.parameters: dict[str, int] = {}

    def prepare(self) -> None:
        self.model = self.make().eval()

    def trace(self) -> None:
        start = time.process_time()
        self.graph = trace_model(self.model, IMAGES)
        self.export_seconds = time.process_time() - start

    def ours(self) -> None:
        analysis = group_labels(label_graph(self.graph, self.model), self.model)
        start = time.process_time()
        analysis = resolve_sizes(analysis, self.model)
        self.proof_seconds = time.process_time() - start
        weights = {name: parameter.detach().square() for name, parameter in self.model.named_parameters()}
        removed = {}
        for group in analysis.groups:
            count = group.channels - channels_to_keep(group.channels, 0.5)
            removed[group.name] = group.reduce(weights).argsort(stable=True)[:count].tolist()
        SlimPlan(self.model, analysis, removed, verify=False).apply()
        self.parameters["prunus"] = sum(p.numel() for p in self.model.parameters())

    def theirs(self) -> None:
        import torch_pruning

        heads = {m.qkv: m.num_heads for m in self.model.modules() if isinstance(m, Attention)}
        torch_pruning.pruner.MagnitudePruner(
            self.model,
            IMAGES,
            importance=torch_pruning.importance.GroupMagnitudeImportance(p=2),
            pruning_ratio=0.5,
            ignored_layers=[self.model.head],
            num_heads=heads,
            prune_head_dims=False,
            prune_num_heads=bool(heads),
            head_pruning_ratio=0.5,
        ).step()
        self.parameters["Torch-Pruning"] = sum(p.numel() for p in self.model.parameters())


def run() -> str:
    rows: list[list[object]] = []
    for name, make in NETWORKS.items():
        current = Run(make)
        seconds: dict[str, list[float]] = {"prunus": [], "Torch-Pruning": []}
        exports, proofs = [], []
        for _ in range(4):
            for library, function in (("prunus", current.ours), ("Torch-Pruning", current.theirs)):
                current.prepare()
                if library == "prunus":
                    current.trace()
                start = time.process_time()
                function()
                spent = time.process_time() - start
                seconds[library].append(spent - (current.proof_seconds if library == "prunus" else 0))
            exports.append(current.export_seconds)
            proofs.append(current.proof_seconds)
        timed = Timed({key: values[1:] for key, values in seconds.items()})
        rows.append(
            [
                name,
                f"{timed.median('prunus'):.2f}",
                f"{timed.median('Torch-Pruning'):.2f}",
                timed.ratio("prunus", "Torch-Pruning"),
                f"{min(exports):.2f}",
                f"{min(proofs):.2f}",
                " / ".join(f"{count / 1e6:.2f}" for count in current.parameters.values()),
            ]
        )
    header = [
        "half of the channels, 224², one thread, n = 3",
        "prunus, CPU s",
        f"Torch-Pruning {version('torch-pruning')}, CPU s",
        "ratio (quartiles)",
        "export, CPU s",
        "proof of sizes, CPU s",
        "parameters left, millions",
    ]
    return table(header, rows)
