"""Functions that are called during long work are checked before the work, by every function that takes one."""

import inspect
from functools import partial

import pytest
from torch import nn

import prunus
from prunus.errors import SpecError
from prunus.experiments import EXPERIMENTS
from prunus.experiments.running import run_experiment

CALLBACKS = ("progress", "report")


@pytest.fixture(scope="module")
def calls(small_digits):
    model, recipe = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), prunus.Recipe(1, 0.01, 60)
    return {
        "train": partial(prunus.train, model, small_digits, recipe),
        "evaluate": partial(prunus.evaluate, model, small_digits.test),
        "prune": partial(prunus.prune, model, 0.5),
        "prune_and_retrain": partial(prunus.prune_and_retrain, model, [0.5], [recipe], small_digits),
        "slim_and_retrain": partial(
            prunus.slim_and_retrain, model, small_digits.train.inputs[:2], [0.5], [recipe]
        ),
        "sensitivity": partial(prunus.sensitivity, model, small_digits.test),
        "compress": partial(prunus.compress, model, data=small_digits),
        "lottery": partial(prunus.lottery, lambda: model, small_digits),
        "load_data": partial(prunus.load_data, "digits"),
    }


def test_what_is_not_a_function_is_refused_before_the_work_by_every_function_of_prunus(calls):
    functions = {
        name: [key for key in CALLBACKS if key in inspect.signature(getattr(prunus, name)).parameters]
        for name in prunus.__all__
        if inspect.isfunction(getattr(prunus, name))
    }
    functions = {name: keys for name, keys in functions.items() if keys}
    assert set(functions) == set(calls)
    for name, keys in functions.items():
        for key in keys:
            with pytest.raises(SpecError, match=f"Expected a function for {key}, got True"):
                calls[name](**{key: True})


def test_an_experiment_refuses_what_is_not_a_function_before_it_makes_a_store(tmp_path):
    for key in ("progress", "log"):
        with pytest.raises(SpecError, match=f"Expected a function for {key}, got 3"):
            run_experiment(
                EXPERIMENTS["hassibi1993.xor"], "smoke", tmp_path / "out", store=tmp_path / "s", **{key: 3}
            )
    assert not list(tmp_path.iterdir())
