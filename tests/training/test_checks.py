"""Data and models that a function cannot work on are refused in one sentence, before any work."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import prune

import prunus
from prunus.errors import (
    DataError,
    DensityError,
    DivergenceError,
    ModelError,
    ModelMismatchError,
    NonFiniteError,
    SpecError,
)
from prunus.masks import Masks
from prunus.pruning.recalibrate import recalibrate_batchnorm
from prunus.pruning.statistics import collect
from prunus.training import Recipe, evaluate, train
from prunus.training.checks import check_trainable
from prunus.training.constraint import NoConstraint
from prunus.types import IGNORE_INDEX, Dataset, Split

RECIPE = Recipe(epochs=1, learning_rate=0.01, batch_size=20)
COMPRESSION = prunus.COMPRESSION_RECIPES["default"].replace(
    density=0.5, bits=2, rounds=1, retrain=RECIPE, final_retrain=RECIPE, finetune=RECIPE
)
INPUTS = torch.randn(60, 8, generator=torch.Generator().manual_seed(0))
LABELS = INPUTS[:, :3].argmax(1)


def dataset(inputs=INPUTS, labels=LABELS, class_names=("a", "b", "c")):
    split = Split(inputs, labels)
    return Dataset("three", split, split, split, class_names)


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3))


def prune_and_retrain(model, data, report=None):
    arguments = {"criterion": prunus.CRITERIA["magnitude"], "scope": prunus.SCOPES["layer"], "report": report}
    return prunus.prune_and_retrain(model, data, [0.5], [RECIPE], **arguments)


TRAINS = {
    "train": lambda model, data, report=None: train(model, data, RECIPE, report=report),
    "prune_and_retrain": prune_and_retrain,
    "compress": lambda model, data, report=None: prunus.compress(
        model,
        data=data,
        preset=COMPRESSION,
        report=None if report is None else lambda stage, epoch: report(epoch),
    ),
}
EVALUATES = {
    "evaluate": lambda model, data: evaluate(model, data.test),
    "sensitivity": lambda model, data: prunus.sensitivity(model, data.test, densities=(1.0, 0.5)),
}
CALLS = {**TRAINS, **EVALUATES}


def with_entry(tensor, value):
    changed = tensor.clone()
    changed.view(-1)[-1] = value
    return changed


BAD_DATA = {
    "regression targets": (INPUTS, INPUTS[:, :1], r"class indices .* got torch.float32 \[60, 1\]"),
    "soft labels": (INPUTS, INPUTS[:, :3].softmax(1), r"class indices .* got torch.float32 \[60, 3\]"),
    "int32 labels": (INPUTS, LABELS.int(), r"got torch.int32 \[60\]; use labels.long\(\)"),
    "a negative label": (INPUTS, with_entry(LABELS, -1), r"got -1\.\.2"),
    "a label of no class": (INPUTS, with_entry(LABELS, 3), r"at least 4|0\.\.2, .* got 0\.\.3"),
    "no label": (INPUTS, torch.full_like(LABELS, IGNORE_INDEX), "all 60 are -100"),
    "a column of labels": (INPUTS, LABELS[:, None], r"labels \[\d+, 1\]"),
    "too few inputs": (INPUTS[1:], LABELS, r"inputs \[59, 8\] with labels \[60\]"),
    "no example": (INPUTS[:0], LABELS[:0], "at least one example"),
    "NaN": (with_entry(INPUTS, math.nan), LABELS, "1 of 480 entries are NaN"),
    "infinity": (with_entry(INPUTS, math.inf), LABELS, "1 of 480 entries are NaN or infinite"),
    "complex inputs": (INPUTS.to(torch.complex64), LABELS, "real numbers, got torch.complex64"),
    "arrays": (INPUTS.numpy(), LABELS.numpy(), "two tensors, got ndarray"),
    "sparse inputs": (INPUTS.to_sparse(), LABELS, "inputs of .* got a torch.sparse_coo tensor"),
    "sparse labels": (INPUTS, LABELS.to_sparse(), "labels of .* got a torch.sparse_coo tensor"),
    "no values": (INPUTS.to("meta"), LABELS.to("meta"), "got a meta tensor"),
    "tokens for a linear layer": (INPUTS.long(), LABELS, "failed on a batch .* of torch.int64"),
    "another width": (INPUTS[:, 1:], LABELS, r"failed on a batch \[\d+, 7\]"),
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("kind", BAD_DATA)
def test_bad_data_are_refused_and_the_model_stays_as_it_was(kind, call):
    inputs, labels, message = BAD_DATA[kind]
    model = network()
    with pytest.raises((DataError, ModelError), match=message):
        CALLS[call](model, dataset(inputs, labels))
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), network().parameters(), strict=True))


BAD_RECIPES = [
    ({"epochs": -1}, "epochs to be an integer of at least 0, got -1"),
    ({"epochs": 1.5}, "epochs to be an integer of at least 0, got 1.5"),
    ({"batch_size": 0}, "batch_size to be an integer of at least 1, got 0"),
    ({"batch_size": 2.5}, "batch_size to be an integer of at least 1, got 2.5"),
    ({"patience": -1}, "patience to be an integer of at least 1, got -1"),
    ({"learning_rate": -0.1}, "learning_rate to be a finite number of at least 0, got -0.1"),
    ({"learning_rate": math.nan}, "learning_rate to be a finite number of at least 0, got nan"),
    ({"learning_rate": "0.1"}, "learning_rate to be a finite number of at least 0, got '0.1'"),
    ({"weight_decay": -1.0}, "weight_decay to be a finite number of at least 0, got -1.0"),
    ({"optimizer": "sgd", "momentum": 1.0}, "to be at least 0 and below 1, got 1.0"),
    ({"optimizer": "nesterov"}, "to be above 0 and below 1, got 0.0"),
]


def test_a_number_of_epochs_is_not_a_recipe():
    with pytest.raises(SpecError, match=r"Expected a prunus\.Recipe, got 5"):
        train(network(), dataset(), 5)


@pytest.mark.parametrize(("changes", "message"), BAD_RECIPES)
def test_numbers_of_a_recipe_that_are_out_of_range_are_refused(changes, message):
    recipe, model = RECIPE.replace(**changes), network()
    magnitude = {"criterion": prunus.CRITERIA["magnitude"], "scope": prunus.SCOPES["layer"]}
    calls = [
        lambda: train(model, dataset(), recipe),
        lambda: prunus.prune_and_retrain(model, dataset(), [0.5], [recipe], **magnitude),
        lambda: prunus.compress(model, data=dataset(), preset=COMPRESSION.replace(finetune=recipe)),
    ]
    for call in calls:
        with pytest.raises(SpecError, match=message):
            call()


@pytest.mark.parametrize(
    ("changes", "message"), [({"density": "a"}, "got 'a'"), ({"rounds": 1.5}, "an integer")]
)
def test_densities_and_rounds_that_are_no_numbers_of_their_kind_are_refused(changes, message):
    with pytest.raises(DensityError, match=message):
        prunus.compress(network(), data=dataset(), preset=COMPRESSION.replace(**changes))


@pytest.mark.parametrize("network", [nn.Linear, lambda x: x], ids=["class", "function"])
def test_what_is_no_module_is_refused(network, tmp_path):
    split = dataset().train
    calls = [
        lambda: prunus.save(network, tmp_path / "x.prunus"),
        lambda: recalibrate_batchnorm(network, split.inputs),
        lambda: collect(network, {}, {"gradients"}, split),
    ]
    for call in calls:
        with pytest.raises(ModelError, match=r"Expected a torch\.nn\.Module"):
            call()


def test_sparse_buffer_trains_but_is_refused_where_it_would_have_to_be_written(tmp_path):
    model = network()
    model.register_buffer("graph", torch.eye(3).to_sparse())
    assert len(train(model, dataset(), RECIPE)) == 1
    with pytest.raises(ModelError, match=r"'graph' is a torch\.sparse_coo tensor"):
        train(model, dataset(), RECIPE, checkpoint=tmp_path / "run")


def test_file_is_not_loaded_into_a_module_that_cannot_hold_it(tmp_path):
    file, tied = tmp_path / "x.prunus", nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    tied[1].weight = tied[0].weight
    prunus.save(nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3)), file)
    before = tied[0].weight.detach().clone()
    with pytest.raises(ModelMismatchError, match=r"different values for 0\.weight and 1\.weight"):
        prunus.load(file, into=tied)
    assert torch.equal(tied[0].weight, before)
    lazy = nn.Sequential(nn.LazyLinear(3), nn.Linear(3, 3))
    for module, message in ((lazy, "is lazy"), (copy.deepcopy(tied).to("meta"), "meta device")):
        with pytest.raises(ModelError, match=message):
            prunus.load(file, into=module)
    prunus.save(tied, file)
    again = copy.deepcopy(tied)
    again[0].weight.data.zero_()
    assert torch.equal(prunus.load(file, into=again)[1].weight, before)


@pytest.mark.parametrize("call", TRAINS)
def test_a_data_set_of_unlike_splits_is_refused(call):
    good = dataset()
    odd = Split(INPUTS[:, 1:], LABELS)
    with pytest.raises(DataError, match=r"one shape .* got \[7\] .* and \[8\]"):
        TRAINS[call](network(), Dataset("odd", good.train, odd, good.test, good.class_names))


class Returning(nn.Module):
    """Returns something else than its logits, always or while training."""

    def __init__(self, change, always=True):
        super().__init__()
        self.linear, self.change, self.always = nn.Linear(8, 3), change, always

    def forward(self, x):
        logits = self.linear(x)
        return self.change(logits) if self.always or self.training else logits


class Remembering(nn.Linear):
    """Has a state that is no tensor."""

    def get_extra_state(self):
        return {"calls": 0}

    def set_extra_state(self, state):
        pass


def holding(value):
    model = network()
    model[2].bias.data[0] = value
    return model


BAD_MODELS = {
    "a function": (lambda: F.relu, "Expected a torch.nn.Module, got a function"),
    "lazy": (lambda: nn.Sequential(nn.LazyLinear(6), nn.Linear(6, 3)), "'0.weight'.* lazy"),
    "on the meta device": (lambda: network().to("meta"), "'0.weight'.* on the meta device"),
    "complex": (
        lambda: nn.Sequential(nn.Linear(8, 3, dtype=torch.complex64)),
        "complex64|ComplexFloat",
    ),
    "returning a tuple": (lambda: Returning(lambda y: (y, y)), "got a tuple; (wrap it|pass forward)"),
    "returning a dict": (lambda: Returning(lambda y: {"scores": y}), "got a dict; (wrap it|pass forward)"),
    "returning [B]": (lambda: Returning(lambda y: y[:, 0]), r"got \[\d+\]"),
    "returning maps": (lambda: Returning(lambda y: y[..., None, None]), r"got \[\d+, 3, 1, 1\]"),
    "returning one row": (lambda: Returning(lambda y: y.mean(0, keepdim=True)), r"got \[1, 3\]"),
    "returning classes": (lambda: Returning(lambda y: y.long()), "floating-point logits"),
    "of too few classes": (lambda: nn.Sequential(nn.Linear(8, 2)), r"C at least 3, .* got \[\d+, 2\]"),
}
UNTRAINABLE = {
    "frozen": (lambda: network().requires_grad_(False), "none has requires_grad = True"),
    "holding NaN": (lambda: holding(math.nan), "'2.bias'"),
    "holding infinity": (lambda: holding(math.inf), "'2.bias'"),
    "an auxiliary output": (lambda: Returning(lambda y: (y, y), always=False), "got a tuple; pass forward"),
    "detached": (lambda: Returning(lambda y: y.detach()), "no gradient reaches them"),
    "failing in training": (lambda: Returning(lambda y: y @ y, always=False), "failed on a batch"),
}


@pytest.mark.parametrize(
    ("kind", "call"),
    [
        *((kind, call) for kind in BAD_MODELS for call in CALLS),
        *((k, c) for k in UNTRAINABLE for c in TRAINS),
    ],
)
def test_bad_models_are_refused_before_any_epoch(kind, call):
    make, message = {**BAD_MODELS, **UNTRAINABLE}[kind]
    arguments = [make(), dataset()]
    epochs = []
    if call in TRAINS:
        arguments.append(epochs.append)
    with pytest.raises((ModelError, NonFiniteError), match=message):
        CALLS[call](*arguments)
    assert not epochs


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("input_dtype", [None, torch.float32])
def test_other_float_types_train_and_keep_their_type(dtype, input_dtype):
    model, data = network().to(dtype), dataset(INPUTS.to(input_dtype or dtype))
    before = model[0].weight.clone()
    assert math.isfinite(train(model, data, RECIPE)[0].validation_loss)
    assert model[0].weight.dtype == dtype
    assert not torch.equal(before, model[0].weight)


def test_extra_state_trains_but_is_refused_where_it_would_have_to_be_stored(tmp_path):
    model = nn.Sequential(Remembering(8, 3))
    train(model, dataset(), RECIPE)
    for call in (
        lambda: train(model, dataset(), RECIPE.replace(patience=1)),
        lambda: train(model, dataset(), RECIPE, checkpoint=tmp_path / "run"),
    ):
        with pytest.raises(ModelError, match=r"'0\._extra_state' is the extra state"):
            call()


@pytest.mark.parametrize(("n", "size"), [(41, 20), (41, 1), (1, 20)])
def test_a_batch_of_one_example_is_refused_where_a_norm_cannot_take_it(n, size):
    small_data, recipe = Split(INPUTS[:n], LABELS[:n]), RECIPE.replace(batch_size=size)
    data = Dataset("few", small_data, small_data, small_data, ("a", "b", "c"))
    norm = nn.Sequential(nn.Linear(8, 6), nn.BatchNorm1d(6), nn.Linear(6, 3))
    with pytest.raises(
        ModelError, match=f"{n} examples in batches of batch_size = {size} leave a batch of one"
    ):
        train(norm, data, recipe)
    train(network(), data, recipe)
    norm[1].eval()
    train(norm, data, recipe)


@pytest.mark.parametrize("modes", [[True, True, True, True], [True, False, False, True]])
def test_the_check_changes_neither_statistics_nor_modes_nor_random_streams(modes):
    def make():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(8, 6), nn.BatchNorm1d(6), nn.Dropout(), nn.Linear(6, 3))

    model, expected, random = make(), make().state_dict(), torch.get_rng_state()
    for module, mode in zip(model, modes, strict=True):
        module.train(mode)
    check_trainable(model, dataset(), RECIPE)
    assert torch.equal(random, torch.get_rng_state())
    assert all(torch.equal(tensor, expected[name]) for name, tensor in model.state_dict().items())
    assert [module.training for module in model] == modes


def test_buffers_that_cannot_be_written_in_place_are_no_obstacle():
    model = network()
    model.register_buffer("positions", torch.arange(4).expand(3, 4))
    check_trainable(model, dataset(), RECIPE)


def test_ignored_examples_count_in_no_number_and_change_no_weight():
    labels = torch.where(torch.arange(60) % 3 == 0, IGNORE_INDEX, LABELS)
    is_labeled = labels != IGNORE_INDEX
    model = network()
    evaluation, expected = (
        evaluate(model, Split(INPUTS, labels)),
        evaluate(model, Split(INPUTS[is_labeled], labels[is_labeled])),
    )
    assert (evaluation.n, evaluation.accuracy) == (40, expected.accuracy)
    assert evaluation.loss == pytest.approx(expected.loss)
    unbroken = RECIPE.replace(batch_size=60, optimizer="sgd")
    without, ignored = network(), network()
    epochs = (
        train(without, dataset(INPUTS[is_labeled], labels[is_labeled]), unbroken),
        train(ignored, dataset(INPUTS, labels), unbroken),
    )
    assert epochs[0][0].training_loss == pytest.approx(epochs[1][0].training_loss)
    assert torch.allclose(without[0].weight, ignored[0].weight, atol=1e-7)


def test_the_training_loss_is_the_mean_over_the_labeled_examples_of_all_batches():
    labels = torch.full_like(LABELS, IGNORE_INDEX)
    labels[:7] = LABELS[:7]
    model = network()
    expected = float(F.cross_entropy(model(INPUTS[:7]), LABELS[:7]).detach())
    recipe = RECIPE.replace(batch_size=5, optimizer="sgd", learning_rate=1e-12)
    (epoch,) = train(model, dataset(INPUTS, labels), recipe)  # most batches have no label at all
    assert epoch.training_loss == pytest.approx(expected, rel=1e-5)


def test_gradients_of_pruned_weights_are_zero_at_the_step():
    """The norm of all gradients is that of the masked function, as torch.nn.utils.prune computes it."""
    ours, theirs = network(), network()
    masks = {f"{place}.weight": ours[place].weight.abs() > 0.2 for place in (0, 2)}
    for place in (0, 2):
        prune.custom_from_mask(theirs[place], "weight", masks[f"{place}.weight"])
    norms = []
    for model in (ours, theirs):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
        if model is ours:
            Masks(ours, masks).attach(optimizer)
        for _ in range(10):
            optimizer.zero_grad()
            F.cross_entropy(model(INPUTS), LABELS).backward()
            if model is ours:
                assert not any(model.get_parameter(name).grad[~mask].any() for name, mask in masks.items())
            norms.append(nn.utils.clip_grad_norm_(model.parameters(), 0.05))
            optimizer.step()
    assert torch.allclose(torch.stack(norms[:10]), torch.stack(norms[10:]))
    assert torch.allclose(ours[0].weight, theirs[0].weight_orig * theirs[0].weight_mask, atol=1e-6)


def test_a_mask_on_a_submodule_holds_there_while_the_rest_trains():
    """Bit for bit as the same mask on the whole model."""
    part, unbroken = (nn.Sequential(network(), nn.ReLU(), nn.Linear(3, 3)) for _ in range(2))
    unbroken.load_state_dict(part.state_dict())
    mask = part[0][0].weight.abs() > 0.2
    recipe = RECIPE.replace(epochs=2, optimizer="sgd", momentum=0.9, patience=3)
    epochs = train(part, dataset(), recipe, constraint=Masks(part[0], {"0.weight": mask}))
    assert epochs == train(unbroken, dataset(), recipe, constraint=Masks(unbroken, {"0.0.weight": mask}))
    assert all(torch.equal(a, b) for a, b in zip(part.parameters(), unbroken.parameters(), strict=True))
    assert not part[0][0].weight[~mask].any()


def test_a_model_is_trained_also_where_gradients_are_disabled():
    expected, model = network(), network()
    train(expected, dataset(), RECIPE)
    with torch.no_grad():
        train(model, dataset(), RECIPE)
    assert all(torch.equal(a, b) for a, b in zip(expected.parameters(), model.parameters(), strict=True))
    with torch.inference_mode():
        model = network()
    with pytest.raises(ModelError, match=r"'0\.weight' was made in torch\.inference_mode"):
        prunus.prune(model, 0.5)


def test_a_constraint_of_another_model_is_refused():
    model = network()
    for other in (network(), nn.Sequential(model)):
        with pytest.raises(ModelError, match="of another Sequential; make the constraint of the model"):
            train(model, dataset(), RECIPE, constraint=NoConstraint(other))


def test_a_pruned_weight_whose_update_is_infinite_is_a_divergence():
    model = network()
    mask = torch.ones(6, 8, dtype=torch.bool)
    mask[0, 0] = False
    constraint = Masks(model, {"0.weight": mask})
    model[0].weight.register_hook(lambda gradient: gradient.fill_(math.inf))
    with pytest.raises(DivergenceError, match="nan in validation"):
        train(model, dataset(), RECIPE.replace(optimizer="sgd"), constraint=constraint)


def test_tied_parameters_train_as_one():
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), nn.Linear(8, 3))
    model[2].weight = model[0].weight
    before = model[0].weight.clone()
    train(model, dataset(), RECIPE)
    assert model[2].weight is model[0].weight
    assert not torch.equal(before, model[0].weight)
