"""`Masks` hold in any training loop, whatever happens to the parameters of the model."""

import copy
import pickle
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load, save
from torch import nn

import prunus
from prunus.errors import CheckpointError, ModelError
from prunus.masks import all_kept, apply_masks, are_nested, mask_density, pack_mask, unpack_mask
from prunus.training import Recipe, train

OPTIMIZERS = {
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9, weight_decay=0.01),
    "adam": lambda parameters: torch.optim.Adam(parameters, lr=0.01, weight_decay=0.01, eps=1e-3),
}


def make_model(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3))


def random_masks(density: float = 0.5) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        "0.weight": torch.rand(6, 8, generator=generator) < density,
        "2.weight": torch.rand(3, 6, generator=generator) < density,
    }


def random_values() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    return {name: torch.randn(mask.shape, generator=generator) for name, mask in random_masks().items()}


def step(model: nn.Module, optimizer: torch.optim.Optimizer, num_steps: int = 3) -> None:
    dtype = next(model.parameters()).dtype
    generator = torch.Generator().manual_seed(3)
    for _ in range(num_steps):
        inputs = torch.randn(10, 8, generator=generator).to(dtype)
        optimizer.zero_grad()
        model(inputs).square().mean().backward()
        optimizer.step()


def violations(model: nn.Module, masks: dict[str, torch.Tensor]) -> int:
    """The number of pruned weights that are not zero, counted without `Masks`."""
    return sum(int(model.get_parameter(name)[~mask].count_nonzero()) for name, mask in masks.items())


def assign_copies(model: nn.Module) -> None:
    state = {name: tensor.clone() + 0.1 for name, tensor in make_model(5).state_dict().items()}
    model.load_state_dict(state, assign=True)


def replace_submodule(model: nn.Sequential) -> None:
    torch.manual_seed(7)
    model[0] = nn.Linear(8, 6)


CHANGES = {
    "to": lambda model: model.to(torch.bfloat16),
    "half": lambda model: model.half(),
    "double": lambda model: model.double(),
    "assign": assign_copies,
    "submodule": replace_submodule,
    "memory order": lambda model: setattr(model[0].weight, "data", model[0].weight.data.T.contiguous().T),
}


@pytest.mark.parametrize("pruned_values", [None, random_values()], ids=["zero", "values"])
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_masks_apply_to_the_parameters_that_the_model_has_now(change, pruned_values):
    model, expected = make_model(), pruned_values or {}
    masks = prunus.Masks(model, random_masks(), pruned_values)
    masks.apply()
    change(model)
    with torch.no_grad():
        for name in masks:
            model.get_parameter(name).add_(1.0)
    num_pruned = sum(int((~mask).sum()) for mask in masks.values())
    assert masks.verify() == num_pruned
    masks.apply()
    assert masks.verify() == 0
    for name, mask in masks.items():
        weight = model.get_parameter(name)
        value = expected.get(name, torch.zeros(mask.shape)).to(weight.dtype)
        assert torch.equal(weight[~mask], value[~mask])
        assert weight[mask].all()


@pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS)
@pytest.mark.parametrize("change", ["double", "half", "assign", "submodule"])
@pytest.mark.parametrize("is_optimizer_first", [True, False])
def test_pruned_weights_stay_zero_in_a_training_loop(optimizer, change, is_optimizer_first):
    """The optimizer is created before or after the masks; it is replaced if its parameters are."""
    model, masks = make_model(), random_masks()
    if is_optimizer_first:
        stepping = optimizer(model.parameters())
        bound = prunus.Masks(model, masks).attach(stepping)
    else:
        bound = prunus.Masks(model, masks)
        stepping = optimizer(model.parameters())
        bound.attach(stepping)
    step(model, stepping)
    assert violations(model, masks) == 0
    CHANGES[change](model)
    if change in ("assign", "submodule"):
        bound.detach()
        stepping = optimizer(model.parameters())
        bound.attach(stepping)
    else:
        stepping.state.clear()
    before = {name: model.get_parameter(name).detach().clone() for name in masks}
    step(model, stepping)
    assert violations(model, masks) == bound.verify() == 0
    for name, mask in masks.items():
        assert (model.get_parameter(name)[mask] != before[name][mask]).any()
        assert not model.get_parameter(name).grad[~mask].any()


@pytest.mark.parametrize("change", [assign_copies, replace_submodule])
def test_an_optimizer_of_replaced_parameters_is_refused(change):
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    masks = prunus.Masks(model, random_masks()).attach(optimizer)
    change(model)
    with pytest.raises(ModelError, match=r"step '0\.weight', but the parameter was replaced"):
        step(model, optimizer)
    assign_copies(model)
    with pytest.raises(
        ModelError, match="steps none of its 2 masked or quantized parameters; make a new optimizer"
    ):
        masks.attach(optimizer)


def test_each_of_two_optimizers_is_checked():
    model = make_model()
    optimizers = [torch.optim.SGD(model[place].parameters(), lr=0.1) for place in (0, 2)]
    masks = prunus.Masks(model, random_masks())
    for optimizer in optimizers:
        masks.attach(optimizer)
    model[2] = nn.Linear(6, 3)
    model(torch.ones(1, 8)).sum().backward()
    optimizers[0].step()
    with pytest.raises(ModelError, match=r"step '2\.weight', but the parameter was replaced"):
        optimizers[1].step()


def test_a_parameter_added_to_the_optimizer_is_masked_with_its_gradient():
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    masks = prunus.Masks(model, random_masks()).attach(optimizer)
    replace_submodule(model)
    optimizer.add_param_group({"params": list(model[0].parameters())})
    step(model, optimizer)
    assert masks.verify() == 0
    assert not model[0].weight.grad[~masks["0.weight"]].any()


def test_only_an_optimizer_can_be_attached():
    with pytest.raises(ModelError, match=r"Expected a torch\.optim\.Optimizer, got a list"):
        prunus.Masks(make_model(), random_masks()).attach([])


@pytest.mark.parametrize("change", [None, "double", "half"])
def test_gradient_clipping_sees_the_gradients_of_kept_weights_only(change):
    model, masks = make_model(), random_masks(0.2)
    prunus.Masks(model, masks).attach(torch.optim.SGD(model.parameters(), lr=0.1))
    if change is not None:
        model(torch.ones(4, 8)).sum().backward()
        model.zero_grad()
        CHANGES[change](model)
    for _ in range(2):  # gradients are accumulated
        model(torch.ones(4, 8, dtype=model[0].weight.dtype)).sum().backward()
    plain = copy.deepcopy(model)
    plain.zero_grad()
    for _ in range(2):
        plain(torch.ones(4, 8, dtype=model[0].weight.dtype)).sum().backward()
    for name, mask in masks.items():
        assert torch.equal(model.get_parameter(name).grad, plain.get_parameter(name).grad * mask)
        assert plain.get_parameter(name).grad[~mask].any()
    kept_gradients = [
        plain.get_parameter(name).grad * masks.get(name, 1) for name, _ in plain.named_parameters()
    ]
    expected = torch.linalg.vector_norm(torch.stack([gradient.norm() for gradient in kept_gradients]))
    assert torch.allclose(nn.utils.clip_grad_norm_(model.parameters(), 0.01), expected)


def test_detached_masks_change_nothing():
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    masks = prunus.Masks(model, random_masks()).attach(optimizer)
    masks.detach()
    step(model, optimizer)
    assert masks.verify() == sum(int((~mask).sum()) for mask in masks.values())


def test_a_copy_of_the_model_is_unmasked_until_it_is_bound():
    model = make_model()
    masks = prunus.Masks(model, random_masks(), random_values())
    masks.attach(torch.optim.SGD(model.parameters(), lr=0.1))
    other = copy.deepcopy(model)
    with torch.no_grad():
        other[0].weight.add_(1.0)
    optimizer = torch.optim.SGD(other.parameters(), lr=0.1)
    step(other, optimizer)
    assert masks.verify() == 0
    bound = masks.bind(other)
    assert bound.verify() > 0
    bound.attach(optimizer)
    step(other, optimizer)
    assert bound.verify() == 0
    assert bound.density == masks.density


def test_a_copy_of_the_masks_belongs_to_the_same_model():
    model = make_model()
    masks = prunus.Masks(model, random_masks())
    masks.attach(torch.optim.SGD(model.parameters(), lr=0.1))
    other = copy.deepcopy(masks)
    masks.detach()
    assert other.model is model
    assert all(torch.equal(other[name], mask) and other[name] is not mask for name, mask in masks.items())


@pytest.mark.parametrize("kind", ["masks", "codebooks"])
def test_a_constraint_is_copied_with_its_model_or_pickled_without_hooks(kind):
    model = make_model()
    constraint = prunus.Masks(model, random_masks())
    if kind == "codebooks":
        constraint.apply()
        constraint = prunus.quantize(model, constraint, bits=2)
    constraint.attach(torch.optim.SGD(model.parameters(), lr=0.1))
    assert copy.deepcopy(constraint).model is model
    for copied, other in (
        copy.deepcopy((model, constraint)),
        pickle.loads(pickle.dumps((model, constraint))),
    ):
        assert other.model is copied is not model
        assert other.verify() == 0
        other.attach(torch.optim.SGD(copied.parameters(), lr=0.1)).detach()


def test_a_model_that_contains_its_masks_is_copied_and_pruned_again():
    model = make_model()
    model.masks = prunus.Masks(model, random_masks())
    copied = copy.deepcopy(model)
    assert copied.masks.model is copied
    copied.masks.attach(torch.optim.SGD(copied.parameters(), lr=0.1)).detach()
    assert copied.masks.verify() == 0
    assert model.masks.model is model
    prunus.prune(model, 0.1)


@pytest.mark.parametrize("is_compiled_first", [True, False])
def test_masks_hold_in_a_compiled_model(is_compiled_first):
    model, masks = make_model(), random_masks()
    compiled = torch.compile(model, backend="eager")
    if is_compiled_first:
        bound = prunus.Masks(compiled, {f"_orig_mod.{name}": mask for name, mask in masks.items()})
    else:
        bound = prunus.Masks(model, masks)
    optimizer = torch.optim.Adam(compiled.parameters(), lr=0.01)
    bound.attach(optimizer)
    step(compiled, optimizer)
    assert list(bound) == list(masks)
    assert bound.verify() == violations(model, masks) == 0


def test_masked_training_ends_masked_in_another_dtype(small_data):
    """Aliases of the storage would be left behind by `double`, and nobody would notice."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    masks = prunus.Masks(model, {"1.weight": torch.rand(10, 64) < 0.2})
    model.double()
    data = copy.deepcopy(small_data)
    for split in (data.train, data.validation, data.test):
        object.__setattr__(split, "inputs", split.inputs.double())
    train(model, data, Recipe(1, 0.01, 32), masks=masks)
    assert masks.verify() == violations(model, masks) == 0
    assert int(model[1].weight.count_nonzero()) == int(masks["1.weight"].sum())


def test_a_missing_or_reshaped_parameter_is_named():
    model = make_model()
    masks = prunus.Masks(model, random_masks())
    masks.apply()
    model[0] = nn.Linear(9, 6)
    with pytest.raises(ModelError, match=r"mask of '0\.weight' has shape \(6, 8\)"):
        masks.apply()
    model[0] = nn.ReLU()
    with pytest.raises(
        ModelError, match=r"'0\.weight', but the model has no parameter of that name any more"
    ):
        masks.apply()


def test_a_reshaped_parameter_is_named_before_any_is_changed():
    model = make_model()
    masks = prunus.Masks(model, random_masks())
    before = model[0].weight.detach().clone()
    model[2] = nn.Linear(9, 6)
    with pytest.raises(ModelError, match=r"mask of '2\.weight'"):
        masks.apply()
    assert torch.equal(model[0].weight, before)


def test_later_changes_of_the_given_tensors_change_no_masks():
    mask_tensors, values = random_masks(), random_values()
    masks = prunus.Masks(make_model(), mask_tensors, values)
    expected = [tensor.clone() for tensor in (*masks.values(), *masks.pruned_values.values())]
    for tensor in (*mask_tensors.values(), *values.values()):
        tensor.zero_()
    tensors = [*masks.values(), *masks.pruned_values.values()]
    assert all(torch.equal(a, b) for a, b in zip(tensors, expected, strict=True))


def test_state_has_one_bit_per_weight_and_is_stored_by_safetensors():
    model = make_model()
    masks = prunus.Masks(model, random_masks())
    state = load(save(masks.state_dict()))
    assert {name: bits.nbytes for name, bits in state.items()} == {"0.weight": 6, "2.weight": 3}
    masks.load_state_dict(state)
    restored = prunus.Masks.from_state_dict(model, state)
    assert all(torch.equal(restored[name], mask) for name, mask in masks.items())
    with pytest.raises(CheckpointError, match="with other masks"):
        prunus.Masks(model, all_kept(random_masks())).load_state_dict(state)
    with pytest.raises(ModelError, match=r"weight of '0\.weight', \[6, 8\], got 3 bytes"):
        prunus.Masks.from_state_dict(model, {"0.weight": state["2.weight"]})
    compiled = torch.compile(model, backend="eager")
    assert torch.equal(prunus.Masks.from_state_dict(compiled, state)["0.weight"], masks["0.weight"])
    with pytest.raises(ModelError, match="no parameter of that name"):
        prunus.Masks.from_state_dict(model, {"9.weight": state["2.weight"]})


def test_a_mask_of_another_shape_name_or_type_is_refused(mlp):
    with pytest.raises(ModelError, match="'nobody'"):
        prunus.Masks(mlp, {"nobody": torch.ones(1, dtype=torch.bool)})
    with pytest.raises(ModelError, match="shape"):
        prunus.Masks(mlp, {"1.weight": torch.ones(2, 2, dtype=torch.bool)})
    with pytest.raises(ModelError, match=r"boolean tensor as the mask of '1\.weight', got torch"):
        prunus.Masks(mlp, {"1.weight": torch.full((24, 64), 0.5)})
    with pytest.raises(ModelError, match=r"boolean tensor as the mask of '1\.weight', got list"):
        prunus.Masks(mlp, {"1.weight": [True]})
    with pytest.raises(ModelError, match=r"got a Pruned, whose masks are \.masks"):
        prunus.Masks(mlp, prunus.prune(mlp, 0.5))
    with pytest.raises(ModelError, match=r"Expected masks by parameter name, .* got a list"):
        apply_masks(dict(mlp.named_parameters()), [torch.ones(1)])
    with pytest.raises(ModelError, match="lazy"):
        prunus.Masks(nn.Sequential(nn.LazyLinear(2)), {"0.weight": torch.ones(2, 2, dtype=torch.bool)})


def test_finalize_leaves_no_negative_zero():
    model = make_model()
    masks = prunus.Masks(model, random_masks())
    with torch.no_grad():
        for name in masks:
            model.get_parameter(name).fill_(-0.0)
    masks.apply()
    assert any(torch.signbit(model.get_parameter(name)).any() for name in masks)
    masks.finalize()
    assert not any(torch.signbit(model.get_parameter(name)).any() for name in masks)


def test_masks_pack_into_one_bit_per_weight():
    mask = torch.rand(7, 11) < 0.5
    assert pack_mask(mask).nbytes == 10
    assert torch.equal(unpack_mask(pack_mask(mask), mask.shape), mask)


def test_functions_of_masks():
    weights = {"a": torch.tensor([1.0, -2.0]), "b": torch.tensor([3.0])}
    masks = {"a": torch.tensor([True, False])}
    pruned = apply_masks(weights, masks)
    assert pruned["a"].tolist() == [1.0, 0.0]
    assert not torch.signbit(pruned["a"]).any()
    assert pruned["b"] is weights["b"]
    assert are_nested(masks, all_kept(weights))
    assert not are_nested(all_kept(masks), masks)
    assert (mask_density(masks), mask_density(all_kept(weights)), mask_density({})) == (0.5, 1.0, 0.0)


def test_masks_hold_after_writes_that_autograd_does_not_see():
    """Such as those of an average of weights, or of clipping, through `parameter.data`."""
    model = make_model()
    masks = prunus.Masks(model, random_masks())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    masks.attach(optimizer)
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.ones(4, 8)).square().mean().backward()
        for parameter in model.parameters():
            parameter.data.add_(1.0)
            parameter.grad.data.add_(1.0)
        optimizer.step()
        assert masks.verify() == 0


def test_masks_hold_in_training_after_writes_that_autograd_does_not_see():
    split = prunus.Split(torch.ones(8, 8), torch.zeros(8, dtype=torch.int64))
    data, model = prunus.Dataset("ones", split, split, split, ("a", "b", "c")), make_model()
    masks = prunus.Masks(model, random_masks())

    def write_through_data(metrics):
        if metrics.epoch == 1:
            for parameter in model.parameters():
                parameter.data.add_(1.0)

    recipe = prunus.Recipe(epochs=2, learning_rate=0.1, batch_size=8, optimizer="sgd")
    prunus.train(model, data, recipe, masks=masks, report=write_through_data)
    assert masks.verify() == 0


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_pruned_weights_are_zero_after_an_overflow(dtype, bad):
    """A product with 0 is NaN for infinity, and -0.0 for a negative weight."""
    model = nn.Conv2d(3, 4, 3).to(dtype).to(memory_format=torch.channels_last)
    mask = torch.rand(4, 3, 3, 3) < 0.5
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    masks = prunus.Masks(model, {"weight": mask}).attach(optimizer)
    kept_weights = model.weight.detach()[mask].clone()
    model.weight.grad = torch.where(mask, 0.0, bad).to(dtype)
    optimizer.step()
    assert masks.verify() == 0
    assert torch.equal(model.weight[mask], kept_weights)
    with torch.no_grad():
        model.weight.fill_(-1.0)[~mask] = bad
    masks.apply()
    assert torch.equal(model.weight, torch.where(mask, -1.0, 0.0).to(dtype))
    assert not model.weight[~mask].signbit().any()


def test_masks_of_gradients_that_are_sparse_or_complex():
    model = nn.Embedding(6, 4, sparse=True)
    mask = torch.rand(6, 4) < 0.5
    optimizer = torch.optim.SparseAdam(model.parameters(), 0.1)
    masks = prunus.Masks(model, {"weight": mask}).attach(optimizer)
    model(torch.tensor([0, 1, 1])).sum().backward()
    assert model.weight.grad.is_sparse
    assert not model.weight.grad.to_dense()[~mask].any()
    optimizer.step()
    assert masks.verify() == 0
    other = nn.Linear(4, 4)
    other.weight = nn.Parameter(torch.randn(4, 4, dtype=torch.complex64))
    masks = prunus.Masks(other, {"weight": torch.eye(4).bool()})
    with torch.no_grad():
        other.weight[0, 1] = complex(float("nan"), -1.0)
    masks.apply()
    assert int(other.weight.count_nonzero()) == 4
    assert masks.verify() == 0
    assert not torch.view_as_real(other.weight)[0, 1].signbit().any()


def test_results_print_as_tables_or_one_line_each():
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    plan = prunus.slim(model, torch.zeros(1, 4), density=0.5)
    assert repr(plan) == "SlimPlan(groups=1, macs=(48, 24))"
    assert str(plan) == str(plan.report)
    pruned = prunus.prune(model, 0.5)
    assert repr(pruned) == "Pruned(density=0.5, tensors=2)"
    assert str(pruned) == str(pruned.report)
    assert pruned == replace(pruned)
    assert pruned != replace(pruned, skipped={})
    assert repr(pruned.masks) == "Masks(density=0.5, tensors=2)"
    assert repr(prunus.quantize(model, bits=2)) == "CodebookConstraint(tensors=2, centroids=8)"
