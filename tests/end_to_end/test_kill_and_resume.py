"""Every experiment, killed five times and resumed: the numbers of an undisturbed run, and nothing done twice."""

import json

import pytest
from killing import run_until

from prunus.experiments import EXPERIMENTS
from prunus.runs.store import Store

NUM_KILLS = 5
DIGITS = {"data": "digits", "examples": 90}
TICKET = {**DIGITS, "model": "tiny_networks:mlp", "epochs": 4, "batch_size": 30, "eval_every": 4, "rounds": 3}
SUPERMASK = {key: value for key, value in TICKET.items() if key != "rounds"} | {"recipe.epochs": 2}
DELETION = {
    **DIGITS,
    "model": "tiny_networks:mlp",
    "deleted": "0.2,0.5",
    "curvature_examples": 30,
    "epochs": 2,
}
COMPRESSED = {**DIGITS, "model": "tiny_networks:lenet"}
STRUCTURE = {**DIGITS, "model": "tiny_networks:normed_convolutions", "batch_size": 30, "recipe.epochs": 2}
SETTINGS = {
    "lecun1990": DELETION,
    "hassibi1993.xor": {"networks": 4},
    "hassibi1993.monks": {"hidden": 1, "num_weights": 20, "starts": 2},
    "lecun1990.generalization": {**COMPRESSED, "examples": 800},
    "speed.filters_and_weights": {**COMPRESSED, "densities": 0.5, "repeats": 1},
    "families.compression": {**COMPRESSED, "densities": 0.3, "bits": 4, "ranks": 4, "widths": 0.06},
    "families.biases": COMPRESSED,
    "families.activations": {**COMPRESSED, "examples": 90},
    "one_shot": {
        **DIGITS, "model": "tiny_networks:normed", "weights": "", "calibration_examples": 30, "test_examples": 50,
    },
    "han2015.tradeoff": COMPRESSED,
    "han2015.tables": COMPRESSED,
    "han2016": COMPRESSED,
    "liu2019.tickets": {**TICKET, "exclude": "5.weight"},
    "liu2019.filters": STRUCTURE,
    "liu2019.structures": STRUCTURE,
    "zhou2019.supermasks": SUPERMASK,
    "zhou2019.criterion_supermasks": SUPERMASK,
}  # fmt: skip
"""Small settings of an experiment, or of all of a paper; of the others, TICKET."""


def command(name, folder):
    settings = SETTINGS.get(name) or SETTINGS.get(name.partition(".")[0]) or TICKET
    options = ["--smoke", "--executor=inline", f"--store={folder / 'store'}", f"--out={folder / 'out'}"]
    return ["run", name, *options, *(f"--set={key}={value}" for key, value in settings.items())]


def finished_work(store):
    """The files of runs that finished work has written, each with its inode and, of records and rows, its content.

    Work that is done again would replace its file by another one.
    """
    files = {}
    for run in (store / "runs").glob("*"):  # none where the first write was killed
        rows = run / "rows.jsonl"
        lines = rows.read_bytes().splitlines() if rows.exists() else []
        levels = [json.loads(line).get("level") for line in lines if line.endswith(b"}")]
        masks = [run / f"masks-{level:02d}.safetensors" for level in levels if isinstance(level, int)]
        is_done = (run / "run.json").exists() and b'"state": "done"' in (run / "run.json").read_bytes()
        files |= dict.fromkeys([*masks, *run.glob("copy-*.safetensors")], b"")
        files |= {path: path.read_bytes() for path in (rows, *[run / "run.json"] * is_done) if path.exists()}
    return {path: (path.stat().st_ino, content) for path, content in files.items() if path.exists()}


def check_kept(before, now):
    for path, (file, content) in before.items():
        assert now[path][0] == file, f"{path} was written again"
        assert now[path][1].startswith(content.rpartition(b"\n")[0]), f"{path} lost finished work"


def numbers(folder, name):
    content = json.loads((folder / "out" / f"{name}.json").read_text())
    if name.startswith("speed."):  # times differ from run to run
        return [{key: row[key] for key in ("curve", "MACs %", "run")} for row in content["rows"]]
    tables = {path.name: path.read_bytes() for path in (folder / "out").glob("*.csv")}
    return {key: content[key] for key in ("rows", "table", "verdicts")}, tables


@pytest.mark.slow
@pytest.mark.parametrize("name", EXPERIMENTS)
def test_experiment_survives_five_kills(name, tmp_path):
    complete, resumed = tmp_path / "whole", tmp_path / "resumed"
    for folder in (complete, resumed):
        folder.mkdir()
    log = tmp_path / "log"
    assert run_until(command(name, complete), complete / "store" / "runs", None, log) == 0, log.read_text()
    num_writes = int(log.read_text().splitlines()[-1])
    store, finished = resumed / "store", {}
    for kill in range(NUM_KILLS):
        last = num_writes // (NUM_KILLS + 1) + kill  # the kinds of writes differ
        assert run_until(command(name, resumed), store / "runs", last, log) == -9, log.read_text()
        now = finished_work(store)
        check_kept(finished, now)
        finished = now
    assert run_until(command(name, resumed), store / "runs", None, log) == 0, log.read_text()
    check_kept(finished, finished_work(store))
    assert numbers(resumed, name) == numbers(complete, name)
    runs = Store(store).runs()
    assert {run.id for run in runs} == {run.id for run in Store(complete / "store").runs()}
    assert {run.state for run in runs} == {"done"}
    assert len(runs) < sum(run.attempts for run in runs) <= len(runs) + NUM_KILLS
