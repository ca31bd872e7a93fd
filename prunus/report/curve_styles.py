"""What a curve looks like: one name has one color, one marker and one kind of line in every figure."""

import zlib
from collections.abc import Sequence
from typing import NamedTuple

PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#6b4c9a", "#7f7f7f")
"""Okabe and Ito's colors, which the color-blind tell apart; purple and gray for their black and yellow."""
MARKERS = "osD^vPX*"
LINES = ("-", "--", ":")
SHIFTS = (0, 3, 5)
"""How far the markers are turned for each kind of line, so that one color has a marker for each."""
FAMILY = len(PALETTE) * len(LINES)
"""Places that color and line alone tell apart. The next as many have other markers."""

FAMILIES = (
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
"""Names that figures share, by the figure they meet in, each with its place. Kin have one color and unlike lines.
Those of criteria and actions leave out the colors of "random" and "dense", which may stand beside any of them."""

STYLES = {
    name: FAMILY * family + place for family, names in enumerate(FAMILIES) for name, place in names.items()
}
"""The place of every fixed name; others get one by a checksum of the name."""


class CurveStyle(NamedTuple):
    """A color, a marker and a kind of line, the last two as matplotlib spells them."""

    color: str
    marker: str
    line: str


def style_at(place: int) -> CurveStyle:
    """The look at a place: the color changes first, then the line, then the marker.

    >>> style_at(0), style_at(8)
    (CurveStyle(color='#0072b2', marker='o', line='-'), CurveStyle(color='#0072b2', marker='^', line='--'))
    """
    family, line = place // FAMILY, place // len(PALETTE) % len(LINES)
    marker = (place + SHIFTS[line] + family) % len(MARKERS)
    return CurveStyle(PALETTE[place % len(PALETTE)], MARKERS[marker], LINES[line])


def assign_styles(names: Sequence[str]) -> dict[str, CurveStyle]:
    """The look of each name: a fixed name's never changes, another's gives way to those it meets.

    Names that are not fixed differ from all others of the figure in color or line while there are at most 24,
    and in color, line or marker while there are at most 192.

    >>> assign_styles(["L2, iterative"])
    {'L2, iterative': CurveStyle(color='#d55e00', marker='s', line='-')}
    """
    places = {name: STYLES[name] for name in names if name in STYLES}
    for name in sorted(set(names) - set(places)):
        places[name] = _free(zlib.crc32(name.encode()), set(places.values()))
    return {name: style_at(places[name]) for name in names}


def _free(wish: int, taken: set[int]) -> int:
    """The first place that is free, from the wished color on: solid lines first, gray after all colors."""
    gray = len(PALETTE) - 1
    colors = [*((wish + i) % gray for i in range(gray)), gray]
    places = [row + color for row in range(0, FAMILY * len(MARKERS), len(PALETTE)) for color in colors]
    apart = [place for place in places[:FAMILY] if place not in {p % FAMILY for p in taken}]
    return next(iter(apart or [place for place in places if place not in taken]), places[0])
