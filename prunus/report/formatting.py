"""Numbers and settings as text."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from prunus.training.evaluation_totals import Evaluation

UNSET = (None, "", "none", 0)
"""Values of fields that are left out."""


def format_density(value: float) -> str:
    """Format a density with its sparsity, both with as many decimal places as the smaller needs.

    >>> format_density(0.0387), format_density(1.0), format_density(0.00004), format_density(0.0)
    ('3.87 % (96.13 %)', '100 % (0 %)', '0.0040 % (99.9960 %)', '0 % (100 %)')
    """
    return "{} ({})".format(*format_density_pair(value))


def format_density_pair(value: float) -> tuple[str, str]:
    """Format a density and its sparsity so that the printed numbers add up to 100 %."""
    if value in (0.0, 1.0):
        return f"{100 * value:.0f} %", f"{100 - 100 * value:.0f} %"
    places = max(2, 1 - math.floor(math.log10(100 * min(value, 1 - value))))
    density = round(100 * value, places)
    return f"{density:.{places}f} %", f"{100 - density:.{places}f} %"


def format_ratio(value: float) -> str:
    """Format a ratio with about three significant digits and a multiplication sign.

    >>> format_ratio(53.249), format_ratio(0.5), format_ratio(1204.7)
    ('53.2×', '0.50×', '1,205×')
    """
    places = 0 if value >= 1000 else 1 if value >= 1 else 2
    return f"{value:,.{places}f}×"


def format_bits(value: float) -> str:
    """Format a number of bits with at most one decimal place; zero is a dash.

    >>> format_bits(5.0), format_bits(4.137), format_bits(0.0)
    ('5', '4.1', '–')
    """
    return f"{value:.1f}".removesuffix(".0") if value else "–"


def format_error(result: "Evaluation") -> str:
    """Format the error in percent with the decimal places that a single example can change.

    >>> from prunus.training.evaluation_totals import Evaluation
    >>> format_error(Evaluation(0.1, 98.4, 10_000)), format_error(Evaluation(0.1, 100 * 271 / 300, 300))
    ('1.60 %', '9.7 %')
    """
    places = max(1, math.ceil(math.log10(max(result.n, 1))) - 2)
    return f"{result.error:.{places}f} %"


def quality_name(result: "Evaluation") -> str:
    """What `format_quality` shows: "metric" where there is one, else "error" where labels are classes, else "loss"."""
    if result.metric is not None:
        return "metric"
    return "loss" if math.isnan(result.accuracy) else "error"


def format_quality(result: "Evaluation") -> str:
    """Format the metric, else the error, else the loss of an evaluation.

    >>> from prunus.training.evaluation_totals import Evaluation
    >>> format_quality(Evaluation(0.25, math.nan, 60)), format_quality(Evaluation(0.25, math.nan, 60, metric=-0.5))
    ('0.25', '-0.5')
    """
    if quality_name(result) == "error":
        return format_error(result)
    return f"{result.loss if result.metric is None else result.metric:.4g}"


def format_duration(seconds: float) -> str:
    """Format a duration in seconds, minutes or hours.

    >>> format_duration(0.83), format_duration(59.7), format_duration(133), format_duration(7260)
    ('0.8 s', '60 s', '2 min 13 s', '2 h 1 min')
    """
    rounded = round(seconds)
    if rounded < 120:
        return f"{seconds:.1f} s" if seconds < 10 else f"{rounded} s"
    if rounded < 7200:
        return f"{rounded // 60} min {rounded % 60} s"
    return f"{rounded // 3600} h {rounded % 3600 // 60} min"


def format_settings(value: object) -> str:
    """Format any setting; of a dataclass, the source and fields without a value are left out, of a function its name.

    >>> from prunus.training.recipe import Recipe
    >>> format_settings(Recipe(epochs=1, learning_rate=0.1, batch_size=60, source="a paper"))
    'epochs 1, learning rate 0.1, batch size 60, optimizer adam, lr schedule constant'
    >>> format_settings({"conv": 8, "linear": 5}), format_settings(True), format_settings(None)
    ('conv 8, linear 5', 'yes', '–')
    """
    if is_dataclass(value):
        items = {
            f.name.replace("_", " "): getattr(value, f.name) for f in fields(value) if f.name != "source"
        }
        return format_settings({name: item for name, item in items.items() if item not in UNSET})
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {format_settings(item)}" for key, item in value.items()) or "–"
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return ", ".join(format_settings(item) for item in value) or "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value in (None, ""):
        return "–"
    return f"{value:g}" if isinstance(value, float) else getattr(value, "__name__", str(value))
