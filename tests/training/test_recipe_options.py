"""Settings of a recipe for large trainings: masks hold, resumed equals uninterrupted, bad values are named."""

import copy
import json
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from prunus.errors import DataError, ModelError, SpecError, UnknownNameError
from prunus.masks import Masks
from prunus.training import NoConstraint, Recipe, train
from prunus.training.gradients import Gradients
from prunus.training.identity import Identity, identity_differences, training_identity
from prunus.training.recipe import learning_rate_at
from prunus.training.recipe_checks import check_recipe
from prunus.training.trainer import Trainer

RECIPE = Recipe(2, 0.05, 32, "sgd", momentum=0.9, weight_decay=1e-3, lr_schedule="steps")
OPTIONS = {
    "warmup": {"warmup_epochs": 1.5, "milestones": (0.3, 0.9)},
    "label_smoothing": {"label_smoothing": 0.1},
    "micro_batches": {"micro_batch_size": 10},
    "bfloat16": {"autocast": "bfloat16"},
    "float16": {"autocast": "float16", "penalty": "l1", "penalty_strength": 1e-4},
    "channels_last": {"channels_last": True, "augmentation": "flip_crop"},
}
DEPRECATED = pytest.mark.filterwarnings("ignore::DeprecationWarning:torch.*")  # by the compiler itself
COMPILED = pytest.param({"compile": True}, marks=[pytest.mark.slow, DEPRECATED], id="compile")
each_option = pytest.mark.parametrize(
    "changes", [*(pytest.param(changes, id=name) for name, changes in OPTIONS.items()), COMPILED]
)


@pytest.fixture
def convolutional() -> nn.Module:
    """Two convolutions with batch normalization, and dropout."""
    torch.manual_seed(0)
    block = nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 8, 3, stride=2), nn.ReLU()
    return nn.Sequential(*block, nn.Dropout(0.1), nn.Flatten(), nn.Linear(32, 10))


def make_masks(model: nn.Module) -> Masks:
    draw = torch.Generator().manual_seed(0)
    weights = {name: p for name, p in model.named_parameters() if p.dim() > 1}
    return Masks(model, {name: torch.rand(w.shape, generator=draw) < 0.4 for name, w in weights.items()})


def gradients_of(model, recipe, inputs, labels):
    loss = Gradients(model, recipe).compute(inputs, labels)
    return loss, [p.grad.clone() for p in model.parameters()]


@each_option
def test_masks_hold_after_every_step_and_kept_weights_train(changes, convolutional, small_data):
    masks = make_masks(convolutional)
    run = Trainer(convolutional, RECIPE.replace(**changes), masks)
    run.constraint.apply()
    before = {name: convolutional.get_parameter(name).detach().clone() for name in masks}
    for start in range(0, 160, 20):
        run.step(small_data.train.inputs[start : start + 20], small_data.train.labels[start : start + 20])
        assert masks.verify() == 0
    for name, mask in masks.items():
        assert (convolutional.get_parameter(name) != before[name])[mask].all()


@each_option
def test_resumed_equals_uninterrupted(changes, convolutional, small_data, tmp_path):
    """The first epoch ends with a checkpoint, from which a second call continues."""
    recipe = RECIPE.replace(**changes)
    models = [copy.deepcopy(convolutional) for _ in range(3)]

    def stop(_):
        raise KeyboardInterrupt

    expected = train(models[0], small_data, recipe, masks=make_masks(models[0]), seed=3)
    path = tmp_path / "checkpoint"
    with pytest.raises(KeyboardInterrupt):
        train(
            models[1], small_data, recipe, masks=make_masks(models[1]), seed=3, checkpoint=path, report=stop
        )
    resumed = train(models[2], small_data, recipe, masks=make_masks(models[2]), seed=3, checkpoint=path)
    assert resumed == expected
    for name, tensor in models[0].state_dict().items():
        assert torch.equal(tensor, models[2].state_dict()[name]), name


def test_scale_of_the_loss_is_part_of_the_state(convolutional, small_data):
    """A step whose scaled gradients overflow changes nothing but the scale; a captured state contains it."""
    recipe = RECIPE.replace(autocast="float16")
    inputs, labels = small_data.train.inputs[:32], small_data.train.labels[:32]
    runs = [
        Trainer(model, recipe, NoConstraint(model)) for model in (convolutional, copy.deepcopy(convolutional))
    ]
    before = [p.detach().clone() for p in convolutional.parameters()]
    runs[0].gradients.load_scaler_state(torch.tensor([2.0**40, 0]))
    runs[0].step(inputs, labels)
    assert all(torch.equal(a, b) for a, b in zip(before, convolutional.parameters(), strict=True))
    assert runs[0].gradients.scale == 2.0**39
    runs[1].restore(runs[0].capture())
    assert runs[1].gradients.scale == 2.0**39
    runs[0].gradients.load_scaler_state(torch.tensor([2.0**10, 0]))
    runs[0].step(inputs, labels)
    assert not any(torch.equal(a, b) for a, b in zip(before, convolutional.parameters(), strict=True))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_scaled_step_is_that_of_float32_up_to_rounding(dtype, convolutional, small_data):
    recipe = RECIPE.replace(penalty="l2", penalty_strength=0.1)
    models = copy.deepcopy(convolutional).eval(), convolutional.eval()
    start = nn.utils.parameters_to_vector(convolutional.parameters()).detach()
    for model, changes in zip(models, ({}, {"autocast": dtype}), strict=True):
        run = Trainer(model, recipe.replace(**changes), NoConstraint(model))
        run.step(small_data.train.inputs[:32], small_data.train.labels[:32])
    steps = [nn.utils.parameters_to_vector(m.parameters()).detach() - start for m in models]
    assert F.cosine_similarity(*steps, dim=0) > 0.999
    assert float(steps[1].norm()) == pytest.approx(float(steps[0].norm()), rel=0.02)


@pytest.mark.parametrize("size", [1, 10, 31])
def test_micro_batches_have_the_gradients_of_the_batch(size, mlp, small_data):
    """Also where the parts have different numbers of labels, and one of them none."""
    inputs, labels = small_data.train.inputs[:31].clone(), small_data.train.labels[:31].clone()
    labels[[0, 3, 4]] = labels[10:20] = -100
    loss, expected = gradients_of(mlp.eval(), RECIPE, inputs, labels)
    other_loss, gradients = gradients_of(mlp, RECIPE.replace(micro_batch_size=size), inputs, labels)
    assert torch.allclose(loss, other_loss)
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(expected, gradients, strict=True))


def test_micro_batches_of_a_causal_language_model_have_the_gradients_of_the_batch():
    """The first label of a sequence does not count, so that a sequence whose others are ignored has none."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=20, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2
    )
    model = transformers.LlamaForCausalLM(config)
    tokens = torch.randint(0, 20, (6, 5))
    labels = tokens.masked_fill(torch.arange(5) >= torch.tensor([5, 2, 1, 3, 5, 4])[:, None], -100)
    results = []
    for size in (None, 2, 1):
        recipe = RECIPE.replace(micro_batch_size=size)
        gradients = Gradients(model, recipe, lambda m, batch: m(input_ids=batch[0], labels=batch[1]))
        loss = gradients.compute(tokens, labels)
        assert gradients.compared_labels(tokens, labels).shape == (6, 4)
        results.append([loss, *(parameter.grad for parameter in model.parameters())])
    for other in results[1:]:
        assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(results[0], other, strict=True))


def test_label_smoothing_is_cross_entropy_with_smoothed_targets(mlp, small_data):
    inputs, labels = small_data.train.inputs[:8], small_data.train.labels[:8]
    loss, _ = gradients_of(mlp.eval(), RECIPE.replace(label_smoothing=0.2), inputs, labels)
    targets = 0.8 * F.one_hot(labels, 10) + 0.02
    assert torch.allclose(loss, -(targets * mlp(inputs).log_softmax(1)).sum(1).mean())


@DEPRECATED
@pytest.mark.slow
def test_compiled_training_ends_close_to_the_same_weights(convolutional, small_data):
    compiled = copy.deepcopy(convolutional)
    convolutional[5].p = compiled[5].p = 0.0
    train(convolutional, small_data, RECIPE)
    train(compiled, small_data, RECIPE.replace(compile=True))
    for a, b in zip(convolutional.parameters(), compiled.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-3)


def test_learning_rates_of_warm_up_and_milestones(mlp, small_data):
    recipe = Recipe(10, 0.4, 32, "sgd", lr_schedule="steps", milestones=(0.3, 0.6, 0.9), warmup_epochs=2)
    rates = [learning_rate_at(recipe, epoch / 10) for epoch in (0, 0.5, 1, 2, 2.9, 3, 6, 9)]
    assert rates == pytest.approx([0, 0.1, 0.2, 0.4, 0.4, 0.04, 0.004, 0.0004])
    run = Trainer(mlp, recipe, NoConstraint(mlp))
    seen = []
    run.constraint.apply = lambda: seen.append(run.optimizer.param_groups[0]["lr"])
    run.epoch(small_data.train, seed=0)  # five steps
    assert seen == pytest.approx([0, 0.04, 0.08, 0.12, 0.16])


def test_recipe_with_a_warmup_can_have_no_epochs(mlp, small_data):
    before = {name: tensor.clone() for name, tensor in mlp.state_dict().items()}
    train(mlp, small_data, RECIPE.replace(warmup_epochs=1, epochs=0))
    assert all(torch.equal(tensor, before[name]) for name, tensor in mlp.state_dict().items())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"milestones": (0.75, 0.5)}, "ascending fractions of the training"),
        ({"milestones": (80, 120)}, "above 0 and below 1, got \\(80, 120\\)"),
        ({"milestones": ("a",)}, "ascending fractions"),
        ({"milestones": 0.5}, "a tuple of ascending"),
        (
            {"milestones": (0.5,), "lr_schedule": "cosine"},
            "with the schedule 'steps' only, got them with 'cosine'",
        ),
        ({"warmup_epochs": 2}, "below the 2 epochs of the recipe"),
        ({"warmup_epochs": -1}, "warmup_epochs to be a finite number of at least 0"),
        ({"label_smoothing": 1.0}, "label_smoothing to be below 1"),
        ({"label_smoothing": float("nan")}, "label_smoothing to be a finite number"),
        ({"patience": 0}, "patience to be an integer of at least 1, got 0"),
        ({"penalty": "l1"}, "penalty_strength above 0 with the penalty 'l1', got 0.0"),
        ({"micro_batch_size": 0}, "micro_batch_size to be an integer of at least 1, got 0"),
        ({"channels_last": 1}, "channels_last to be True or False"),
        ({"compile": "yes"}, "compile to be True or False"),
    ],
)
def test_value_out_of_range_is_named(changes, message, mlp, small_data):
    with pytest.raises(SpecError, match=message):
        train(mlp, small_data, RECIPE.replace(**changes))


def test_settings_that_a_task_does_not_have_are_refused(mlp, small_data):
    with pytest.raises(UnknownNameError, match="Unknown dtype of autocast 'fp16'"):
        check_recipe(RECIPE.replace(autocast="fp16"))
    train_split, validation = (
        replace(s, inputs=s.inputs.flatten(1)) for s in (small_data.train, small_data.validation)
    )
    flat = replace(small_data, train=train_split, validation=validation)
    with pytest.raises(DataError, match=r"images \[B, C, H, W\] for channels_last"):
        train(mlp, flat, RECIPE.replace(channels_last=True))
    with pytest.raises(SpecError, match="label_smoothing = 0 with a loss of your own"):
        train(mlp, small_data, RECIPE.replace(label_smoothing=0.1), loss="cross_entropy")
    with pytest.raises(SpecError, match="the recipe has autocast = 'bfloat16'"):
        train(mlp, small_data, RECIPE.replace(autocast="bfloat16"), masks=make_masks(mlp), backend="sparse")
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10), nn.BatchNorm1d(10))
    with pytest.raises(ModelError, match="leave a batch of one example"):
        train(model, small_data, RECIPE.replace(micro_batch_size=31))


def test_checkpoint_of_another_recipe_is_named_by_its_settings(mlp, small_data):
    def identity(**changes):
        run = Trainer(mlp, RECIPE.replace(**changes), NoConstraint(mlp))
        return training_identity(run, small_data, seed=0)

    saved = Identity(json.loads(json.dumps(identity().values)), identity().responses)
    assert identity_differences(saved, identity()) == []
    (difference,) = identity_differences(saved, identity(milestones=(0.5,)))
    assert difference == "its recipe has milestones = None, this one [0.5]"
    current = json.loads(json.dumps(identity(milestones=(0.5,)).values))
    assert identity_differences(Identity(current, saved.responses), identity(milestones=(0.5,))) == []
