"""The sweep of `benchmarks.open_lth` with a checkout of open_lth: the arguments are its folder and the last level."""

import sys
import time
from importlib import import_module
from types import SimpleNamespace

import numpy as np
import torch
import torchvision

from prunus.data import load_data

checkout, last_level, steps = sys.argv[1], int(sys.argv[2]), sys.argv[3]
sys.path.insert(0, checkout)
torch.set_num_threads(1)


def mnist(train: bool, **ignored: object) -> SimpleNamespace:
    """MNIST as torchvision returns it, from the data root of prunus."""
    data = load_data("mnist")
    splits = [data.train, data.validation] if train else [data.test]
    pixels = torch.cat([split.inputs[:, 0] for split in splits]) * 0.3081 + 0.1307
    labels = torch.cat([split.labels for split in splits])
    return SimpleNamespace(data=(pixels * 255).round().to(torch.uint8), targets=labels)


load = torch.load
torch.load = lambda *args, **options: load(*args, **{"weights_only": False, **options})
vars(np)["product"] = np.prod
torchvision.datasets.MNIST = mnist

import_module("cli.runner_registry")  # the first one, because of circular imports in open_lth
LotteryRunner = import_module("lottery.runner").LotteryRunner
import_module("platforms.platform")._PLATFORM = import_module("platforms.local").Platform()
settings = import_module("models.mnist_lenet").Model.default_hparams()
settings.dataset_hparams.batch_size = 60
settings.training_hparams.optimizer_name, settings.training_hparams.lr = "adam", 1.2e-3
settings.training_hparams.training_steps = f"{steps}it"


class Runner(LotteryRunner):
    """Prints the CPU seconds of this process at the end of each level."""

    def _train_level(self, level: int) -> None:
        super()._train_level(level)
        print("level", level, time.process_time(), flush=True)


Runner(1, last_level, settings, verbose=False, evaluate_every_epoch=False).run()
