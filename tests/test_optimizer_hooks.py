"""Masks and shared weights hold in the training loops that people write."""

import copy
import os
import socket

import pytest
import torch
from safetensors.torch import load, save
from torch import nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import prunus
from prunus.errors import ModelError

INPUTS = torch.randn(40, 8, generator=torch.Generator().manual_seed(0))
LABELS = torch.randint(0, 3, (40,), generator=torch.Generator().manual_seed(1))


def network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 3))


def adam(model):
    return torch.optim.Adam(model.parameters(), lr=0.01, weight_decay=0.01)


def masked(model):
    return prunus.prune(model, 0.3).masks


def quantized(model):
    return prunus.quantize(model, masked(model), bits=2)


each_constraint = pytest.mark.parametrize("constrain", [masked, quantized])


def loss_of(model, part=slice(None)):
    return F.cross_entropy(model(INPUTS[part]), LABELS[part])


@each_constraint
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_mixed_precision_with_a_gradient_scaler(constrain, dtype):
    """A step that the scaler leaves out, because a gradient overflowed, changes nothing."""
    model = network()
    optimizer = adam(model)
    constraint = constrain(model).attach(optimizer)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    for number in range(4):
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype):
            loss = loss_of(model)
        scaler.scale(loss * (torch.inf if number == 2 else 1)).backward()
        scaler.unscale_(optimizer)
        norm = nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        before = copy.deepcopy(model[0].weight.detach())
        scaler.step(optimizer)
        scaler.update()
        assert constraint.verify() == 0
        assert torch.equal(model[0].weight, before) == (number == 2) == (not norm.isfinite())


@each_constraint
def test_accumulated_gradients_and_a_learning_rate_scheduler(constrain):
    """Bit for bit as a step on the whole batch with the mean gradient; the scheduler wraps `optimizer.step`."""
    complete, parts = network().eval(), network().eval()
    for model in (complete, parts):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.25, momentum=0.9)
        constraint = constrain(model).attach(optimizer)
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 3)
        for _ in range(3):
            optimizer.zero_grad()
            if model is complete:
                loss_of(model).backward()
            else:
                for start in range(0, 40, 10):
                    (loss_of(model, slice(start, start + 10)) / 4).backward()
            optimizer.step()
            scheduler.step()
            assert constraint.verify() == 0
    for a, b in zip(complete.parameters(), parts.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-6)


@each_constraint
def test_an_average_of_the_weights(constrain):
    """Zeros stay zero in an average that is made after pruning; one that is made before takes the masks."""
    early_model = network()
    early = AveragedModel(early_model, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    masks = masked(early_model)
    early.update_parameters(early_model)  # copies, the first time
    assert masks.bind(early.module).verify() == 0
    model = network()
    optimizer = adam(model)
    constraint = constrain(model)
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    constraint.attach(optimizer)
    for _ in range(3):
        optimizer.zero_grad()
        loss_of(model).backward()
        optimizer.step()
        average.update_parameters(model)
    zeros = {n: p == 0 for n, p in model.named_parameters() if p.dim() == 2}
    assert sum(int(zero.sum()) for zero in zeros.values()) == 124
    for name, zero in zeros.items():
        assert torch.equal(average.module.get_parameter(name) == 0, zero)
        if constrain is quantized:  # the weights of a cluster are equal in every term
            assert len(average.module.get_parameter(name).unique()) == 5
    loss_of(average).backward()  # the copy has no hooks
    assert average.module[0].weight.grad[zeros["0.weight"]].any()


@each_constraint
def test_a_training_continues_from_the_users_own_checkpoint(constrain):
    def train(model, optimizer, steps):
        for _ in range(steps):
            optimizer.zero_grad()
            loss_of(model).backward()
            optimizer.step()

    model = network()
    optimizer = adam(model)
    constraint = constrain(model).attach(optimizer)
    train(model, optimizer, 2)
    saved = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    stored = save(constraint.state_dict())
    train(model, optimizer, 2)

    resumed = network(1)
    optimizer = adam(resumed)
    resumed.load_state_dict(saved[0])
    again = type(constraint).from_state_dict(resumed, load(stored)).attach(optimizer)
    optimizer.load_state_dict(saved[1])
    train(resumed, optimizer, 2)
    assert again.verify() == 0
    for name, tensor in model.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], tensor), name


def _train_distributed(rank: int, port: int, path: str) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.distributed.init_process_group("gloo", rank=rank, world_size=2)
    results = {}
    for constrain in (masked, quantized):
        model = network().eval()
        constraint = constrain(model)
        parallel = DistributedDataParallel(model, gradient_as_bucket_view=constrain is masked)
        optimizer = adam(parallel)
        constraint.attach(optimizer)
        for _ in range(3):
            optimizer.zero_grad()
            with parallel.no_sync():
                loss_of(parallel, slice(rank, None, 4)).backward()
            loss_of(parallel, slice(rank + 2, None, 4)).backward()
            nn.utils.clip_grad_norm_(parallel.parameters(), 1.0)
            optimizer.step()
        assert constraint.verify() == 0
        results[constrain.__name__] = [p.detach() for p in model.parameters()]
    torch.save(results, f"{path}/{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_train_the_same_weights_as_one(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(_train_distributed, (port, str(tmp_path)), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    for constrain in (masked, quantized):
        model = network().eval()
        optimizer = adam(model)
        constrain(model).attach(optimizer)
        for _ in range(3):
            optimizer.zero_grad()
            (2 * loss_of(model)).backward()  # the two batches of a process are added
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
        name = constrain.__name__
        for p, a, b in zip(model.parameters(), first[name], second[name], strict=True):
            assert torch.equal(a, b)
            assert torch.allclose(p, a, atol=1e-5)


@each_constraint
def test_an_optimizer_or_model_that_does_not_fit_changes_nothing(constrain):
    model = network()
    constraint = constrain(model)
    other = adam(network())
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ModelError, match="got one that steps none of its 2 masked or quantized parameters"):
        constraint.attach(other)
    model[0] = nn.Linear(9, 16)
    model[3].weight.data.fill_(1.0)
    optimizer = adam(model)
    with pytest.raises(ModelError, match="shape"):
        constraint.attach(optimizer)
    assert torch.equal(model[3].weight, torch.ones(3, 16))
    model[0] = nn.Identity()
    with pytest.raises(
        ModelError, match=r"'0\.weight', but the model has no parameter of that name any more"
    ):
        constraint.attach(optimizer)
    assert not optimizer._optimizer_step_pre_hooks
    assert not optimizer._optimizer_step_post_hooks
    assert torch.equal(before["3.bias"], model[3].bias)
    with pytest.raises(ModelError, match=r"Expected a torch\.optim\.Optimizer, got a list"):
        constrain(network()).attach([])


def test_masks_of_another_model_are_refused():
    masks = prunus.prune(nn.Linear(8, 3), 0.5).masks
    for other, message in (
        (nn.Linear(8, 4), r"mask of 'weight' has shape \(3, 8\)"),
        (network(), "no parameter of that name"),
    ):
        with pytest.raises(ModelError, match=message):
            masks.bind(other)


@pytest.mark.parametrize("change", ["assigned", "changed in place"])
def test_a_gradient_that_is_set_by_hand_is_masked_before_the_step(change):
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    masks = masked(model).attach(optimizer)
    loss_of(model).backward()
    weight, mask = model[0].weight, masks["0.weight"]
    if change == "assigned":
        weight.grad = torch.ones(16, 8)
    else:
        weight.grad.add_(1.0)
    optimizer.step()
    assert not weight.grad[~mask].any()
    assert not optimizer.state[weight]["momentum_buffer"][~mask].any()
