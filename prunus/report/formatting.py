"""Numbers and settings as a reader wants them."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass

from prunus.training.evaluate import Evaluation

UNSET = (None, "", "none", 0)


def format_int(value: int) -> str:
    """With commas between thousands.

    >>> format_int(1066440)
    '1,066,440'
    """
    return f"{value:,}"


def pluralize(number: int, noun: str) -> str:
    """A number of things.

    >>> pluralize(1, "weight"), pluralize(8232, "weight")
    ('1 weight', '8,232 weights')
    """
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def format_density(value: float) -> str:
    """A density with its sparsity beside it, both to as many places as the smaller needs.

    >>> format_density(0.0387), format_density(1.0), format_density(0.00004), format_density(0.0)
    ('3.87 % (96.13 %)', '100 % (0 %)', '0.0040 % (99.9960 %)', '0 % (100 %)')
    """
    kept, holes = format_density_pair(value)
    return f"{kept} ({holes})"


def format_density_pair(value: float) -> tuple[str, str]:
    """A density and its sparsity, which add up to 100 % as they are printed."""
    if value in (0.0, 1.0):
        return f"{100 * value:.0f} %", f"{100 - 100 * value:.0f} %"
    places = max(2, 1 - math.floor(math.log10(100 * min(value, 1 - value))))
    kept = round(100 * value, places)
    return f"{kept:.{places}f} %", f"{100 - kept:.{places}f} %"


def format_ratio(value: float) -> str:
    """Three figures and the times sign.

    >>> format_ratio(53.249), format_ratio(0.5), format_ratio(1204.7)
    ('53.2×', '0.50×', '1,205×')
    """
    places = 0 if value >= 1000 else 1 if value >= 1 else 2
    return f"{value:,.{places}f}×"


def format_bits(value: float) -> str:
    """At most one place; a dash where nothing is stored.

    >>> format_bits(5.0), format_bits(4.137), format_bits(0.0)
    ('5', '4.1', '–')
    """
    return f"{value:.1f}".removesuffix(".0") if value else "–"


def format_error(result: Evaluation) -> str:
    """The error in percent, to the place that one example can change.

    >>> format_error(Evaluation(0.1, 98.4, 10_000)), format_error(Evaluation(0.1, 100 * 271 / 300, 300))
    ('1.60 %', '9.7 %')
    """
    return f"{result.error:.{_places(result.n)}f} %"


def _places(n: int) -> int:
    return max(1, math.ceil(math.log10(max(n, 1))) - 2)


def format_duration(seconds: float) -> str:
    """Seconds below two minutes, then minutes, then hours.

    >>> format_duration(0.83), format_duration(59.7), format_duration(133), format_duration(7260)
    ('0.8 s', '60 s', '2 min 13 s', '2 h 1 min')
    """
    whole = round(seconds)
    if whole < 120:
        return f"{seconds:.1f} s" if seconds < 10 else f"{whole} s"
    if whole < 7200:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def format_settings(value: object) -> str:
    """Any setting in words; of a recipe's, what is not set and where it comes from are left out.

    >>> from prunus.training.recipe import Recipe
    >>> format_settings(Recipe(epochs=1, learning_rate=0.1, batch_size=60, source="a paper"))
    'epochs 1, learning rate 0.1, batch size 60, optimizer adam, lr schedule constant'
    >>> format_settings({"conv": 8, "linear": 5}), format_settings(True), format_settings(None)
    ('conv 8, linear 5', 'yes', '–')
    """
    if is_dataclass(value):
        own = {f.name.replace("_", " "): getattr(value, f.name) for f in fields(value) if f.name != "source"}
        return format_settings({name: item for name, item in own.items() if item not in UNSET})
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {format_settings(item)}" for key, item in value.items()) or "–"
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return ", ".join(format_settings(item) for item in value) or "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else "–" if value in (None, "") else str(value)
