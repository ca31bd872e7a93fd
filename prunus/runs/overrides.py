"""Change settings of a spec from text: `--set dense.recipe.epochs=3`."""

import math
import types
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import is_dataclass, replace
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

from prunus.errors import NoEffectWarning, SpecError
from prunus.registry import closest_names
from prunus.runs.settings import all_settings, canonical_json, flatten_settings, hints_of, setting_fields

T = TypeVar("T")

WORDS = {"true": True, "yes": True, "false": False, "no": False}


def setting_names(spec: object) -> list[str]:
    """Return the dotted names of all settings that text can change."""
    return [name for name, hint in _leaf_types(spec).items() if _is_settable(hint)]


def apply_overrides(
    spec: T, changes: Mapping[str, str], *, prefixes: Sequence[str] = ("",), other_names: Sequence[str] = ()
) -> T:
    """Return `spec` with settings changed from text, each read as the type of its field requires.

    Tuples are comma-separated; "none" is None if a field may be None. All changes are made at once. A change that has
    no effect gives a NoEffectWarning.

    Args:
        spec: A frozen dataclass; not changed.
        changes: The text of each setting by its dotted name.
        prefixes: Put before a name, in order, until there is such a setting: with "dense.recipe." among them,
            `epochs` is `dense.recipe.epochs`.
        other_names: Names that the caller accepts in addition to these settings, to be listed in errors.

    Returns:
        The changed spec.

    Raises:
        SpecError: A name is unknown, names a group of settings or one that text cannot express, or two names are one
            setting; or a text is not of the type of its setting.

    >>> from prunus.training.recipe import LENET_300_100
    >>> apply_overrides(LENET_300_100, {"epochs": "3", "patience": "5"}).epochs
    3
    """
    hints = _leaf_types(spec)
    values: dict[str, Any] = {}
    keys: dict[str, str] = {}
    for key, text in changes.items():
        name = _full_name(spec, key, prefixes, other_names)
        if name in keys:
            raise SpecError(f"{keys[name]} and {key} are one setting, {name}; set it once.")
        keys[name] = key
        try:
            values[name] = _parse(text, hints[name])
        except ValueError:
            raise SpecError(f"Expected {_describe_type(hints[name])} for {key}, got {text!r}.") from None
    changed = _replace_nested(spec, values)
    before, after = (flatten_settings(all_settings(candidate)) for candidate in (spec, changed))
    for name, key in keys.items():
        if canonical_json(before.get(name)) == canonical_json(after.get(name)):
            message = f"{key}={changes[key]} has no effect: it already has this value."
            warnings.warn(message, NoEffectWarning, stacklevel=2)
    return changed


def _full_name(spec: object, key: str, prefixes: Sequence[str], other_names: Sequence[str]) -> str:
    """Return the dotted name that `key` stands for. Raises SpecError if it stands for no setting."""
    hints, known = _leaf_types(spec), setting_names(spec)
    candidates = [prefix + key for prefix in prefixes]
    if matches := [name for name in candidates if name in known]:
        return matches[0]
    for name in candidates:
        if name in hints:
            raise SpecError(
                f"{key} cannot be set from text ({_describe_type(hints[name])}); set it in Python."
            )
        if members := [candidate for candidate in known if candidate.startswith(f"{name}.")]:
            raise SpecError(f"{key} is a group of settings; set one of: {', '.join(members)}.")
    if similar := _similar_names(key, known, prefixes, other_names):
        raise SpecError(f"Unknown setting {key!r}; did you mean {' or '.join(map(repr, similar))}?")
    raise SpecError(f"Unknown setting {key!r}; available: {', '.join([*other_names, *known])}.")


def _similar_names(
    key: str, known: Sequence[str], prefixes: Sequence[str], other_names: Sequence[str]
) -> list[str]:
    """Return at most three names like `key`: of the same last part, beginning with it, with its initials, or close."""
    short_names = [min((name.removeprefix(prefix) for prefix in prefixes), key=len) for name in known]
    names = list(dict.fromkeys([*other_names, *short_names]))
    last = {name: name.split(".")[-1] for name in names}
    last_part = key.split(".")[-1]
    tests: tuple[Callable[[str], bool], ...] = (
        lambda part: part == last_part,
        lambda part: "".join(word[:1] for word in part.split("_")) == last_part,
        lambda part: len(last_part) > 1 and part.startswith(last_part),
    )
    alike = [name for is_alike in tests for name in names if is_alike(last[name])]
    return list(dict.fromkeys([*alike, *closest_names(key, names, limit=3)]))[:3]


def _leaf_types(spec: Any, prefix: str = "") -> dict[str, Any]:
    """Return the type of each setting by its dotted name, those of nested dataclasses included."""
    types_by_name: dict[str, Any] = {}
    for name in (field.name for field in setting_fields(type(spec))):
        value, full_name = getattr(spec, name), f"{prefix}{name}"
        if is_dataclass(value):
            types_by_name |= _leaf_types(value, f"{full_name}.")
        else:
            types_by_name[full_name] = hints_of(type(spec))[name]
    return types_by_name


def _replace_nested(spec: T, values: Mapping[str, Any]) -> T:
    """Make all changes at once, so that no intermediate state has to be valid."""
    direct = {name: value for name, value in values.items() if "." not in name}
    for group in dict.fromkeys(name.partition(".")[0] for name in values if "." in name):
        inside = {n.partition(".")[2]: v for n, v in values.items() if n.startswith(f"{group}.")}
        direct[group] = _replace_nested(getattr(spec, group), inside)
    return replace(spec, **direct)  # type: ignore[type-var]


def _options(hint: Any) -> list[Any]:
    """Return the members of a union; a list of the type itself if it is none."""
    if get_origin(hint) in (Union, types.UnionType):
        return [option for part in get_args(hint) for option in _options(part)]
    return [hint]


def _is_settable(hint: Any) -> bool:
    return any(_is_simple(option) for option in _options(hint) if option is not type(None))


def _is_simple(option: Any) -> bool:
    if get_origin(option) is tuple:
        return all(_is_settable(part) for part in get_args(option) if part is not Ellipsis)
    return option in (bool, int, float, str, type(None)) or get_origin(option) is Literal


_NAMES: dict[Any, str] = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}
_NAMES[type(None)] = "none"
_ORDER: tuple[Any, ...] = (type(None), Literal, bool, int, float, tuple, str)
"""The types that a text is read as, in the order in which they are tried."""


def _parse(text: str, hint: Any) -> Any:
    """Return `text` as the first type that it can be read as. Raises ValueError if there is none."""
    options = [option for option in _options(hint) if _is_simple(option)]
    for option in sorted(options, key=lambda o: _ORDER.index(o if o in _ORDER else get_origin(o))):
        with suppress(ValueError):
            return _parse_one(text, option)
    raise ValueError(text)


def _parse_one(text: str, option: Any) -> Any:
    if option is str:
        return text
    text = text.strip()
    if option is type(None) and text.lower() == "none":
        return None
    if option is bool and text.lower() in WORDS:
        return WORDS[text.lower()]
    if option is int:
        return int(text)
    if option is float and math.isfinite(float(text)):
        return float(text)
    if get_origin(option) is Literal and text in map(str, get_args(option)):
        return next(value for value in get_args(option) if str(value) == text)
    if get_origin(option) is tuple:
        return _parse_tuple([part.strip() for part in text.split(",")] if text else [], get_args(option))
    raise ValueError(text)


def _parse_tuple(parts: list[str], hints: tuple[Any, ...]) -> tuple[Any, ...]:
    if hints[-1] is Ellipsis:
        hints = hints[:1] * len(parts)
    if len(parts) != len(hints):
        raise ValueError(parts)
    return tuple(_parse(part, hint) for part, hint in zip(parts, hints, strict=True))


def _describe_type(hint: Any) -> str:
    """Describe a type."""
    return " or ".join(_NAMES.get(option) or _describe_group(option) for option in _options(hint))


def _describe_group(option: Any) -> str:
    arguments = [part for part in get_args(option) if part is not Ellipsis]
    if get_origin(option) is Literal:
        return " or ".join(map(str, arguments))
    if get_origin(option) is tuple:
        each = "each " if Ellipsis in get_args(option) else ""
        return f"comma-separated values, {each}{', '.join(_describe_type(part) for part in arguments)}"
    if isinstance(option, type) and is_dataclass(option):
        return f"a {option.__name__}"
    return "a mapping"
