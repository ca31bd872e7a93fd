"""Laws of runs: what names them, what their folders keep, who may work on them, what a store says of them."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, make_dataclass, replace
from typing import ClassVar, Literal

import pytest
import torch

from prunus.errors import NoEffectWarning, NonFiniteError, SpecError, StoreError
from prunus.runs.directory import RunFolder
from prunus.runs.spec import apply_overrides, nondefault_settings, override_keys, run_id
from prunus.runs.store import Store
from prunus.seeds import make_generator
from prunus.training.recipe import Recipe

SHORT = Recipe(epochs=2, learning_rate=0.1, batch_size=60)


@dataclass(frozen=True)
class Dense:
    kind: ClassVar[str] = "dense"
    recipe: Recipe = SHORT
    seed: int = 0

    def needs(self):
        return ()

    def cost(self):
        return "small/60", 100.0


@dataclass(frozen=True)
class Ticket:
    kind: ClassVar[str] = "ticket"
    dense: Dense = Dense()
    rounds: int = 3
    density: float | Mapping[str, float] = 0.1
    nested: bool = True
    layers: tuple[int, ...] = ()
    rewind: int | None = None
    engine: Literal["one", "many"] = "one"
    extra: Mapping[str, float] | None = None
    masks_from: "Ticket | None" = None
    note: str = field(default="", metadata={"identity": False})

    def needs(self):
        return (self.dense,) if self.masks_from is None else (self.masks_from,)

    def cost(self):
        return "small/60", 100.0 * self.rounds


def other(value):
    """A value of the same sort that differs."""
    if isinstance(value, bool):
        return not value
    return {int: 1, float: 0.5, tuple: (1,), str: "many", type(None): 4}[type(value)]


def finished(store, spec, rows=(), **summary):
    folder = store.begin(spec, "test")
    for row in rows:
        folder.append(row)
    store.finish(folder, summary)
    return run_id(spec)


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "store")


# What names a run


def test_a_name_is_its_kind_and_sixteen_digits_of_its_settings():
    assert len({run_id(Ticket()), run_id(Dense()), run_id(Ticket(dense=Dense(seed=1)))}) == 3
    assert run_id(Ticket()).startswith("ticket-")
    assert len(run_id(Ticket())) == len("ticket-") + 16


def test_every_setting_counts_and_no_two_alike():
    plain = ("rounds", "nested", "layers", "rewind", "engine", "density")
    specs = [replace(Ticket(), **{name: other(getattr(Ticket(), name))}) for name in plain]
    specs += [Ticket(masks_from=Ticket()), Ticket(extra={}), Ticket(extra={"a": 1.0}), Ticket()]
    assert len({run_id(spec) for spec in specs}) == len(specs)


def test_notes_and_the_way_a_number_is_written_do_not_count():
    assert run_id(Ticket(note="mine")) == run_id(Ticket())
    assert run_id(Ticket(dense=Dense(Recipe(2, 0.1, 60, source="a paper")))) == run_id(Ticket())
    assert run_id(Ticket(density=1)) == run_id(Ticket(density=1.0)) != run_id(Ticket(density=True))
    assert run_id(Ticket(density={"a": 0.1, "b": 1})) == run_id(Ticket(density={"b": 1.0, "a": 0.1}))


def test_a_field_added_with_a_default_renames_nothing():
    old = [(f.name, f.type, f) for f in fields(Ticket)]
    new = [("before", int, field(default=0)), *old, ("depth", float, field(default=2.0))]
    longer = make_dataclass("Longer", new, bases=(Ticket,), frozen=True)
    for changes in ({}, {"rounds": 5}, {"masks_from": Ticket(rounds=4)}):
        assert run_id(longer(**changes)) == run_id(Ticket(**changes))
    assert run_id(longer(depth=3.0)) != run_id(Ticket())


@pytest.mark.parametrize("value", [[1], {1}, float("nan"), float("inf"), {1: 2}, object(), int, b"x"])
def test_what_cannot_be_a_setting(value):
    with pytest.raises(SpecError, match=r"Ticket\.layers is"):
        run_id(Ticket(layers=value))


def test_what_cannot_be_a_spec():
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

    for spec, said in (
        (Loose(), "not a frozen dataclass"),
        (Nameless(), "class variable `kind`"),
        (type("Bad", (Dense,), {"kind": "../up"})(), "class variable `kind`"),
        (3, "class variable `kind`"),
    ):
        with pytest.raises(SpecError, match=said):
            run_id(spec)
    with pytest.raises(SpecError, match="give each of them a class variable"):
        run_id(Either(Nameless()))


# Settings from text


def test_text_becomes_what_the_field_holds():
    given = {
        "rounds": "5",
        "dense.recipe.learning_rate": "1e-3",
        "dense.recipe.patience": "7",
        "dense.recipe.optimizer": "sgd",
        "nested": "no",
        "layers": "300, 100",
        "rewind": "12",
        "engine": "many",
        "density": "1",
    }
    changed = apply_overrides(Ticket(), given)
    recipe = replace(SHORT, learning_rate=1e-3, patience=7, optimizer="sgd")
    assert changed == Ticket(Dense(recipe), 5, 1.0, False, (300, 100), 12, "many")
    assert type(changed.density) is float
    assert apply_overrides(changed, {"rewind": "none", "layers": ""}) == replace(
        changed, rewind=None, layers=()
    )


def test_all_changes_are_made_at_once():
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


def test_keys_are_those_that_can_be_set():
    assert {"rounds", "density", "dense.seed", "dense.recipe.epochs"} <= set(override_keys(Ticket()))
    assert not {"note", "dense.recipe.source", "extra", "dense", "masks_from"} & set(override_keys(Ticket()))
    spec = Ticket(masks_from=Ticket(), extra={"a": 1.0})
    for key in override_keys(spec):
        if key.split(".")[-1] in ("optimizer", "lr_schedule", "penalty", "augmentation"):
            assert run_id(apply_overrides(spec, {key: "x"})) != run_id(spec)
        else:
            with pytest.raises(SpecError, match=f"{key} was set to 'x'"):
                apply_overrides(spec, {key: "x"})


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("epochs", "3", r"did you mean dense\.recipe\.epochs\?"),
        ("round", "3", r"did you mean rounds\?"),
        ("quite.other", "3", r"has no setting 'quite\.other'; There are: dense\.recipe\.epochs, "),
        ("dense.recipe", "3", r"a group of settings; set one of: dense\.recipe\.epochs"),
        ("extra", "a", "cannot be set from text .a mapping or none was expected.; set it in Python"),
        ("masks_from", "none", "cannot be set from text .a Ticket or none"),
        ("rounds", "3.0", "rounds was set to '3.0'; a whole number was expected"),
        ("density", "nan", "a number or a mapping was expected"),
        ("nested", "2", "true or false was expected"),
        ("layers", "3,x", "values with commas between, each a whole number was expected"),
        ("rewind", "", "a whole number or none was expected"),
        ("engine", "two", "one or many was expected"),
    ],
)
def test_a_wrong_setting_is_refused_in_a_sentence(key, value, said):
    with pytest.raises(SpecError, match=said):
        apply_overrides(Ticket(), {key: value})


def test_a_setting_that_changes_nothing_warns():
    with pytest.warns(NoEffectWarning, match="rounds=3 changes nothing"):
        assert apply_overrides(Ticket(), {"rounds": "3", "rewind": "4"}) == Ticket(rewind=4)


# The folder


@pytest.fixture
def folder(tmp_path):
    return RunFolder(tmp_path)


def test_a_line_torn_anywhere_is_as_if_it_had_not_been_written(folder):
    rows = [{"level": 0, "a": "ü\n"}, {"level": 1, "b": [1.5]}, {"level": 2}]
    ends = []
    for row in rows:
        folder.append(row)
        ends.append(folder.metrics_path.stat().st_size)
    content = folder.metrics_path.read_bytes()
    for cut in range(len(content)):
        folder.metrics_path.write_bytes(content[:cut])
        whole = sum(end <= cut for end in ends)
        assert folder.rows() == rows[:whole]
        if cut % 5 == 0:
            folder.append({"level": 9})
            assert folder.rows() == [*rows[:whole], {"level": 9}]
    folder.metrics_path.write_bytes(content + bytes(40) + b"\n")
    assert folder.rows() == rows
    folder.metrics_path.write_bytes(b"{\n" + content)
    with pytest.raises(StoreError, match="line 1 is not JSON"):
        folder.rows()


def test_a_level_done_again_takes_its_old_place(folder):
    for level, value in ((0, "a"), (1, "b"), (2, "c"), (1, "d")):
        folder.append({"level": level, "value": value})
    assert [row["value"] for row in folder.rows()] == ["a", "d", "c"]
    for half in (3, 6):
        folder.append_curve({"level": 1, "step": step, "loss": step / half} for step in range(half))
    assert [row["loss"] for row in folder.curve()] == [step / 6 for step in range(6)]
    folder.append_curve([{"free": 1}, {"free": 1}])
    assert len(folder.curve()) == 8


def test_only_plain_finite_values_are_appended(folder):
    folder.append({"level": 0})
    for value, error in ((float("nan"), NonFiniteError), (torch.ones(1), StoreError)):
        with pytest.raises(error, match=r"metrics\.jsonl"):
            folder.append({"level": 1, "loss": value})
    assert folder.rows() == [{"level": 0}]


def test_tensors_come_back_bit_for_bit_in_their_order(folder):
    base = torch.randn(4, 6, generator=make_generator(0, "w"))
    tensors = {
        "z": base,
        "half": base[:, ::2].half(),
        "turned": base.T,
        "scalar": torch.tensor(7),
        "none": torch.zeros(0, 3),
        "special": torch.tensor([-0.0, float("nan"), float("inf")]),
        "a": torch.ones(3, dtype=torch.bool),
    }
    folder.put("start", tensors, {"step": 3})
    back = folder.get("start")
    assert list(back) == list(tensors)
    for name, tensor in tensors.items():
        assert (back[name].dtype, back[name].shape) == (tensor.dtype, tensor.shape)
        assert back[name].numpy().tobytes() == tensor.contiguous().numpy().tobytes()
    assert folder.note("start") == {"step": 3}
    folder.put("start", {"b": base})
    assert (list(folder.get("start")), folder.note("start")) == (["b"], {})
    assert folder.has("start")
    folder.drop("start")
    folder.drop("start")
    assert not folder.has("start")
    assert [path.name for path in folder.path.iterdir()] == []
    with pytest.raises(StoreError, match="has no tensors called 'start'"):
        folder.get("start")


def test_masks_come_back_and_take_a_bit_a_weight(folder):
    shapes = {"fc1.weight": (300, 784), "fc2.weight": (100, 300), "fc3.weight": (10, 100)}
    draw = make_generator(0, "masks")
    masks = {name: torch.rand(shape, generator=draw) < 0.2 for name, shape in shapes.items()}
    folder.put_masks("level-3", masks, {"level": 3})
    size = (folder.path / "level-3.safetensors").stat().st_size
    weights = sum(mask.numel() for mask in masks.values())
    assert weights == 266_200
    assert weights / 8 <= size <= 1.01 * weights / 8
    back = folder.get_masks("level-3")
    assert list(back) == list(masks)
    assert all(
        torch.equal(back[name], mask) and back[name].dtype == torch.bool for name, mask in masks.items()
    )
    assert folder.note("level-3") == {"level": 3}
    folder.put_masks(
        "odd", {"a": torch.ones(3, dtype=torch.bool), "b": torch.zeros(()), "c": torch.ones(2, 5)}
    )
    assert {name: mask.tolist() for name, mask in folder.get_masks("odd").items()} == {
        "a": [True] * 3,
        "b": False,
        "c": [[True] * 5] * 2,
    }
    folder.put("weights", {"a": torch.ones(2)})
    for wrong, name in ((folder.get, "odd"), (folder.get_masks, "weights")):
        with pytest.raises(StoreError, match="holds"):
            wrong(name)


@pytest.mark.parametrize("name", ["", "../up", "a/b", ".hidden", "a b"])
def test_names_that_are_no_file_names(folder, name):
    with pytest.raises(StoreError, match="cannot be stored as"):
        folder.put(name, {"a": torch.ones(1)})


# The store


def test_a_run_is_begun_once_and_finished_once(store):
    spec = Dense()
    folder = store.begin(spec, "test")
    assert store.begin(spec, "test") is None
    assert Store(store.path).begin(spec, "test") is None
    assert not store.done(folder.id)
    folder.append({"level": 0, "invariants": {"passed": True, "checks": {"exact": True}}})
    worked_on = folder.path.stat().st_ino
    store.finish(folder, {"best": 0.5})
    assert folder.path.stat().st_ino == worked_on, "made final by a copy, which a reader can see half of"
    assert store.done(run_id(spec))
    assert store.begin(spec, "test") is None
    (run,) = store.runs()
    assert (run.id, run.kind, run.status, run.invariants) == (run_id(spec), "dense", "done", "passed")
    assert (run.summary, run.attempts, run.cost) == ({"best": 0.5}, 1, ("small/60", 100.0))
    assert store.folder(run.id).rows() == [folder.rows()[0]]
    environment = store.folder(run.id).environment()
    assert {"prunus", "commit", "python", "torch", "numpy", "cpu", "threads", "device"} <= environment.keys()
    assert environment["engine"] == "test"
    names = {path.name for path in store.folder(run.id).path.iterdir()}
    assert names == {"spec.json", "environment.json", "metrics.jsonl", "result.json"}
    for written in (folder, store.folder(run.id), store.look(run.id)):
        with pytest.raises(StoreError, match="opened to be read"):
            written.append({"level": 1})
    with pytest.raises(StoreError, match="not begun by this process"):
        store.finish(folder, {})


def test_a_failed_run_is_free_and_its_work_is_kept(store):
    folder = store.begin(Ticket(), "test")
    folder.append({"level": 0})
    folder.put("weights", {"a": torch.ones(2)})
    store.fail(folder, ValueError("too hot"))
    (run,) = store.runs()
    assert (run.status, run.error, run.attempts) == ("failed", "ValueError: too hot", 1)
    with pytest.raises(StoreError, match="is not finished"):
        store.folder(run.id)
    again = store.begin(Ticket(), "another")
    assert again.rows() == [{"level": 0}]
    assert torch.equal(again.get("weights")["a"], torch.ones(2))
    assert again.environment()["engine"] == "another"
    assert [earlier["engine"] for earlier in again.environment()["earlier"]] == ["test"]
    assert store.runs()[0].status == "running"
    store.finish(again, {})
    assert store.runs()[0].attempts == 2


def test_the_receipt_of_a_run_names_what_does_not_hold(store):
    rows = [
        {"level": 0, "invariants": {"passed": True, "checks": {"exact": True}}},
        {"level": 1, "invariants": {"passed": False, "checks": {"exact": True, "nested": False}}},
    ]
    finished(store, Ticket(), rows)
    assert store.runs()[0].invariants == "failed: nested (level 1)"
    finished(store, Dense(), [{"level": 0}])
    assert store.runs()[0].invariants is None


def test_a_folder_of_another_spec_is_refused(store):
    folder = store.begin(Ticket(), "test")
    store.fail(folder, "stop")
    stored = folder.spec()
    folder.write_spec({**stored, "settings": {"rounds": 9}})
    with pytest.raises(StoreError, match="of another spec"):
        store.begin(Ticket(), "test")
    folder.write_spec({**stored, "complete": {**stored["complete"], "rounds": 2}})
    with pytest.raises(StoreError, match="when the default of rounds was 2, and it is 3 now"):
        store.begin(Ticket(), "test")
    del stored["complete"]["rounds"]  # a field that is newer than the run
    folder.write_spec(stored)
    assert store.begin(Ticket(), "test") is not None


def test_what_experiments_asked_for(store):
    runs = [({"seed": seed}, Dense(seed=seed)) for seed in (0, 1, 1)]
    store.request("lecun1990", "smoke", runs, {"epochs": "3"})
    store.request("han2015.tables", "full", runs[:1], {})
    finished(store, Dense())
    assert [request.name for request in store.requests()] == ["han2015.tables.full", "lecun1990.smoke"]
    request = store.requests()[1]
    assert request.settings == {"epochs": "3"}
    assert [(entry.label, entry.id) for entry in request.entries] == [(a, run_id(b)) for a, b in runs]
    assert store.runs()[0].experiments == ("han2015.tables.full", "lecun1990.smoke")
    again = store.request("lecun1990", "smoke", runs, {"epochs": "3"})
    assert (again, len(store.requests())) == (request, 2)
    other = store.request("lecun1990", "smoke", [], {})
    assert store.requests()[1:] == [request, other]
    assert store.runs()[0].experiments == ("han2015.tables.full", "lecun1990.smoke")
    store.request("lecun1990", "smoke", runs, {"epochs": "3"})
    assert [one.settings for one in store.requests()[1:]] == [{}, {"epochs": "3"}]
    with pytest.raises(StoreError, match="cannot be stored as"):
        store.request("../x", "smoke", [], {})


def test_a_dense_run_belongs_to_the_experiments_of_what_was_made_of_it(store):
    finished(store, Dense())
    finished(store, Ticket())
    store.request("zhou2019.zeros", "smoke", [({}, Ticket())], {})
    store.request("other", "smoke", [({}, Dense(seed=1))], {})
    assert [run.experiments for run in store.runs()] == [("zhou2019.zeros.smoke",)] * 2


def test_what_is_removed_and_what_is_not(store):
    dense, ticket = finished(store, Dense()), finished(store, Ticket())
    with pytest.raises(StoreError, match=f"was read by the finished {ticket}"):
        store.remove(dense)
    going = store.begin(Ticket(rounds=4), "test")
    with pytest.raises(StoreError, match="is under way"):
        store.remove(going.id, force=True)
    with pytest.raises(
        StoreError, match=f"{ticket} and is read by {going.id}, under way; remove or stop those"
    ):
        store.remove(dense)
    store.remove(ticket)
    with pytest.raises(
        StoreError, match=f"{dense} is read by {going.id}, under way; stop that first, or force"
    ):
        store.remove(dense)
    store.fail(going, "stop")
    store.remove(going.id)
    ticket = finished(store, Ticket())
    store.remove(dense, force=True)
    assert [run.id for run in store.runs()] == [ticket]
    assert store.begin(Dense(), "test") is not None
    store.remove(ticket)
    assert not store.done(ticket)
    with pytest.raises(StoreError, match="has no run"):
        store.remove(ticket)
    assert not list(store.path.glob("removed-*"))


def test_a_run_is_found_by_its_beginning(store):
    ids = [finished(store, Dense(seed=seed)) for seed in range(3)]
    for id in ids:
        assert store.find(id) == store.find(id[:14]) == store.find(id.removeprefix("dense-")[:8]) == id
    with pytest.raises(StoreError, match="'dense' could be dense-"):
        store.find("dense")
    with pytest.raises(StoreError, match="has no run 'ticket'"):
        store.find("ticket")


def test_reading_makes_no_store(tmp_path):
    with pytest.raises(StoreError, match="no store of runs"):
        Store(tmp_path / "typo", create=False)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_made_by_hand_is_left_out_with_a_warning(store):
    finished(store, Dense())
    (store.path / "runs" / "strange").mkdir()
    with pytest.warns(UserWarning, match="strange is left out"):
        assert len(store.runs()) == 1


def test_what_is_stored_is_plain_json(store):
    id = finished(store, Ticket(layers=(3, 4), masks_from=Ticket()), [{"level": 0, "density": 1.0}])
    spec = json.loads((store.path / "runs" / id / "spec.json").read_text())
    assert spec["id"] == id
    assert spec["settings"] == nondefault_settings(Ticket(layers=(3, 4), masks_from=Ticket()))
    assert spec["complete"]["rounds"] == 3
    assert spec["needs"] == [run_id(Ticket())]
