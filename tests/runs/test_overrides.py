"""Settings from text: which names there are, how a text is read, and what is said of a wrong one."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "helpers"))
from dataclasses import dataclass, replace

import pytest
from specs import SHORT, Baseline, Ticket

from prunus.errors import NoEffectWarning, SpecError
from prunus.runs.overrides import apply_overrides, setting_names
from prunus.runs.spec import run_id


def test_apply_overrides_reads_text_as_the_type_of_the_field():
    texts = {
        "rounds": "5",
        "dense.recipe.learning_rate": "1e-3",
        "dense.recipe.patience": "7",
        "dense.recipe.optimizer": "sgd",
        "nested": "no",
        "layers": "300, 100",
        "rewind": "12",
        "amount": "many",
        "density": "1",
    }
    changed = apply_overrides(Ticket(), texts)
    recipe = replace(SHORT, learning_rate=1e-3, patience=7, optimizer="sgd")
    assert changed == Ticket(Baseline(recipe), 5, 1.0, False, (300, 100), 12, "many")
    assert type(changed.density) is float
    assert apply_overrides(changed, {"rewind": "none", "layers": ""}) == replace(
        changed, rewind=None, layers=()
    )


def test_apply_overrides_makes_all_changes_at_once():
    @dataclass(frozen=True)
    class Ordered:
        low: int = 0
        high: int = 1

        def __post_init__(self):
            if self.low >= self.high:
                raise SpecError("low must be below high.")

    assert apply_overrides(Ordered(), {"low": "5", "high": "9"}) == Ordered(5, 9)
    with pytest.raises(SpecError, match="low must be"):
        apply_overrides(Ordered(), {"low": "5"})


def test_setting_names_are_those_that_text_can_change():
    assert {"rounds", "density", "dense.seed", "dense.recipe.epochs"} <= set(setting_names(Ticket()))
    assert not {"note", "dense.recipe.source", "extra", "dense", "masks_from"} & set(setting_names(Ticket()))
    spec = Ticket(masks_from=Ticket(), extra={"a": 1.0})
    for key in setting_names(spec):
        names = ("optimizer", "lr_schedule", "penalty", "augmentation", "autocast", "criterion")
        if key.split(".")[-1] in names:
            assert run_id(apply_overrides(spec, {key: "x"})) != run_id(spec)
        else:
            with pytest.raises(SpecError, match=f"for {key}, got 'x'"):
                apply_overrides(spec, {key: "x"})


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("epochs", "3", r"Unknown setting 'epochs'; did you mean 'dense\.recipe\.epochs'"),
        ("lr", "3", r"did you mean 'dense\.recipe\.learning_rate' or 'dense\.recipe\.lr_schedule'\?"),
        ("round", "3", r"did you mean 'rounds'"),
        ("quite.other", "3", r"Unknown setting 'quite\.other'; available: dense\.recipe\.epochs, "),
        ("dense.recipe", "3", r"a group of settings; set one of: dense\.recipe\.epochs"),
        ("extra", "a", "cannot be set from text .a mapping or none.; set it in Python"),
        ("masks_from", "none", "cannot be set from text .a Ticket or none"),
        ("rounds", "3.0", "Expected a whole number for rounds, got '3.0'"),
        ("density", "nan", "Expected a number or a mapping for density"),
        ("nested", "2", "Expected true or false"),
        ("layers", "3,x", "Expected comma-separated values, each a whole number"),
        ("rewind", "", "Expected a whole number or none"),
        ("amount", "two", "Expected one or many for amount"),
    ],
)
def test_apply_overrides_refuses_a_wrong_setting(key, value, message):
    with pytest.raises(SpecError, match=message):
        apply_overrides(Ticket(), {key: value})


def test_apply_overrides_warns_of_a_setting_without_effect():
    with pytest.warns(NoEffectWarning, match="rounds=3 has no effect"):
        assert apply_overrides(Ticket(), {"rounds": "3", "rewind": "4"}) == Ticket(rewind=4)


PREFIXES = ("", "dense.", "dense.recipe.")


def test_apply_overrides_searches_prefixes_in_order():
    changed = apply_overrides(Ticket(), {"epochs": "7", "seed": "1", "rounds": "2"}, prefixes=PREFIXES)
    assert changed == Ticket(Baseline(replace(SHORT, epochs=7), 1), 2)
    with pytest.raises(SpecError, match=r"epochs and dense\.recipe\.epochs are one setting"):
        apply_overrides(Ticket(), {"epochs": "7", "dense.recipe.epochs": "7"}, prefixes=PREFIXES)


@pytest.mark.parametrize(
    ("key", "similar"), [("lr", "'learning_rate'"), ("epoch", "'epochs'"), ("nettwork", "'network'")]
)
def test_apply_overrides_suggests_names_without_their_prefix(key, similar):
    with pytest.raises(SpecError, match=f"Unknown setting {key!r}; did you mean {similar}"):
        apply_overrides(Ticket(), {key: "3"}, prefixes=PREFIXES, other_names=("network",))
