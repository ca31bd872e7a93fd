"""The settings of a frozen dataclass as plain values, and their canonical JSON.

A field with metadata {"identity": False} is a note and never counts. A field holds a finite number, text, true, false,
none, a tuple, a mapping by name, or a frozen dataclass of these. The settings of a nested dataclass with a class
variable `kind` include it.
"""

import json
import math
from collections.abc import Callable, Hashable, Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from functools import cache
from typing import Any, cast, get_args, get_type_hints

from prunus.errors import SpecError


def nondefault_settings(spec: object) -> dict[str, Any]:
    """Return the settings of `spec` that differ from the defaults of its class, nested, as plain values.

    >>> from prunus.training.recipe import Recipe
    >>> nondefault_settings(Recipe(epochs=3, learning_rate=0.1, batch_size=60, momentum=0.0, source="a paper"))
    {'epochs': 3, 'learning_rate': 0.1, 'batch_size': 60}
    """
    return _settings(spec, complete=False)


def all_settings(spec: object) -> dict[str, Any]:
    """Return all settings of `spec`, those that equal their defaults included."""
    return _settings(spec, complete=True)


def canonical_json(value: object) -> str:
    """Return `value` as canonical JSON: sorted keys, no spaces, exact floats, 1.0 as 1."""
    return json.dumps(_spelled(value), sort_keys=True, separators=(",", ":"), allow_nan=False)


def setting_fields(cls: type) -> list[Field[Any]]:
    """Return the fields of a dataclass that decide what is computed. Raises SpecError if it is not a frozen one."""
    if not is_dataclass(cls) or not cls.__dataclass_params__.frozen:  # type: ignore[attr-defined]
        raise SpecError(f"{cls.__name__} is not a frozen dataclass, so it cannot be part of a spec.")
    return [field for field in fields(cls) if field.init and field.metadata.get("identity", True)]


def kind_of(cls: type) -> str | None:
    """Return the `kind` of a class if it is a class variable, else None."""
    kind = getattr(cls, "kind", None)
    return kind if isinstance(kind, str) and all(field.name != "kind" for field in fields(cls)) else None


hints_of: Callable[[type], dict[str, Any]] = cache(get_type_hints)
"""Return the types of the fields of a dataclass, by name."""


def flatten_settings(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested settings by dotted name.

    Args:
        nested: Settings by name; the value of a group of settings is a mapping.
        prefix: The text before each name; ends with "." unless it is empty.

    Returns:
        The settings of all groups in one dict. A list or an empty mapping is one setting.

    >>> flatten_settings({"a": {"b": 1, "c": [2]}, "d": 3})
    {'a.b': 1, 'a.c': [2], 'd': 3}
    """
    settings: dict[str, Any] = {}
    for key, value in nested.items():
        if isinstance(value, Mapping) and value:
            settings |= flatten_settings(value, f"{prefix}{key}.")
        else:
            settings[f"{prefix}{key}"] = value
    return settings


def _settings(spec: object, *, complete: bool) -> dict[str, Any]:
    cls: type = type(spec)
    settings: dict[str, Any] = {}
    for field in setting_fields(cls):
        value = _plain(getattr(spec, field.name), cls, field.name, complete)
        default = None if complete else _default(cls, field.name)
        if default is None or default != canonical_json(value):
            settings[field.name] = value
    return settings


@cache
def _default(cls: Hashable, name: str) -> str | None:
    """Return the default of a field as canonical JSON; None if it has none."""
    field = cls.__dataclass_fields__[name]  # type: ignore[attr-defined]
    if field.default_factory is not MISSING:
        default = field.default_factory()
    elif field.default is not MISSING:
        default = field.default
    else:
        return None
    return canonical_json(_plain(default, cast("type", cls), name, False))


def _plain(value: object, cls: type, name: str, complete: bool) -> Any:
    """Return `value` as JSON can represent it, a nested dataclass with its kind."""
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float) and math.isfinite(value):
        return value
    if isinstance(value, tuple):
        return [_plain(item, cls, name, complete) for item in value]
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {key: _plain(item, cls, name, complete) for key, item in value.items()}
    if is_dataclass(value) and not isinstance(value, type):
        kind = kind_of(type(value))
        if kind is None and _kindless(hints_of(cls)[name]) != {type(value)}:
            raise SpecError(
                f"{cls.__name__}.{name} holds a {type(value).__name__}, but its annotation does not say so, or "
                "allows others: give each of them a class variable `kind`, or two runs could have one name."
            )
        return {**({} if kind is None else {"kind": kind}), **_settings(value, complete=complete)}
    if callable(value):
        raise SpecError(
            f"Expected {cls.__name__}.{name} as a setting that can be stored, got {value!r}; name a function of yours "
            "as 'package.module:name', where this setting takes one."
        )
    raise SpecError(
        f"{cls.__name__}.{name} is {value!r}; a setting is a finite number, text, true, false, none, a tuple, a "
        "mapping by name, or a frozen dataclass of these."
    )


def _kindless(hint: Any) -> set[type]:
    """Return the dataclasses without a kind that an annotation allows."""
    if isinstance(hint, type) and is_dataclass(hint):
        return {hint} if kind_of(hint) is None else set()
    return set().union(*(_kindless(part) for part in get_args(hint)))


def _spelled(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _spelled(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_spelled(item) for item in value]
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return int(value)
    return value
