"""Every experiment at its smoke size, on real data: it runs, stores its runs, decides its claims, and draws."""

import json

import pytest

from prunus.errors import SpecError
from prunus.experiments import EXPERIMENTS, PAPERS, experiments_of
from prunus.experiments.running import draw_experiment, run_experiment
from prunus.runs.store import Store


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """One store for all experiments, which share what they can."""
    return tmp_path_factory.mktemp("experiments") / "store"


@pytest.mark.slow
@pytest.mark.parametrize("name", EXPERIMENTS)
def test_experiment_runs_and_is_drawn_again_from_its_store(name, tmp_path, store):
    lines: list[str] = []
    experiment, out = EXPERIMENTS[name], tmp_path / "out"
    result = run_experiment(experiment, "smoke", out, store=store, seed=1, log=lines.append)
    assert lines
    assert all(path.exists() and path.stat().st_size for path in result.files)
    content = json.loads((out / f"{name}.json").read_text())
    assert content["evidence"]["seeds"] == [1]
    assert content["evidence"]["torch"]
    assert content["rows"] == list(result.content["rows"]) != []
    assert content["table"] == list(result.table) != []
    assert content["question"].endswith("?")
    assert len(content["verdicts"]) >= len(experiment.claims)
    runs, opened = {run.id: run for run in Store(store).runs()}, Store(store)
    (request,) = (request for request in opened.requests() if request.experiment == name)
    assert {runs[entry.id].state for entry in request.entries} == {"done"}
    lines.clear()
    again = run_experiment(experiment, "smoke", out, store=store, seed=1, log=lines.append)
    assert " 0 to do" in " ".join(lines)
    redrawn = draw_experiment(experiment, opened, tmp_path / "drawn")
    assert redrawn.table == again.table == result.table
    assert redrawn.content["rows"] == result.content["rows"]
    for file in redrawn.files:
        if file.suffix == ".csv":
            assert file.read_bytes() == (out / file.name).read_bytes()


@pytest.mark.parametrize("replicates", [0, -1])
def test_an_experiment_has_at_least_one_replicate(replicates, tmp_path):
    with pytest.raises(SpecError, match=f"at least 1 replicate, got {replicates}"):
        run_experiment(
            EXPERIMENTS["hassibi1993.xor"], "smoke", tmp_path, store=tmp_path / "store", replicates=replicates
        )
    assert not (tmp_path / "store").exists()


def test_papers_stand_for_all_of_their_experiments():
    assert [name for paper in PAPERS for name in experiments_of(paper)] == [
        n for n in EXPERIMENTS if "." in n
    ]
    assert set(EXPERIMENTS) - {name for paper in PAPERS for name in experiments_of(paper)} == {"one_shot"}
    assert experiments_of("one_shot") == ["one_shot"]
