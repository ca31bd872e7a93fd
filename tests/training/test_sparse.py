"""The sparse backend computes what PyTorch computes, with the kept weights only."""

import copy
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import prunus
from prunus.errors import DivergenceError, SpecError
from prunus.masks import Masks
from prunus.models import MODELS
from prunus.runs.directory import RunDirectory
from prunus.tickets.baseline import BaselineSpec, run_baseline
from prunus.training import Recipe, evaluate, train
from prunus.training.optimizers import OPTIMIZERS
from prunus.training.sparse import backend as sparse_backend
from prunus.training.sparse.backend import choose_backend, choose_evaluation_backend, choose_training_backend
from prunus.training.sparse.elementwise import dropout
from prunus.training.sparse.places import connect_layers
from prunus.training.sparse.tables import list_parameters, make_arrays
from prunus.training.sparse.trace import trace_layers
from prunus.training.sparse.vectors import zeros
from prunus.training.state import TrainingState
from prunus.types import IGNORE_INDEX, Dataset, Split


@pytest.fixture(autouse=True)
def short_trainings_may_be_sparse(monkeypatch):
    monkeypatch.setattr(sparse_backend, "TRAINING_MACS", 0)


class Branches(nn.Module):
    """Two convolutions without an activation, and a linear layer; functional operations."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(2, 4, 3, padding=1)
        self.conv2 = nn.Conv2d(4, 6, 3, stride=2, dilation=2, padding="valid")
        self.fc = nn.Linear(6, 10)

    def forward(self, x):
        x = F.max_pool2d(torch.relu(self.conv1(x)), 3, 1)
        return self.fc(torch.flatten(self.conv2(x), 1))


def mlp():
    return nn.Sequential(
        nn.Flatten(), nn.Linear(128, 30), nn.ReLU(), nn.Linear(30, 20), nn.Tanh(), nn.Linear(20, 16), nn.Sigmoid(),
        nn.Linear(16, 10),
    )  # fmt: skip


def conv():
    return nn.Sequential(
        nn.Conv2d(2, 6, 3, padding="same"), nn.ReLU(), nn.Conv2d(6, 8, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 8, (3, 1), padding=(1, 0), groups=2),
        nn.Tanh(), nn.Flatten(), nn.Linear(32, 12, bias=False), nn.BatchNorm1d(12), nn.ReLU(), nn.Linear(12, 10),
    )  # fmt: skip


NETWORKS = {"mlp": mlp, "conv": conv, "functional": Branches}


def masked(make, density=0.4, seed=0):
    """A network and masks of its weights; the first layer keeps no weight of its second output."""
    torch.manual_seed(seed)
    model = make()
    masks = {n: torch.rand_like(p) < density for n, p in model.named_parameters() if p.dim() > 1}
    next(iter(masks.values()))[1] = False
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in masks:
                parameter.mul_(masks[name])
    return model, masks


@pytest.mark.parametrize("num_examples", [3, 64, 130])
@pytest.mark.parametrize("name", NETWORKS)
def test_gradients_equal_those_of_float64_autograd(name, num_examples):
    model, masks = masked(NETWORKS[name])
    inputs, labels = torch.randn(num_examples, 2, 8, 8), torch.randint(0, 10, (num_examples,))
    labels[1] = IGNORE_INDEX
    reference = copy.deepcopy(model).double()
    loss = F.cross_entropy(reference(inputs.double()), labels)
    loss.backward()
    _, network = choose_backend("sparse", model, masks, inputs)
    recipe = Recipe(1, 0.0, num_examples, optimizer="sgd", momentum=0.9)  # the momentum is the gradient
    optimizer = OPTIMIZERS["sgd"](list(model.parameters()), recipe)
    key = np.zeros(1, np.uint64)
    total, n = network.train(recipe, inputs, labels, torch.arange(num_examples), np.zeros(1), key)
    network.store(optimizer)
    assert total / n == pytest.approx(loss.item(), rel=1e-6)
    for (parameter_name, parameter), expected in zip(
        model.named_parameters(), reference.parameters(), strict=True
    ):
        gradient = optimizer.state[parameter]["momentum_buffer"].double()
        if parameter_name in masks:
            assert not gradient[~masks[parameter_name]].any()
            expected.grad.mul_(masks[parameter_name])
        assert (gradient - expected.grad).norm() <= 1e-5 * expected.grad.norm()
    for buffer, expected in zip(model.buffers(), reference.buffers(), strict=True):
        assert torch.allclose(buffer.double(), expected.double(), atol=1e-6)


@pytest.fixture(scope="module")
def digits():
    data = prunus.load_data("digits").take(300, 100)
    labels = data.train.labels.clone()
    labels[:65] = IGNORE_INDEX
    return Dataset("digits", Split(data.train.inputs, labels), data.validation, data.test, data.class_names)


def small_network():
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(128, 20), nn.ReLU(),
        nn.Linear(20, 10),
    )  # fmt: skip


RECIPES = [
    Recipe(2, 0.1, 40, optimizer="sgd"),
    Recipe(2, 0.05, 40, optimizer="sgd", momentum=0.9, weight_decay=1e-2, lr_schedule="cosine"),
    Recipe(2, 0.05, 40, optimizer="nesterov", momentum=0.8, penalty="l1", penalty_strength=1e-3),
    Recipe(2, 0.01, 40, optimizer="adam", weight_decay=1e-2, lr_schedule="linear", augmentation="shift"),
    Recipe(2, 0.01, 40, optimizer="adamw", weight_decay=0.1, penalty="l2", penalty_strength=1e-2),
    Recipe(2, 0.01, 100, lr_schedule="steps", augmentation="flip_crop", patience=1),
]


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: f"{recipe.optimizer}-{recipe.lr_schedule}")
def test_training_follows_that_of_pytorch(digits, recipe):
    results = {}
    for backend in ("dense", "sparse"):
        model, masks = masked(small_network)
        epochs = train(model, digits, recipe, masks=masks, seed=3, backend=backend)
        assert Masks(model, masks).verify() == 0
        assert epochs[0].backend == backend
        results[backend] = torch.cat([p.detach().flatten() for p in model.parameters()]), epochs
    assert torch.allclose(results["dense"][0], results["sparse"][0], atol=2e-4)
    for dense, sparse in zip(*(results[backend][1] for backend in ("dense", "sparse")), strict=True):
        assert sparse.training_loss == pytest.approx(dense.training_loss, rel=1e-4)
        assert sparse.validation_loss == pytest.approx(dense.validation_loss, rel=1e-3)


def with_dropout():
    return nn.Sequential(
        nn.Flatten(), nn.Dropout(0.2), nn.Linear(64, 40), nn.BatchNorm1d(40), nn.Tanh(), nn.Dropout(0.5),
        nn.Linear(40, 10),
    )  # fmt: skip


class Looking:
    """An observer that checks the masks and keeps the states."""

    def __init__(self, every, masks):
        self.every, self.masks, self.states = every, masks, {}

    def is_due(self, step):
        return step % self.every == 0

    def observe(self, view):
        assert Masks(view.model, self.masks).verify() == 0
        self.states[view.done] = view.capture()

    def state_dict(self):
        return {}, None

    def load_state_dict(self, tensors, values):
        pass


def test_same_seed_gives_same_bits_whenever_it_is_observed_killed_and_resumed(digits, tmp_path):
    recipe, path = Recipe(3, 0.01, 40), tmp_path / "checkpoint"

    def run(observer=None, report=None, checkpoint=None, start=None):
        model, masks = masked(with_dropout)
        options = {"checkpoint": checkpoint, "start": start}
        train(
            model,
            digits,
            recipe,
            masks=masks,
            seed=5,
            observer=observer,
            report=report,
            backend="sparse",
            **options,
        )
        return model.state_dict()

    def kill(epoch):
        if epoch.epoch == 2:
            raise KeyboardInterrupt

    looking = Looking(3, masked(with_dropout)[1])
    complete, observed = run(), run(looking)
    with pytest.raises(KeyboardInterrupt):
        run(report=kill, checkpoint=path)
    resumed, continued = run(checkpoint=path), run(start=looking.states[9])
    for other in (observed, resumed, continued):
        assert all(torch.equal(complete[name], other[name]) for name in complete)
    assert set(looking.states[9].optimizer) >= {"2.weight/exp_avg", "2.weight/exp_avg_sq", "2.weight/step"}
    model, masks = masked(with_dropout)
    with pytest.raises(prunus.errors.CheckpointError, match="its backend is sparse, this run's dense"):
        train(model, digits, recipe, masks=masks, seed=5, checkpoint=path, backend="dense")


def test_training_continues_with_the_state_of_a_dense_one(digits):
    """Adam's moments of a dense training are those that the sparse backend starts from."""
    recipe = Recipe(2, 0.01, 40)
    model, masks = masked(small_network)
    looking = Looking(7, masks)
    train(model, digits, recipe, masks=masks, observer=looking, backend="dense")
    expected = model.state_dict()
    other, _ = masked(small_network, seed=1)
    train(other, digits, recipe, masks=masks, start=looking.states[7], backend="sparse")
    for name, tensor in other.state_dict().items():
        assert torch.allclose(tensor, expected[name], atol=1e-4)


def test_infinite_loss_is_found_as_by_pytorch(digits):
    for backend in ("dense", "sparse"):
        model, masks = masked(small_network)
        recipe = Recipe(3, 1e30, 40, optimizer="sgd")
        with pytest.raises(DivergenceError, match="lower learning rate"):
            train(model, digits, recipe, masks=masks, backend=backend)


def test_dead_neurons_are_not_computed(digits):
    """A neuron without outgoing weights, and a channel that only such neurons read, leave the computation."""
    model, masks = masked(small_network, density=0.9)
    masks["6.weight"][:, 3] = False  # neuron 3 of the hidden layer
    masks["4.weight"][:, 16 * 2 : 16 * 3] = False
    masks["4.weight"][3] = True  # it reads channel 2, which no other neuron does
    connections = connect_layers(trace_layers(model), masks, (1, 8, 8))
    assert [c.target.live.tolist().count(False) for c in connections] == [1, 1, 1, 1, 1, 0]
    hidden = connections[3].target
    assert not hidden.live[3]
    assert not connections[0].target.live[2]
    results = []
    for backend in ("dense", "sparse"):
        model, _ = masked(small_network, density=0.9)
        recipe = Recipe(2, 0.01, 40, weight_decay=0.1)
        train(model, digits, recipe, masks=masks, backend=backend)
        results.append(model.state_dict())
    for name, tensor in results[0].items():  # the weights of dead neurons decay in both
        assert torch.allclose(tensor, results[1][name], atol=1e-4)


def test_layer_without_weights_trains_its_biases(digits):
    model, masks = masked(small_network)
    masks["4.weight"][:] = False
    before = model[6].bias.detach().clone()
    epochs = train(model, digits, Recipe(1, 0.01, 40), masks=masks, backend="sparse")
    assert np.isfinite(epochs[0].training_loss)
    assert not torch.equal(before, model[6].bias)
    assert not model[4].weight.any()


def test_memory_order_of_weights_and_inputs_does_not_matter(digits):
    train_split = Split(digits.train.inputs.transpose(2, 3).contiguous().transpose(2, 3), digits.train.labels)
    data = Dataset("d", train_split, digits.validation, digits.test, digits.class_names)
    states = []
    for order, split in ((torch.contiguous_format, digits), (torch.channels_last, data)):
        model, masks = masked(conv_first)
        model = model.to(memory_format=order)
        train(model, split, Recipe(1, 0.01, 40), masks=masks, backend="sparse")
        states.append(model.state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def conv_first():
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 5, 3), nn.ReLU(), nn.Flatten(), nn.Linear(80, 10)
    )


@pytest.mark.parametrize("probability", [0.1, 0.5, 1.0])
def test_dropout_drops_the_fraction_and_keeps_the_mean(probability):
    model = nn.Sequential(nn.Flatten(), nn.Dropout(probability), nn.Linear(256, 10))
    connections = connect_layers(trace_layers(model), {}, (256,))
    net = make_arrays(connections, list_parameters(model, {}))
    size = net.block_size
    outputs = []
    for key, is_backward in ((1, False), (2, False), (1, True)):
        net = net._replace(values=zeros(size), value_gradients=zeros(size))
        (net.value_gradients if is_backward else net.values)[:] = 1
        dropout(net, net.ops[0], probability, np.uint64(key), 0, is_backward)
        source = net.value_gradients if is_backward else net.values
        outputs.append(source.reshape(-1, 64)[:256] if is_backward else source.reshape(-1, 64)[256:512])
    fraction_kept = (outputs[0] != 0).mean()
    assert abs(fraction_kept - (1 - probability)) <= 4 * np.sqrt(
        probability * (1 - probability) / outputs[0].size
    )
    assert np.array_equal(outputs[0], outputs[2])
    if probability < 1:
        assert outputs[0].max() == pytest.approx(1 / (1 - probability))
        both = ((outputs[0] != 0) & (outputs[1] != 0)).mean()
        assert both == pytest.approx((1 - probability) ** 2, abs=0.02)


def test_evaluation_equals_that_of_pytorch(digits):
    for make in (small_network, with_dropout):
        model, _ = masked(make)
        dense = evaluate(model, digits.train, backend="dense")
        calls = []
        sparse = evaluate(
            model, digits.train, backend="sparse", progress=lambda *call, calls=calls: calls.append(call)
        )
        assert (sparse.accuracy, sparse.n) == (dense.accuracy, dense.n)
        assert sparse.loss == pytest.approx(dense.loss, rel=1e-6)
        assert calls == [("evaluation", 300, 300)]


def test_evaluation_of_labels_without_a_logit_is_refused_as_by_pytorch(digits):
    model, _ = masked(conv_first)
    model[5] = nn.Linear(80, 7)
    for backend in ("dense", "sparse"):
        with pytest.raises(prunus.errors.ModelError, match="C at least 10"):
            evaluate(model, digits.train, backend=backend)


class Noisy(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(64, 10)

    def forward(self, x):
        return self.fc(x.flatten(1)) * (2 if self.training else 1)


def tied():
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.Linear(64, 10))
    model[3].weight = model[1].weight
    return model


def frozen():
    model = small_network()
    model[0].bias.requires_grad_(False)
    return model


def hooked():
    model = small_network()
    model[1].register_forward_hook(lambda *_: None)
    return model


REASONS = {
    "GELU": (
        lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 10), nn.GELU(), nn.Linear(10, 10)),
        {},
        "is a GELU",
    ),
    "modes": (Noisy, {}, "in training mode differs from that in evaluation mode"),
    "tied": (tied, {}, "uses a parameter twice"),
    "frozen": (frozen, {}, "'0.bias' is not trained"),
    "hooks": (hooked, {}, "'1' has hooks"),
    "dtype": (lambda: small_network().double(), {}, "is torch.float64 on cpu"),
    "empty": (
        lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 0), nn.ReLU(), nn.Linear(0, 10)),
        {},
        "the layer '1' has no outputs",
    ),
    "optimizer": (small_network, {"optimizer": "rmsprop"}, "no optimizer 'rmsprop'"),
    "residual": (lambda: MODELS["resnet-20"](), {}, "forward pass cannot be traced|scale|uses"),
}


def test_benchmark_of_the_cost_times_an_epoch_of_each_backend(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2]))
    from benchmarks import density_cost

    monkeypatch.setattr(density_cost, "ROUNDS", 1)
    monkeypatch.setitem(density_cost.STEPS, "lenet-300-100", 1)
    dense, sparse, choice = density_cost.time_steps("lenet-300-100", 0.05)
    assert (len(dense), len(sparse), choice) == (1, 1, "sparse")


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
@pytest.mark.parametrize("name", REASONS)
def test_reason_for_the_dense_backend_is_given(name):
    make, changes, reason = REASONS[name]
    model = make()
    weights = {n: p for n, p in model.named_parameters() if p.dim() > 1}
    masks = {n: torch.rand(p.shape) < 0.05 for n, p in weights.items()}
    shape = (3, 32, 32) if name == "residual" else (1, 8, 8)
    recipe = Recipe(1, 0.01, 40).replace(**changes)
    split = Split(torch.randn(4, *shape), torch.zeros(4, dtype=torch.int64))
    choice = (model, Masks(model, masks), recipe, split)
    backend, network = choose_training_backend("auto", *choice)
    assert (backend.name, network) == ("dense", None)
    assert re.search(reason, backend.reason)
    with pytest.raises(SpecError, match=reason):
        choose_training_backend("sparse", *choice)


def test_short_training_is_dense(digits, monkeypatch):
    """The sparse backend takes longer to start."""
    monkeypatch.undo()
    model, masks = masked(small_network)
    choice = (model, Masks(model, masks), Recipe(1, 0.01, 40), digits.train)
    backend, _ = choose_training_backend("auto", *choice)
    assert str(backend) == "dense (the network or the number of examples is small)"
    assert choose_training_backend("sparse", *choice)[0].name == "sparse"
    longer = (*choice[:2], Recipe(100_000, 0.01, 40), digits.train)
    assert choose_training_backend("auto", *longer)[0].name == "sparse"


def test_choice_depends_on_density_masks_and_values(digits):
    model, recipe, split = small_network(), Recipe(1, 0.01, 40), digits.train
    weights = {n: p.detach() for n, p in model.named_parameters() if p.dim() > 1}
    for density, name in ((0.9, "dense"), (0.05, "sparse")):
        masks = Masks(model, {n: torch.rand(w.shape) < density for n, w in weights.items()})
        assert choose_training_backend("auto", model, masks, recipe, split)[0].name == name
        assert choose_training_backend("sparse", model, masks, recipe, split)[0].name == "sparse"
        assert str(choose_training_backend("dense", model, masks, recipe, split)[0]) == "dense"
    frozen_values = Masks(model, dict(masks), weights)
    backend, _ = choose_training_backend("auto", model, frozen_values, recipe, split)
    assert backend.reason == "pruned weights are frozen at values other than zero"
    assert "no weight is masked" in str(choose_evaluation_backend("auto", model, split.inputs)[0])
    with pytest.raises(SpecError, match="one of auto, dense, sparse, got 'fast'"):
        train(model, digits, recipe, backend="fast")


def test_network_that_is_not_its_layers_in_order_is_computed_by_pytorch(digits):
    """The logits of both backends are compared before the sparse one is used."""
    model, masks = masked(small_network)
    model[1].forward = lambda x: x  # fx does not look into modules of torch
    backend, _ = choose_training_backend(
        "auto", model, Masks(model, masks), Recipe(1, 0.01, 40), digits.train
    )
    assert backend.reason == "its logits are not those of its layers in their order"


def test_masks_may_belong_to_a_part_of_the_model(digits):
    part = nn.Sequential(nn.Linear(64, 20), nn.ReLU())
    model = nn.Sequential(nn.Flatten(), part, nn.Linear(20, 10))
    masks = Masks(part, {"0.weight": torch.rand(20, 64) < 0.1})
    epochs = train(model, digits, Recipe(1, 0.01, 40), masks=masks)
    assert epochs[0].backend == "sparse"
    assert masks.verify() == 0


def test_rounds_of_tickets_and_of_retraining_say_what_trained_them():
    data = prunus.load_data("digits").take(120, 40)
    recipe = Recipe(2, 0.01, 40)
    result = prunus.lottery(fully_connected, data, rounds=6, recipe=recipe)
    rows = [level for level in result.levels if level.verified]
    assert len(rows) == 7
    model = fully_connected()
    rounds = prunus.prune_and_retrain(
        model,
        data,
        [0.8, 0.1],
        [recipe] * 2,
        criterion="magnitude",
        scope="layer",
    )
    names = [round_.epochs[-1].backend for round_ in rounds]
    assert names[0].startswith("dense (the cost")
    assert names[1] == "sparse"


def test_row_of_a_run_says_what_trained_it_unless_its_spec_says_dense(tmp_path):
    data, rows = prunus.load_data("digits").take(120, 40), []
    for backend in ("dense", "auto", "sparse"):
        spec = BaselineSpec(fully_connected, data, Recipe(1, 0.01, 40), eval_every=2, backend=backend)
        (tmp_path / backend).mkdir()
        rows.append(run_baseline(spec, RunDirectory(tmp_path / backend), {}))
    assert [row.get("backend") for row in rows] == [None, "dense (no weight is masked)", "sparse"]
    with pytest.raises(SpecError, match="one of auto, dense, sparse, got 'fast'"):
        BaselineSpec(fully_connected, data, Recipe(1, 0.01, 40), backend="fast").total_steps()


def test_command_line_takes_a_backend(run_cli, tmp_path):
    printed = run_cli(
        *("run", "zhou2019.criteria", "--smoke", "--backend", "fast", "--store", tmp_path / "store"),
        *("--out", tmp_path / "out", "--executor", "inline"),
        code=2,
    )
    assert "one of auto, dense, sparse, got 'fast'" in " ".join(printed.err.split())


def fully_connected():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))


def test_state_without_optimizer_starts_at_step_zero(digits):
    model, masks = masked(small_network)
    state = TrainingState(0, {name: t.clone() for name, t in model.state_dict().items()})
    train(model, digits, Recipe(1, 0.01, 40), masks=masks, start=state, backend="sparse")
    assert Masks(model, masks).verify() == 0
