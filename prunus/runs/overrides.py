"""Change settings of a spec from text: `--set dense.recipe.epochs=3`."""

import math
import types
import warnings
from collections.abc import Mapping
from dataclasses import is_dataclass, replace
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

from prunus.errors import NoEffectWarning, SpecError
from prunus.registry import closest_names
from prunus.runs.settings import all_settings, canonical_json, hints_of, setting_fields

T = TypeVar("T")

WORDS = {"true": True, "yes": True, "false": False, "no": False}


def override_keys(spec: object) -> list[str]:
    """The dotted names of all settings that text can change."""
    return [name for name, hint in _leaves(spec).items() if _settable(hint)]


def apply_overrides(spec: T, changes: Mapping[str, str]) -> T:
    """`spec` with settings changed, each by its dotted name, its text read as the field's type says.

    Tuples are comma-separated; "none" is None where a field may be None. Warns with NoEffectWarning of a change
    that changes nothing.

    >>> from prunus.training.recipe import LENET_300_100
    >>> apply_overrides(LENET_300_100, {"epochs": "3", "patience": "5"}).epochs
    3

    Raises SpecError for a name that is unknown or stands for something text cannot say, and for a text that is
    not of the field's type.
    """
    leaves = _leaves(spec)
    values = {}
    for name, text in changes.items():
        if name not in leaves or not _settable(leaves[name]):
            raise SpecError(_why_not(spec, name))
        try:
            values[name] = _parse(text, leaves[name])
        except ValueError:
            raise SpecError(f"{name} was set to {text!r}; {_named(leaves[name])} was expected.") from None
    changed = _changed(spec, values)
    for name, text in changes.items():
        if canonical_json(_at(all_settings(spec), name)) == canonical_json(_at(all_settings(changed), name)):
            warnings.warn(f"{name}={text} changes nothing: it was so already.", NoEffectWarning, stacklevel=2)
    return changed


def _leaves(spec: Any, prefix: str = "") -> dict[str, Any]:
    """The type of each setting, by dotted name; nested dataclasses are opened."""
    found: dict[str, Any] = {}
    hints = hints_of(type(spec))
    for field in setting_fields(type(spec)):
        value = getattr(spec, field.name)
        if is_dataclass(value):
            found |= _leaves(value, f"{prefix}{field.name}.")
        else:
            found[prefix + field.name] = hints[field.name]
    return found


def _changed(spec: T, values: Mapping[str, Any]) -> T:
    """All changes at once, so that no state in between has to be valid."""
    own = {name: value for name, value in values.items() if "." not in name}
    for group in dict.fromkeys(name.partition(".")[0] for name in values if "." in name):
        inside = {n.partition(".")[2]: v for n, v in values.items() if n.startswith(f"{group}.")}
        own[group] = _changed(getattr(spec, group), inside)
    return replace(spec, **own)  # type: ignore[type-var]


def _at(nested: Any, name: str) -> Any:
    for part in name.split("."):
        nested = nested[part]
    return nested


def _why_not(spec: object, name: str) -> str:
    leaves, known = _leaves(spec), override_keys(spec)
    if name in leaves:
        return f"{name} cannot be set from text ({_named(leaves[name])} was expected); set it in Python."
    inside = [key for key in known if key.startswith(f"{name}.")]
    if inside:
        return f"{name} is a group of settings; set one of: {', '.join(inside)}."
    last = [key for key in known if key.split(".")[-1] == name.split(".")[-1]]
    near = list(dict.fromkeys([*last, *closest_names(name, known, limit=3)]))
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    return f"{type(spec).__name__} has no setting {name!r}; {hint}There are: {', '.join(known)}."


def _options(hint: Any) -> list[Any]:
    """The members of a union; anything else is alone."""
    if get_origin(hint) in (Union, types.UnionType):
        return [option for part in get_args(hint) for option in _options(part)]
    return [hint]


def _settable(hint: Any) -> bool:
    return any(_simple(option) for option in _options(hint) if option is not type(None))


def _simple(option: Any) -> bool:
    if get_origin(option) is tuple:
        return all(_settable(part) for part in get_args(option) if part is not Ellipsis)
    return option in (bool, int, float, str, type(None)) or get_origin(option) is Literal


_NAMES: dict[Any, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    type(None): "none",
}
_ORDER: tuple[Any, ...] = (type(None), Literal, bool, int, float, tuple, str)


def _parse(text: str, hint: Any) -> Any:
    """`text` as the first of the types it can be read as; ValueError where there is none."""
    options = [option for option in _options(hint) if _simple(option)]
    for option in sorted(options, key=_place):
        try:
            return _parse_one(text, option)
        except ValueError:
            continue
    raise ValueError(text)


def _place(option: Any) -> int:
    origin = get_origin(option)
    return _ORDER.index(option if origin is None else origin)


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


def _parse_tuple(parts: list[str], wanted: tuple[Any, ...]) -> tuple[Any, ...]:
    if wanted[-1] is Ellipsis:
        wanted = wanted[:1] * len(parts)
    if len(parts) != len(wanted):
        raise ValueError(parts)
    return tuple(_parse(part, hint) for part, hint in zip(parts, wanted, strict=True))


def _named(hint: Any) -> str:
    """A type in words."""
    return " or ".join(_NAMES.get(option) or _named_group(option) for option in _options(hint))


def _named_group(option: Any) -> str:
    arguments = [part for part in get_args(option) if part is not Ellipsis]
    if get_origin(option) is Literal:
        return " or ".join(map(str, arguments))
    if get_origin(option) is tuple:
        many = "each " if Ellipsis in get_args(option) else ""
        return f"values with commas between, {many}{', '.join(_named(part) for part in arguments)}"
    if isinstance(option, type) and is_dataclass(option):
        return f"a {option.__name__}"
    return "a mapping"
