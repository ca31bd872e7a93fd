"""The styles of curves: a name has the same color, marker and line style in every figure."""

import zlib
from collections.abc import Sequence
from typing import NamedTuple

PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#6b4c9a", "#7f7f7f")
"""The color-blind-safe palette of Okabe and Ito, with purple and gray in place of its black and yellow."""
MARKERS = "osD^vPX*"
LINES = ("-", "--", ":")
SHIFTS = (0, 3, 5)
"""Rotation of the markers for each line style, so that curves of one color have different markers."""
NUM_COLOR_LINES = len(PALETTE) * len(LINES)
"""Combinations of color and line style; further style numbers have other markers."""

GROUPS = (
    {
        "magnitude": 0,
        "L2, iterative": 1,
        "L2, retraining": 2,
        "L2, no retraining": 3,
        "L1, retraining": 4,
        "L1, no retraining": 5,
    },
    {"pruning": 0, "pruning and sharing": 1, "sharing": 4},
    {"linear": 0, "density": 1, "density^(1/3)": 2, "random": 3, "optimal": 6},
    {
        "winning ticket": 0,
        "random reinitialization": 1,
        "one-shot ticket": 2,
        "iterative ticket": 4,
        "one-shot, random reinitialization": 9,
        "dense": 7,
    },
    {
        "large_final": 0,
        "small_final": 8,
        "large_init": 2,
        "small_init": 10,
        "large_init_large_final": 4,
        "small_init_small_final": 12,
        "magnitude_increase": 1,
        "movement": 9,
        "large_final_same_sign": 5,
        "large_final_diff_sign": 13,
        "magnitude_increase_same_sign": 6,
        "magnitude_increase_diff_sign": 14,
        "snip": 16,
        "gradient": 17,
        "grasp": 18,
        "synflow": 20,
    },
    {
        "rewind": 0,
        "finetune": 2,
        "rewind_learning_rate": 5,
        "reinitialize": 1,
        "signed_reinitialize": 9,
        "permute": 4,
        "signed_permute": 12,
        "reshuffle": 6,
        "signed_reshuffle": 14,
        "signed_constant": 8,
        "random_signed_constant": 10,
    },
    {
        "zero": 0,
        "freeze_init": 1,
        "freeze_init_zero": 2,
        "freeze_init_zero_reshuffled": 10,
        "freeze_init_zero_reversed": 18,
        "freeze_init_zero_all": 4,
        "train": 5,
    },
    {"rewind weights": 0, "fine-tune": 2, "rewind learning rate": 5},
)
"""Names with fixed styles, in groups that appear in one figure. Related names share a color and differ in the line.
Criteria and actions do not use the colors of "random" and "dense", which may appear together with any of them."""

STYLES = {
    name: NUM_COLOR_LINES * group + number
    for group, names in enumerate(GROUPS)
    for name, number in names.items()
}
"""The style number of every fixed name; that of another name is a checksum of the name."""


class CurveStyle(NamedTuple):
    """A color, and a marker and a line style as matplotlib names them."""

    color: str
    marker: str
    line: str


def numbered_style(number: int) -> CurveStyle:
    """The style with a number: the color changes first, then the line, then the marker.

    >>> numbered_style(8)
    CurveStyle(color='#0072b2', marker='^', line='--')
    """
    group, line = number // NUM_COLOR_LINES, number // len(PALETTE) % len(LINES)
    marker = (number + SHIFTS[line] + group) % len(MARKERS)
    return CurveStyle(PALETTE[number % len(PALETTE)], MARKERS[marker], LINES[line])


def assign_styles(names: Sequence[str]) -> dict[str, CurveStyle]:
    """Assign a style to each name: a fixed name always has the same style, another name one that is free.

    Up to 24 names without fixed styles differ from all others in color or line, and up to 192 in color, line or marker.

    >>> assign_styles(["L2, iterative"])
    {'L2, iterative': CurveStyle(color='#d55e00', marker='s', line='-')}
    """
    numbers = {name: STYLES[name] for name in names if name in STYLES}
    for name in sorted(set(names) - set(numbers)):
        numbers[name] = _free_number(zlib.crc32(name.encode()), set(numbers.values()))
    return {name: numbered_style(numbers[name]) for name in names}


def _free_number(preferred: int, used: set[int]) -> int:
    """The first free style number from the preferred color on: solid lines first, gray after all other colors."""
    gray = len(PALETTE) - 1
    colors = [*((preferred + i) % gray for i in range(gray)), gray]
    numbers = [
        row + color for row in range(0, NUM_COLOR_LINES * len(MARKERS), len(PALETTE)) for color in colors
    ]
    distinct = [n for n in numbers[:NUM_COLOR_LINES] if n not in {u % NUM_COLOR_LINES for u in used}]
    return next(iter(distinct or [n for n in numbers if n not in used]), numbers[0])
