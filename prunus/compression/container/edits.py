"""Files of models that channels were removed from: the original module takes the shapes and attributes of the file."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from prunus.errors import CorruptFileError, ModelMismatchError
from prunus.pruning.structured.removal import set_attributes, set_data

Attributes = dict[str, dict[str, Any]]


def edits_of(header: Mapping[str, object]) -> Attributes | None:
    """The attributes of modules that a removal of channels has changed; None: no channels were removed.

    Raises CorruptFileError where the header has something else in their place.
    """
    made = header["made"]
    edits = made.get("edits") if isinstance(made, Mapping) else None
    if edits is None:
        return None
    if not isinstance(edits, dict) or not all(_is_values(values) for values in edits.values()):
        raise CorruptFileError("Expected integers by module and attribute as the edits of the header.")
    return edits


def _is_values(values: object) -> bool:
    return isinstance(values, dict) and all(map(_is_value, values.values()))


def _is_value(value: object) -> bool:
    """Whether a value is a positive integer, a list of such, or indices by dimension."""
    if isinstance(value, dict):
        return all(
            dim.isdecimal() and isinstance(own, list) and all(type(i) is int and i >= 0 for i in own)
            for dim, own in value.items()
        )
    return all(
        type(number) is int and number > 0 for number in (value if isinstance(value, list) else [value])
    )


def _fits(value: Any, old: object) -> bool:
    """Whether an edited value is no larger than the value of the module; indices are of a tensor."""
    if isinstance(value, dict):
        return isinstance(old, Tensor) and all(
            int(dim) < old.dim()
            and (len(kept) == old.shape[int(dim)] or max([len(kept), *kept]) < old.shape[int(dim)])
            for dim, kept in value.items()
        )
    numbers, old_numbers = (tuple(x) if isinstance(x, list | tuple) else (x,) for x in (value, old))
    return len(numbers) == len(old_numbers) and all(
        type(before) is int and after <= before for before, after in zip(old_numbers, numbers, strict=True)
    )


def apply_edits(path: str, model: nn.Module, edits: Attributes, state: Mapping[str, Tensor]) -> None:
    """Give a module the shapes of `state` and the attributes of `edits`; all is checked before anything is changed.

    Args:
        path: Name of the file, for errors.
        model: The original module, or one with these edits.
        edits: The value by module name and attribute.
        state: The tensors of the file, by name.

    Raises:
        ModelMismatchError: The module has no such attribute, or a tensor that is smaller than that in the file.
    """
    own = model.state_dict(keep_vars=True)
    modules = dict(model.named_modules())
    for name, values in edits.items():
        for attribute, value in values.items():
            old = getattr(modules.get(name), attribute, None)
            if not _fits(value, old):
                raise ModelMismatchError(
                    f"{path} changes {name}.{attribute} to {value}, but the {type(model).__name__} has {old!r}; pass "
                    "the original module."
                )
    resized = {}
    for name in own.keys() & state.keys():
        shape, smaller = tuple(own[name].shape), tuple(state[name].shape)
        if shape != smaller:
            if len(shape) != len(smaller) or any(b > a for a, b in zip(shape, smaller, strict=True)):
                raise ModelMismatchError(
                    f"{path} holds {name} of shape {list(smaller)}, which is no part of {list(shape)} in the "
                    f"{type(model).__name__}; pass the original module as it was built."
                )
            resized[name] = smaller
    for name, smaller in resized.items():
        own[name].grad = None
        set_data(own[name], own[name].new_empty(smaller))
    set_attributes(model, edits)
    model.edited_attributes = edits  # type: ignore[assignment]
