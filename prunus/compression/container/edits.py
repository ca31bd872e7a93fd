"""Files of models that channels were removed from: the original module takes the shapes and attributes of the file."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from prunus.errors import CorruptFileError, ModelMismatchError
from prunus.pruning.structured.edits import removed_prefixes, set_attributes, set_data

EditedAttributes = dict[str, dict[str, Any]]
TensorShapes = Mapping[str, tuple[int, ...]]


def edits_of(header: Mapping[str, object]) -> EditedAttributes | None:
    """The attributes of modules that a removal of channels has changed; None: no channels were removed.

    Raises CorruptFileError where the header has something else in their place.
    """
    made = header["made"]
    edits = made.get("edits") if isinstance(made, Mapping) else None
    if edits is None:
        return None
    if not isinstance(edits, dict) or not all(_is_values(values) for values in edits.values()):
        raise CorruptFileError(
            "Expected integers by module and attribute, or null, as the edits of the header."
        )
    return edits


def _is_values(values: object) -> bool:
    return isinstance(values, dict) and all(map(_is_value, values.values()))


def _is_value(value: object) -> bool:
    """Whether a value is a positive integer, a list of such, indices by dimension, or None for a removed layer."""
    if value is None:
        return True
    if isinstance(value, dict):
        return all(
            dim.isdecimal()
            and len(dim) <= 2
            and isinstance(indices, list)
            and all(type(i) is int and i >= 0 for i in indices)
            for dim, indices in value.items()
        )
    numbers = value if isinstance(value, list) else [value]
    return all(type(number) is int and number > 0 for number in numbers)


def _fits(value: Any, old: object) -> bool:
    """Whether an edited value is no larger than the value of the module; indices are of a tensor, None of a layer."""
    if value is None:
        return isinstance(old, nn.Module)
    if isinstance(value, dict):
        return isinstance(old, Tensor) and all(
            int(dim) < old.dim()
            and (len(indices) == old.shape[int(dim)] or max([len(indices), *indices]) < old.shape[int(dim)])
            for dim, indices in value.items()
        )
    numbers, old_numbers = (tuple(x) if isinstance(x, list | tuple) else (x,) for x in (value, old))
    return len(numbers) == len(old_numbers) and all(
        type(before) is int and after <= before for before, after in zip(old_numbers, numbers, strict=True)
    )


def check_edits(
    path: str, model: nn.Module, edits: EditedAttributes | None, shapes: TensorShapes
) -> dict[str, tuple[int, ...]]:
    """The tensors of a module that become smaller, with their shapes in the file; nothing is changed.

    Args:
        path: Name of the file, for errors.
        model: The original module, or one with these edits.
        edits: The value by module name and attribute; None: no tensor becomes smaller.
        shapes: The shapes of the tensors of the file, by name.

    Returns:
        The new shapes, by name.

    Raises:
        ModelMismatchError: The module has no such attribute, or a tensor that is smaller than that in the file.
    """
    modules, state = dict(model.named_modules()), remaining_state(model, edits)
    for name, values in (edits or {}).items():
        for attribute, value in values.items():
            old = getattr(modules.get(name), attribute, None)
            if not _fits(value, old):
                raise ModelMismatchError(
                    f"{path} changes {name}.{attribute} to {value}, but the {type(model).__name__} has {old!r}; pass "
                    "the original module."
                )
    smaller = {}
    for name in state.keys() & shapes.keys() if edits is not None else ():
        old_shape, shape = tuple(getattr(state[name], "shape", ())), tuple(shapes[name])
        if old_shape == shape:
            continue
        if len(old_shape) != len(shape) or any(new > old for old, new in zip(old_shape, shape, strict=True)):
            raise ModelMismatchError(
                f"{path} holds {name} of shape {list(shape)}, which is not a part of {list(old_shape)} in the "
                f"{type(model).__name__}; pass the original module."
            )
        smaller[name] = shape
    return smaller


def remaining_state(model: nn.Module, edits: EditedAttributes | None) -> dict[str, Any]:
    """The tensors of a module by name, without those of layers that the edits remove.

    Args:
        model: The original module, or one with these edits.
        edits: The value by module name and attribute; None: no layer is removed.

    Returns:
        The state_dict, with the parameters themselves.
    """
    removed = removed_prefixes(edits or {})
    state = model.state_dict(keep_vars=True)
    return {name: value for name, value in state.items() if not name.startswith(removed)}


def apply_edits(model: nn.Module, edits: EditedAttributes | None, smaller: TensorShapes) -> None:
    """Give a module the shapes and attributes that `check_edits` has checked.

    Args:
        model: The module.
        edits: The value by module name and attribute; None: nothing is changed.
        smaller: The new shapes of tensors, by name.
    """
    if edits is None:
        return
    state = remaining_state(model, edits)
    for name, shape in smaller.items():
        state[name].grad = None
        set_data(state[name], state[name].new_empty(shape))
    set_attributes(model, edits)
    model.edited_attributes = edits  # type: ignore[assignment]
