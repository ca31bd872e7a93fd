"""The Lightning callback, with the real Trainer."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import prunus
from prunus.errors import DensityError, ModelError, NoEffectWarning, OutputError
from prunus.masks import are_nested

lightning = pytest.importorskip("lightning.pytorch")

from prunus.integrations.lightning import LightningPruning  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")


class Digits(lightning.LightningModule):
    def __init__(self, num_optimizers: int = 1) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(64, 24), nn.ReLU(), nn.Linear(24, 10))
        self.num_optimizers = num_optimizers
        self.automatic_optimization = num_optimizers == 1
        self.zeros: list[int] = []

    def training_step(self, batch, index):
        self.zeros.append(int((self.net[1].weight == 0).sum()))
        inputs, labels = batch
        return F.cross_entropy(self.net(inputs), labels)

    def configure_optimizers(self):
        made = [torch.optim.AdamW(self.parameters(), lr=0.01) for _ in range(self.num_optimizers)]
        return made[0] if self.num_optimizers == 1 else made


@pytest.fixture(scope="module")
def loader(digits):
    return DataLoader(TensorDataset(digits.train.inputs[:240], digits.train.labels[:240]), batch_size=20)


def trainer(folder, *callbacks, **settings):
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    return lightning.Trainer(
        accelerator="cpu", default_root_dir=folder, callbacks=list(callbacks),
        **{"max_epochs": 2, "enable_checkpointing": False, "gradient_clip_val": 1.0, **quiet, **settings},
    )  # fmt: skip


def test_a_module_is_pruned_by_the_schedule_and_written(loader, tmp_path):
    module, path = Digits(), tmp_path / "digits.prunus"
    callback = LightningPruning(0.2, rounds=3, every=4, begin=2, path=path)
    trainer(tmp_path, callback).fit(module, loader)
    num_kept = [round(d * 1536) for d in callback.pruning.densities]
    expected = [0] * 6 + [1536 - num_kept[0]] * 4 + [1536 - num_kept[1]] * 4 + [1536 - num_kept[2]] * 10
    assert module.zeros == expected  # before each of 24 steps
    assert callback.pruning.masks.verify() == 0
    loaded = prunus.load(path, into=Digits())
    assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), module.parameters(), strict=True))
    assert path.stat().st_size < 4 * 1776 * 0.4


def test_accumulated_batches_are_one_step(loader, tmp_path):
    module = Digits()
    callback = LightningPruning(0.5, rounds=1, every=3)
    trainer(tmp_path, callback, accumulate_grad_batches=4, max_epochs=1).fit(module, loader)
    assert callback.pruning.num_steps == 3
    assert callback.pruning.density == 0.5


def test_steps_of_earlier_trainings_are_not_those_of_the_schedule(loader, tmp_path):
    dense = trainer(tmp_path, max_epochs=1)
    dense.fit(Digits(), loader)
    dense.save_checkpoint(tmp_path / "dense.ckpt")
    callback = LightningPruning(0.2, rounds=2, every=4)
    resumed, again = Digits(), Digits()
    later = trainer(tmp_path, callback, max_epochs=2)
    later.fit(resumed, loader, ckpt_path=tmp_path / "dense.ckpt")
    later.fit_loop.max_epochs = 3
    later.fit(again, loader)
    for module in (resumed, again):  # before each of 12 steps
        assert [zeros > 0 for zeros in module.zeros] == [False] * 4 + [True] * 8
        assert module.zeros[4] < module.zeros[-1]


def test_a_checkpoint_of_lightning_continues_the_pruning(loader, tmp_path):
    def callbacks():
        return LightningPruning(0.2, rounds=3, every=5, criterion="random", seed=3)

    complete, resumed = Digits(), Digits()
    expected, again = callbacks(), callbacks()
    trainer(tmp_path, expected).fit(complete, loader)
    first = trainer(tmp_path, callbacks(), max_epochs=1)
    first.fit(Digits(), loader)
    first.save_checkpoint(tmp_path / "epoch.ckpt")
    trainer(tmp_path, again).fit(resumed, loader, ckpt_path=tmp_path / "epoch.ckpt", weights_only=False)
    for name, mask in expected.pruning.masks.items():
        assert torch.equal(again.pruning.masks[name], mask)
    assert all(torch.equal(a, b) for a, b in zip(complete.parameters(), resumed.parameters(), strict=True))
    module = Digits()
    trainer(tmp_path, again, max_epochs=1).fit(module, loader)  # a new training with the same callback
    assert module.zeros[:5] == [0] * 5


def test_masks_of_a_checkpoint_are_restored_and_not_selected_again(loader, tmp_path):
    generator = torch.Generator().manual_seed(0)

    def other_at_each_call(statistics):
        return {name: torch.rand(w.shape, generator=generator) for name, w in statistics.weights.items()}

    first, again = (LightningPruning(0.2, rounds=3, every=5, criterion=other_at_each_call) for _ in range(2))
    run = trainer(tmp_path, first, max_epochs=1)
    run.fit(Digits(), loader)
    run.save_checkpoint(tmp_path / "epoch.ckpt")
    trainer(tmp_path, again).fit(Digits(), loader, ckpt_path=tmp_path / "epoch.ckpt", weights_only=False)
    assert are_nested(again.pruning.masks, first.pruning.masks)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_training_that_fails_leaves_no_masks_on_the_module(error, loader, tmp_path):
    module = Digits()

    class Failure(lightning.Callback):
        def on_train_batch_end(self, trainer, *arguments):
            if trainer.global_step == 8:
                raise error

    with pytest.raises((RuntimeError, SystemExit)):
        trainer(tmp_path, LightningPruning(0.2, rounds=1, every=4), Failure()).fit(module, loader)
    assert (module.net[1].weight == 0).float().mean() == pytest.approx(0.8, abs=1e-3)
    trainer(tmp_path, max_epochs=1).fit(module, loader)
    assert (module.net[1].weight == 0).float().mean() < 0.5  # those of pixels that are never set stay zero


def test_settings_that_do_not_fit(loader, tmp_path):
    with pytest.raises(DensityError, match=r"1\.5"):
        trainer(tmp_path, LightningPruning(1.5, rounds=1, every=1)).fit(Digits(), loader)
    with pytest.raises(ModelError, match="one optimizer, got 2"):
        trainer(tmp_path, LightningPruning(0.5, rounds=1, every=1), gradient_clip_val=None).fit(
            Digits(2), loader
        )
    with pytest.raises(OutputError):
        LightningPruning(0.5, rounds=1, every=1, path=tmp_path)
    with pytest.warns(NoEffectWarning, match=r"ended after 12 steps, before the last round.*density is 1\."):
        trainer(tmp_path, LightningPruning(0.5, rounds=1, every=100), max_epochs=1).fit(Digits(), loader)
