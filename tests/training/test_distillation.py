"""The loss of distillation: its gradient, labels that are ignored, and training under it."""

from functools import partial

import pytest
import torch
from tiny_networks import mlp
from torch import nn
from torch.nn.utils import prune

import prunus
from prunus.errors import ModelError, SpecError, StatisticsError
from prunus.training.distillation import distillation_loss

T, A = 3.0, 0.7


def test_gradient_is_that_of_hinton():
    teacher, inputs, labels = mlp(1), torch.rand(6, 64), torch.arange(6)
    outputs = torch.randn(6, 10, requires_grad=True)
    distillation_loss(teacher, temperature=T, soft_fraction=A)(outputs, (inputs, labels)).backward()
    soft = (outputs / T).softmax(1) - (teacher(inputs) / T).softmax(1)
    hard = outputs.softmax(1) - nn.functional.one_hot(labels, 10)
    assert torch.allclose(outputs.grad, ((1 - A) * hard + A * T * soft) / 6, atol=1e-6)


def test_ignored_labels_do_not_count():
    teacher, inputs, labels = nn.Linear(4, 5), torch.rand(2, 3, 4), torch.tensor([[1, 2, -100], [0, -100, 4]])
    outputs = torch.randn(2, 3, 5)
    counted = labels != -100
    loss = distillation_loss(teacher)
    expected = loss(outputs[counted], (inputs[counted], labels[counted]))
    assert torch.allclose(loss(outputs, (inputs, labels)), expected)


def test_teacher_is_a_copy_in_evaluation_mode():
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10), nn.Dropout(0.5)).train()
    batch = torch.rand(8, 1, 8, 8), torch.arange(8)
    loss, outputs = distillation_loss(model), torch.randn(8, 10)
    before = loss(outputs, batch)
    nn.init.zeros_(model[1].weight)
    assert torch.equal(loss(outputs, batch), before)
    assert model.training
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_loss_of_the_outputs_is_the_first_term():
    """A language model of Hugging Face transformers compares its labels shifted by one."""
    logits, model_loss, batch = torch.randn(6, 10), torch.tensor(3.25), (torch.rand(6, 64), torch.arange(6))
    outputs = {"logits": logits, "loss": model_loss}
    assert distillation_loss(mlp(1), soft_fraction=0.0)(outputs, batch) == model_loss
    soft = distillation_loss(mlp(1), soft_fraction=1.0)
    assert torch.equal(soft(outputs, batch), soft(logits, batch))


def test_soft_loss_of_a_language_model_is_that_of_the_positions_that_predict_the_labels():
    logits, of_teacher = torch.randn(2, 5, 7), torch.randn(2, 5, 7)
    labels = torch.randint(7, (2, 5))
    labels[:, :3] = -100
    model_loss = nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
    outputs, batch = {"logits": logits, "loss": model_loss}, {"input_ids": labels, "labels": labels}
    teacher = nn.Identity()
    loss = distillation_loss(teacher, soft_fraction=1.0, temperature=1.0, forward=lambda *_: of_teacher)
    rows, targets = logits[:, 2:4].flatten(0, 1), of_teacher[:, 2:4].flatten(0, 1)
    expected = nn.functional.cross_entropy(rows, targets.softmax(1))
    assert torch.allclose(loss(outputs, batch), expected)


def test_bfloat16_outputs_are_compared_in_float32():
    teacher, batch = mlp(1), (torch.rand(6, 64), torch.arange(6))
    outputs = torch.randn(6, 10).bfloat16()
    loss = distillation_loss(teacher)
    assert loss(outputs, batch).dtype == torch.float32
    assert torch.equal(loss(outputs, batch), loss(outputs.float(), batch))


def test_pruned_network_learns_the_outputs_of_the_dense_one():
    data, model = prunus.load_data("digits"), mlp(3)
    loss = distillation_loss(model, soft_fraction=1.0)
    pruned = prunus.prune(model, 0.3)
    recipe = prunus.Recipe(epochs=3, learning_rate=2e-3, batch_size=64)
    before = prunus.evaluate(model, data.validation, loss=loss).loss
    prunus.train(model, data, recipe, masks=pruned.masks, loss=loss)
    assert prunus.evaluate(model, data.validation, loss=loss).loss < before
    parameters = dict(model.named_parameters())
    assert not any(parameters[name][~mask].any() for name, mask in pruned.masks.items())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": 0.0}, r"temperature above 0, got 0\.0"),
        ({"temperature": float("nan")}, "temperature above 0, got nan"),
        ({"soft_fraction": 1.5}, r"soft_fraction from 0 to 1, got 1\.5"),
    ],
)
def test_settings_out_of_range(settings, message):
    with pytest.raises(SpecError, match=message):
        distillation_loss(mlp(0), **settings)


@pytest.mark.parametrize("teacher", [nn.Linear, torch.relu])
def test_teacher_that_is_no_module_is_refused(teacher):
    with pytest.raises(ModelError, match=r"Expected a torch\.nn\.Module"):
        distillation_loss(teacher)


@pytest.mark.parametrize(
    "compute_weight",
    [partial(prune.l1_unstructured, amount=0.5), nn.utils.weight_norm, nn.utils.spectral_norm],
)
@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated:FutureWarning")
def test_teacher_with_computed_weights_is_copied_after_a_forward_pass(compute_weight):
    teacher = compute_weight(nn.Linear(64, 10), "weight").eval()
    batch, outputs = (torch.rand(6, 64), torch.arange(6)), torch.randn(6, 10)
    expected = distillation_loss(teacher)(outputs, batch)
    teacher(batch[0])
    assert not teacher.weight.is_leaf
    assert torch.equal(distillation_loss(teacher)(outputs, batch), expected)


def test_teacher_that_cannot_be_copied_is_refused():
    teacher = nn.Linear(64, 10)
    teacher.last_output = teacher(torch.rand(2, 64))
    with pytest.raises(ModelError, match="Linear cannot be copied"):
        distillation_loss(teacher)


def test_teacher_of_other_classes_is_refused():
    loss = distillation_loss(nn.Linear(64, 7))
    with pytest.raises(StatisticsError, match="classes of the network, 10, got 7"):
        loss(torch.randn(6, 10), (torch.rand(6, 64), torch.arange(6)))
