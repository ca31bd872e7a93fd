"""Identity of runs: the kind, the settings that differ from their defaults, and the source of user functions."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "helpers"))
from dataclasses import dataclass, field, fields, make_dataclass, replace
from typing import ClassVar

import pytest
from specs import Baseline, Ticket

from prunus.errors import SpecError, StoreError, UnknownNameError
from prunus.registry import source_digest
from prunus.runs.record import describe_run
from prunus.runs.spec import run_id
from prunus.training.recipe import Recipe


def other(value):
    """A value of the same sort that differs."""
    if isinstance(value, bool):
        return not value
    return {int: 1, float: 0.5, tuple: (1,), str: "many", type(None): 4}[type(value)]


def test_run_id_is_the_kind_and_sixteen_hex_digits():
    assert len({run_id(Ticket()), run_id(Baseline()), run_id(Ticket(dense=Baseline(seed=1)))}) == 3
    assert run_id(Ticket()).startswith("ticket-")
    assert len(run_id(Ticket())) == len("ticket-") + 16


def test_run_id_differs_for_every_setting():
    plain = ("rounds", "nested", "layers", "rewind", "amount", "density")
    specs = [replace(Ticket(), **{name: other(getattr(Ticket(), name))}) for name in plain]
    specs += [Ticket(masks_from=Ticket()), Ticket(extra={}), Ticket(extra={"a": 1.0}), Ticket()]
    assert len({run_id(spec) for spec in specs}) == len(specs)


def test_run_id_ignores_notes_and_the_spelling_of_numbers():
    assert run_id(Ticket(note="mine")) == run_id(Ticket())
    assert run_id(Ticket(dense=Baseline(Recipe(2, 0.1, 60, source="a paper")))) == run_id(Ticket())
    assert run_id(Ticket(density=1)) == run_id(Ticket(density=1.0)) != run_id(Ticket(density=True))
    assert run_id(Ticket(density={"a": 0.1, "b": 1})) == run_id(Ticket(density={"b": 1.0, "a": 0.1}))


def test_run_id_is_unchanged_by_a_new_field_with_a_default():
    old = [(f.name, f.type, f) for f in fields(Ticket)]
    new = [("before", int, field(default=0)), *old, ("depth", float, field(default=2.0))]
    longer = make_dataclass("Longer", new, bases=(Ticket,), frozen=True)
    for changes in ({}, {"rounds": 5}, {"masks_from": Ticket(rounds=4)}):
        assert run_id(longer(**changes)) == run_id(Ticket(**changes))
    assert run_id(longer(depth=3.0)) != run_id(Ticket())


@pytest.mark.parametrize("value", [[1], {1}, float("nan"), float("inf"), {1: 2}, object(), int, b"x"])
def test_run_id_refuses_values_that_cannot_be_stored(value):
    with pytest.raises(SpecError, match=r"Ticket\.layers (is|as a setting)"):
        run_id(Ticket(layers=value))


def test_run_id_refuses_objects_that_are_no_specs():
    @dataclass
    class Loose:
        kind: ClassVar[str] = "loose"

    @dataclass(frozen=True)
    class Nameless:
        seed: int = 0

    @dataclass(frozen=True)
    class Either:
        kind: ClassVar[str] = "either"
        part: Recipe | Nameless

    for spec, message in (
        (Loose(), "not a frozen dataclass"),
        (Nameless(), "class variable `kind`"),
        (type("Bad", (Baseline,), {"kind": "../up"})(), "class variable `kind`"),
        (type("Plain", (), {"kind": "plain"})(), "not a frozen dataclass"),
        (3, "not a frozen dataclass"),
    ):
        with pytest.raises(SpecError, match=message):
            run_id(spec)
    with pytest.raises(SpecError, match="give each of them a class variable"):
        run_id(Either(Nameless()))


@pytest.fixture
def module(tmp_path, monkeypatch):
    """A module of the user that imports a helper, which imports another."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "kit").mkdir()
    files = {
        "mine.py": "import math, torch\nfrom kit import helper\ndef score(statistics): return helper.sign()\n",
        "kit/__init__.py": "",
        "kit/helper.py": "def sign():\n    from .deep import SIGN\n    return SIGN\n",
        "kit/deep.py": "SIGN = -1\n",
        "kit/unused.py": "X = 1\n",
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    return tmp_path


@pytest.mark.parametrize("name", ["mine.py", "kit/__init__.py", "kit/helper.py", "kit/deep.py"])
def test_run_id_changes_with_every_local_file_that_a_user_function_imports(name, module):
    before = run_id(Ticket(criterion="mine:score"))
    dependent = run_id(Ticket(masks_from=Ticket(criterion="mine:score")))
    assert run_id(Ticket(criterion="mine:score")) == before
    with (module / name).open("a") as file:
        file.write("# edited\n")
    assert run_id(Ticket(criterion="mine:score")) != before
    assert run_id(Ticket(masks_from=Ticket(criterion="mine:score"))) != dependent


def test_run_id_ignores_files_that_a_user_function_does_not_import(module, tmp_path_factory):
    before = run_id(Ticket(criterion="mine:score"))
    (module / "kit/unused.py").write_text("X = 2\n")
    assert run_id(Ticket(criterion="mine:score")) == before
    assert describe_run(Ticket(criterion="mine:score")).code == {"mine:score": source_digest("mine:score")}


def test_source_digest_does_not_depend_on_the_folder(module, tmp_path_factory, monkeypatch):
    digest, other = source_digest("mine:score"), tmp_path_factory.mktemp("other")
    (module / "mine.py").rename(other / "mine.py")
    (module / "kit").rename(other / "kit")
    monkeypatch.chdir(other)
    monkeypatch.syspath_prepend(str(other))
    assert source_digest("mine:score") == digest


def test_source_digest_refuses_a_file_that_was_changed_after_its_import(module, monkeypatch):
    source_digest("mine:score")
    import mine

    monkeypatch.delitem(sys.modules, "mine")
    sys.modules["mine"] = mine
    source_digest("mine:score")
    (module / "mine.py").write_text("def score(statistics): return 2\n")
    with pytest.raises(SpecError, match=r"mine\.py was changed after it was imported"):
        source_digest("mine:score")
    del sys.modules["mine"]
    assert source_digest("mine:score")


def test_source_digest_of_an_unknown_module_is_refused(module):
    for reference, text in (("nothing:score", "no module 'nothing'"), ("mine", "of the form")):
        with pytest.raises(UnknownNameError, match=text):
            source_digest(reference)


def test_a_spec_whose_source_changed_since_it_was_planned_is_refused(module):
    spec = Ticket(criterion="mine:score")
    run_id(spec)
    (module / "kit/deep.py").write_text("SIGN = 1\n")
    with pytest.raises(StoreError, match=r"mine:score has changed since the run .* was planned"):
        describe_run(spec)
