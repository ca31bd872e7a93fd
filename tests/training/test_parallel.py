"""Training on two processes (gloo): the weights of one process up to rounding, the same masks, exact resume."""

import os
import signal

import pytest
import torch
from torch import nn

import prunus
from prunus.errors import SpecError
from prunus.training.gradients import Gradients
from prunus.training.parallel import check_fabric
from prunus.training.trainer import Trainer

lightning = pytest.importorskip("lightning")

RECIPE = prunus.Recipe(2, 0.05, 32, "sgd", momentum=0.9, weight_decay=1e-3)
TRAININGS = {
    "sgd": {},
    "adam": {"optimizer": "adamw", "learning_rate": 1e-3, "penalty": "l1", "penalty_strength": 1e-4},
    "micro_batches": {"micro_batch_size": 5, "label_smoothing": 0.1},
}


def make_model(*, noisy: bool = False) -> nn.Module:
    torch.manual_seed(0)
    noise = [nn.BatchNorm1d(24), nn.Dropout(0.2)] if noisy else []
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 24), *noise, nn.ReLU(), nn.Linear(24, 10))


def make_data(digits):
    """157 examples: the last batch of 29 leaves 15 for one process and 14 for the other."""
    return digits.take(157, 40)


def launch(function, *arguments):
    """Call function(fabric, ...) in two processes."""
    fabric = lightning.Fabric(accelerator="cpu", devices=2, strategy="ddp_fork")
    fabric.launch(function, *arguments)


def train_all(fabric, data, folder):
    rank = 0 if fabric is None else fabric.global_rank
    for name, changes in TRAININGS.items():
        model = make_model()
        pruned = prunus.prune(model, 0.3)
        history = prunus.train(model, data, RECIPE.replace(**changes), masks=pruned.masks, fabric=fabric)
        result = {
            "losses": torch.tensor([[e.training_loss, e.validation_loss] for e in history]),
            **model.state_dict(),
        }
        assert pruned.masks.verify() == 0
        torch.save((result, dict(pruned.masks)), folder / f"{name}-{rank}.pt")


def test_two_processes_train_as_one(digits, tmp_path):
    """All processes have the same bits and masks; the weights are those of one process up to rounding."""
    data, alone = make_data(digits), tmp_path / "alone"
    alone.mkdir()
    train_all(None, data, alone)
    launch(train_all, data, tmp_path)
    for name in TRAININGS:
        paths = alone / f"{name}-0.pt", tmp_path / f"{name}-0.pt", tmp_path / f"{name}-1.pt"
        (expected, masks), *ranks = map(torch.load, paths)
        for key, tensor in expected.items():
            assert torch.equal(ranks[0][0][key], ranks[1][0][key])
            assert torch.allclose(tensor, ranks[0][0][key], rtol=1e-4, atol=1e-5)
        for key, mask in masks.items():
            assert torch.equal(mask, ranks[0][1][key])
            assert torch.equal(mask, ranks[1][1][key])


def prune_in_rounds(fabric, data, folder):
    def fit(model, masks):
        prunus.train(model, data, RECIPE, masks=masks, fabric=fabric)

    model = make_model()
    rounds = prunus.prune_and_retrain(model, data, [0.5, 0.2], fit=fit)
    ticket = prunus.lottery(make_model, data, rounds=1, fit=fit)
    results = model.state_dict(), dict(rounds[-1].masks), ticket.weights(1), dict(ticket.masks(1))
    torch.save(results, folder / f"{'alone' if fabric is None else fabric.global_rank}.pt")


def test_rounds_and_tickets_are_trained_by_two_processes_through_fit(digits, tmp_path):
    data = make_data(digits)
    prune_in_rounds(None, data, tmp_path)
    launch(prune_in_rounds, data, tmp_path)
    alone, *ranks = (torch.load(tmp_path / f"{name}.pt") for name in ("alone", 0, 1))
    for expected, *parts in zip(alone, *ranks, strict=True):
        for key, tensor in expected.items():
            assert torch.equal(parts[0][key], parts[1][key])
            assert torch.allclose(tensor.float(), parts[0][key].float(), rtol=1e-4, atol=1e-5)


def train_until(fabric, data, checkpoint, killed_rank):
    def kill(metrics):
        if metrics.epoch == 2 and fabric.global_rank == killed_rank:
            os.kill(os.getpid(), signal.SIGKILL)

    model = make_model(noisy=True)
    masks = prunus.prune(model, 0.3).masks
    recipe = RECIPE.replace(epochs=3)
    prunus.train(model, data, recipe, masks=masks, fabric=fabric, checkpoint=checkpoint, report=kill)
    torch.save(model.state_dict(), checkpoint.with_name(f"{checkpoint.name}-{fabric.global_rank}.pt"))


def test_killed_and_started_again_ends_with_the_same_bits(digits, tmp_path):
    """A process is killed after the second epoch; the dropout of each process and running statistics continue."""
    data = make_data(digits)
    launch(train_until, data, tmp_path / "whole", None)
    with pytest.raises(torch.multiprocessing.ProcessExitedException, match="SIGKILL"):
        launch(train_until, data, tmp_path / "killed", 1)
    assert (tmp_path / "killed").exists()
    launch(train_until, data, tmp_path / "killed", None)
    results = [torch.load(tmp_path / f"{name}-{rank}.pt") for name in ("whole", "killed") for rank in (0, 1)]
    for key, tensor in results[0].items():
        assert all(torch.equal(tensor, other[key]) for other in results[1:]), key


def compute_and_refuse(fabric, data, folder):
    """Gradients where one process has no label and a parameter is not used; then arguments that differ."""
    model = make_model()
    model.unused = nn.Parameter(torch.ones(3))
    inputs, labels = data.train.inputs[:20], data.train.labels[:20].clone()
    labels[:10] = -100
    Gradients(model, RECIPE, fabric=fabric).compute(inputs, labels)
    gradients = {name: p.grad for name, p in model.named_parameters()}
    rank = fabric.global_rank
    own_part = inputs.tensor_split(2)[rank]  # as of images that are read from files
    Gradients(model, RECIPE, fabric=fabric).compute(own_part, labels)
    assert all(
        p.grad is gradients[n] is None or torch.equal(p.grad, gradients[n])
        for n, p in model.named_parameters()
    )
    texts = []
    masks = dict(prunus.prune(make_model(), 0.3, criterion="random", seed=rank).masks)
    for options in ({"masks": masks}, {"seed": rank}):
        with pytest.raises(SpecError) as caught:
            prunus.train(make_model(), data, RECIPE, fabric=fabric, **options)
        texts.append(str(caught.value))
    with pytest.raises(SpecError) as caught:
        prunus.train(make_model(), data, RECIPE.replace(batch_size=156), fabric=fabric)
    torch.save((gradients, [*texts, str(caught.value)]), folder / f"{rank}.pt")


def test_share_without_labels_and_arguments_that_differ(digits, tmp_path):
    data = make_data(digits)
    launch(compute_and_refuse, data, tmp_path)
    model = make_model()
    Gradients(model, RECIPE).compute(data.train.inputs[10:20], data.train.labels[10:20])
    for rank in (0, 1):
        gradients, (masks, seed, size) = torch.load(tmp_path / f"{rank}.pt")
        assert gradients.pop("unused") is None
        for name, gradient in gradients.items():
            assert torch.allclose(gradient, model.get_parameter(name).grad, atol=1e-7)
        assert "the same training in all 2 processes, got a different constraint in some" in masks
        assert "got a different seed in some" in seed
        assert "which leave a batch of 1; choose another batch_size" in size


def test_several_processes_are_dense(mlp, small_data):
    class TwoProcesses(Trainer):
        processes = 2

    masks = prunus.prune(mlp, 0.1).masks
    run = TwoProcesses(mlp, RECIPE, masks)
    run.choose_backend("auto", small_data.train)
    assert run.network is None
    assert str(run.backend) == "dense (several processes share each batch)"
    with pytest.raises(
        SpecError, match="but several processes share each batch; choose the backend auto or dense"
    ):
        run.choose_backend("sparse", small_data.train)
    alone = Trainer(mlp, RECIPE, masks)
    alone.choose_backend("sparse", small_data.train)
    assert alone.backend.name == "sparse"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"devices": 2, "strategy": "ddp_fork"}, "2 processes are started, got one before fabric.launch"),
        ({"devices": 1, "precision": "bf16-mixed"}, "a Fabric without a precision, got 'bf16-mixed'"),
    ],
)
def test_fabric_that_cannot_train_is_refused(settings, message, mlp, small_data):
    with pytest.raises(SpecError, match=message):
        prunus.train(mlp, small_data, RECIPE, fabric=lightning.Fabric(accelerator="cpu", **settings))
    with pytest.raises(SpecError, match=r"to be a lightning\.Fabric, got a int"):
        prunus.train(mlp, small_data, RECIPE, fabric=2)
    with pytest.raises(SpecError, match="the model and the data on cpu"):
        check_fabric(lightning.Fabric(accelerator="cpu", devices=1), torch.device("meta"))
