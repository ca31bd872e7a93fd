"""`prunus run` and `prunus figure` on experiments whose runs live in a store, on a small network and few images."""

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from prunus.experiments import EXPERIMENTS
from prunus.runs.store import Store

HELPERS = Path(__file__).parents[1] / "helpers"
PATHS = os.pathsep.join([str(HELPERS), str(Path(__file__).parents[2])])
NAME = "zhou2019.zeros"
SMALL = {
    "model": "tiny_networks:mlp",
    "data": "digits",
    "examples": "85",
    "epochs": "2",
    "batch_size": "25",
    "eval_every": "3",
    "rounds": "4",
}


def sets(**changes: str) -> list[str]:
    settings = {**SMALL, **changes}
    return [f"--set={key}={value}" for key, value in settings.items()]


@pytest.fixture(autouse=True)
def _helpers(monkeypatch):
    monkeypatch.syspath_prepend(str(HELPERS))


@pytest.fixture
def run(run_cli, monkeypatch, tmp_path):
    """`prunus` in this process, in an empty folder; returns what it prints to stdout and to stderr."""
    monkeypatch.chdir(tmp_path)
    return run_cli


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with a store and figures that a process of its own has made, and the finished process."""
    folder = tmp_path_factory.mktemp("made")
    command = [
        sys.executable,
        "-m",
        "prunus",
        "run",
        NAME,
        "--smoke",
        "--executor=inline",
        "--replicates=2",
        *sets(),
    ]
    done = subprocess.run(
        [*command, "--store=store", "--out=figures"], cwd=folder, capture_output=True, text=True,
        env={"PYTHONPATH": PATHS, "OMP_NUM_THREADS": "1", "PATH": "", "HOME": str(folder)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder, done


@pytest.fixture
def store(made, tmp_path):
    """A copy of the store, to be written to."""
    shutil.copytree(made[0] / "store", tmp_path / "copy")
    return tmp_path / "copy"


def csvs(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.csv"))}


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def error_of(error: str) -> str:
    """The one sentence on stderr."""
    (line,) = (line for line in error.splitlines() if line.startswith("error: "))
    return line


def test_experiment_is_run_and_drawn(made):
    folder, done = made
    lines = [line for line in done.stderr.splitlines() if not line.endswith((" left", " so far"))]  # progress
    assert lines[0].startswith("12 runs requested, 0 found, 14 to do, about ")
    assert lines[-1].startswith("14 of 14: ticket-")
    assert (
        "invariants: 12 of 12 points passed all checks" in done.stdout
    )  # level 3 is the only one of LEVELS in 4 rounds
    stored = Store(folder / "store", create=False)
    assert len(stored.runs()) == 14
    assert {run.state for run in stored.runs()} == {"done"}
    assert {run.invariants for run in stored.runs()} == {"passed", None}
    files = [Path(line) for line in done.stdout.splitlines() if line.startswith("figures/")]
    assert {file.suffix for file in files} == {".json", ".md", ".png", ".svg", ".csv", ".html"}
    assert all((folder / file).stat().st_size for file in files)
    record = json.loads((folder / f"figures/{NAME}.json").read_text())
    assert record["evidence"]["settings"] == SMALL
    assert record["evidence"]["seeds"] == [0, 1]
    assert {row["n"] for row in record["table"]} == {2}


def test_table_and_figure_have_the_values_of_the_runs(made):
    """The means over replicates are computed here from the files of the runs."""
    folder, _ = made
    stored = Store(folder / "store", create=False)
    values: dict[tuple[str, int], list[float]] = {}
    for run in stored.runs():
        if run.kind == "ticket":
            for row in stored.directory(run.id).rows():
                values.setdefault((run.settings.get("mask0", "zero"), row["level"]), []).append(
                    row["stop_test_accuracy"]
                )
    assert len(values) == 6
    rows = json.loads((folder / f"figures/{NAME}.json").read_text())["table"]
    for row in rows:
        if row["level"]:
            own_values = values[row["curve"], row["level"]]
            assert row["stop_test_accuracy"] == pytest.approx(sum(own_values) / 2)
    redrawn = csv.DictReader((folder / f"figures/{NAME}.accuracy.csv").read_text().splitlines())
    means = sorted(float(row["mean"]) for row in redrawn if float(row["x"]) < 100)
    assert means == pytest.approx(sorted(sum(own_values) / 2 for own_values in values.values()))


def test_repeated_command_repeats_no_run(made, store, run, tmp_path):
    before = contents(store)
    printed = run(
        "run",
        NAME,
        "--smoke",
        "--executor=inline",
        "--replicates=2",
        *sets(),
        "--store",
        store,
        "--out",
        "again",
    )
    assert printed.err.splitlines()[0] == "12 runs requested, 12 found, 0 to do"
    assert " of 14" not in printed.err
    assert contents(store) == before
    assert csvs(tmp_path / "again") == csvs(made[0] / "figures")


def test_more_replicates_reuse_finished_runs(store, run):
    printed = run(
        "run",
        NAME,
        "--smoke",
        "--executor=inline",
        "--replicates=3",
        *sets(),
        "--store",
        store,
        "--out",
        "again",
    )
    assert printed.err.startswith("18 runs requested, 12 found, 7 to do")


def test_another_experiment_shares_the_baselines(store, run):
    arguments = (
        "--smoke",
        "--executor=inline",
        "--replicates=2",
        *sets(),
        "--store",
        store,
        "--out",
        "other",
    )
    printed = run("run", "zhou2019.signs", *arguments)
    assert printed.err.startswith("14 runs requested, 2 found, 12 to do, about ")


def test_figure_is_drawn_from_the_store_alone(made, store, run, tmp_path):
    """The bytes are the same, also when earlier figures are replaced."""
    for _ in range(2):
        run("figure", NAME, "--store", store, "--out", tmp_path / "drawn")
    stored = csvs(tmp_path / "drawn")
    assert stored == csvs(made[0] / "figures")
    assert {f"{NAME}.accuracy.csv", f"{NAME}.comparisons.csv"} <= stored.keys()
    paper = run("figure", "zhou2019", "--store", store, "--out", tmp_path / "paper", "--json").out
    assert json.loads(paper)["name"] == NAME
    assert csvs(tmp_path / "paper") == stored


@pytest.mark.parametrize(
    ("change", "code", "sentence"),
    [
        ({"epoch": "3"}, 2, "error: Unknown setting 'epoch'; did you mean 'epochs'?"),
        ({"recipe": "3"}, 2, "error: recipe is a group of settings; set one of:"),
        (
            {"baseline.recipe.epochs": "3"},
            2,
            "error: epochs and baseline.recipe.epochs are one setting, baseline.r",
        ),
        (
            {"network": "lenet,lenet"},
            2,
            "error: network=lenet,lenet names lenet twice; name each network once.",
        ),
        ({"epochs": "many"}, 2, "error: Expected a whole number for epochs, got 'many'."),
        ({"epochs": "0"}, 2, "error: Expected recipe.epochs of at least 1, got 0."),
        ({"eval_every": "0"}, 2, "error: Expected eval_every of at least 1, got 0."),
        ({"batch_size": "-1"}, 2, "error: Expected recipe.batch_size of at least 1, got -1."),
        ({"patience": "3"}, 2, "error: Expected recipe.patience = None, got 3; tickets train for the full"),
        ({"network": "lenet-5"}, 2, "error: Unknown network 'lenet-5'"),
        ({"data": "digit"}, 2, "error: Unknown data set 'digit'; did you mean 'digits'?"),
        (
            {"model": "tiny_networks:nobody"},
            2,
            "error: Looking up 'tiny_networks:nobody', module 'tiny_networks' ",
        ),
        ({"model": "lenet"}, 2, "error: Unknown model 'lenet'"),
        ({"optimizer": "adamm"}, 2, "error: Unknown optimizer 'adamm'; did you mean 'adam'"),
        ({"lr_schedule": "cos"}, 2, "error: Unknown learning-rate schedule 'cos'; did you mean 'cosine'"),
        ({"criterion": "largest"}, 2, "error: Unknown criterion 'largest'"),
        (
            {"pruning_rates.linear": "1"},
            2,
            "error: Expected pruning_rates.linear of at least 0 and below 1, got 1.0.",
        ),
    ],
)
def test_impossible_setting_is_one_sentence(change, code, sentence, run):
    arguments = ("--smoke", "--executor=inline", *sets(**change), "--store", "store", "--out", "figures")
    assert error_of(run("run", NAME, *arguments, code=code).err).startswith(sentence)
    assert not Path("store").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (("run", NAME, "--executor=cloud"), 2, "error: Unknown executor 'cloud'"),
        (("run", "zhou2019.zero"), 2, "error: Unknown experiment 'zhou2019.zero'; did you mean"),
        (("figure", NAME, "--store=nowhere"), 8, "error: There is no store of runs at nowhere;"),
        (("figure", "zhou2019.nothing"), 2, "error: Unknown experiment"),
    ],
)
def test_unknown_name_is_one_sentence(arguments, code, sentence, run):
    assert error_of(run(*arguments, code=code).err).startswith(sentence)
    assert not Path("nowhere").exists()


def test_wrong_options_are_refused(run):
    for arguments in (
        ("run", NAME, "--set=epochs"),
        ("run", NAME, "--smoke", "--set=epochs=1", "--set= epochs=1"),
        ("run", NAME, "--replicates=0"),
        ("run", NAME, "--workers=0"),
        ("run", NAME, "--smoke", "--full"),
    ):
        assert run(*arguments, code=2).err
    assert not Path("store").exists()


def test_fault_in_a_users_function_names_the_function(run):
    arguments = (
        "--smoke",
        "--executor=inline",
        *sets(criterion="tiny_networks:raising"),
        "--store",
        "store",
        "--out",
        "o",
    )
    printed = run("run", NAME, *arguments, code=5)
    sentence = error_of(printed.err)
    assert sentence.startswith("error: 6 of 7 runs failed; the first, ticket-")
    assert sentence.endswith(": The criterion 'raising' failed: ValueError: a fault; correct the function.")
    assert len([line for line in printed.err.splitlines() if line.startswith("failed: ticket-")]) == 6
    none = error_of(run("figure", NAME, "--store", "store", code=8).err)
    assert none == f"error: No run of {NAME} is finished in the store store; run `prunus run {NAME}` again."


def test_refused_command_does_not_change_the_store(store, run):
    before = contents(store)
    run(
        "run", NAME, "--smoke", "--executor=inline", *sets(epochs="0"), "--store", store, "--out", "o", code=2
    )
    assert contents(store) == before


def test_figure_without_its_runs_is_one_sentence(store, run):
    other = error_of(run("figure", "zhou2019.signs", "--store", store, code=8).err)
    assert other.startswith(f"error: zhou2019.signs has not been run in the store {store}; `prunus run ")
    full = error_of(run("figure", NAME, "--size=full", "--store", store, code=8).err)
    assert full.startswith(f"error: {NAME} has not been run in the store")
    lost = next((store / "runs").glob("ticket-*"))
    shutil.rmtree(lost)
    printed = run("figure", NAME, "--store", store, "--out", "part")
    assert "11 of 12 runs are drawn; the others are not finished or failed: run `prunus run " in printed.out
    assert (
        "1 to do"
        in run(
            "run",
            NAME,
            "--smoke",
            "--executor=inline",
            "--replicates=2",
            *sets(),
            "--store",
            store,
            "--out",
            "again",
        ).err
    )


@pytest.mark.parametrize("setting", ["mask0=freeze_init", "replicate=5", "schedule=one_shot", "mask1=rewind"])
def test_setting_without_effect_is_warned_of(setting, store, run):
    key, value = setting.split("=")
    arguments = (
        "--smoke",
        "--executor=inline",
        "--replicates=2",
        *sets(**{key: value}),
        "--store",
        store,
        "--out",
        "o",
    )
    printed = run("run", NAME, *arguments)
    warned = [line for line in printed.err.splitlines() if line.startswith("warning: ")]
    assert warned == [f"warning: Setting {setting} changes nothing in {NAME}."]


WITHOUT_ROUNDS = {"zhou2019.supermasks", "zhou2019.criterion_supermasks"}


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [name for name in EXPERIMENTS if name.startswith(("frankle", "zhou", "renda"))]
)
def test_every_ticket_experiment_on_a_small_network(name, run, tmp_path):
    """A repeated command and the figures from the store give the same numbers."""
    known = [setting for setting in sets() if "rounds" not in setting or name not in WITHOUT_ROUNDS]
    arguments = ("--smoke", "--executor=inline", *known, "--store", "store")
    first = run("run", name, *arguments, "--out", "first")
    assert "failed" not in first.out
    again = run("run", name, *arguments, "--out", "again")
    assert " 0 to do" in again.err
    run("figure", name, "--store", "store", "--out", "drawn")
    assert csvs(tmp_path / "first") == csvs(tmp_path / "again") == csvs(tmp_path / "drawn") != {}
    assert {run.invariants for run in Store(tmp_path / "store").runs()} <= {"passed", None}


@pytest.mark.parametrize(
    "experiment", ["frankle2020.rewinding", pytest.param("zhou2019.signs", marks=pytest.mark.slow)]
)
def test_device_computes_the_same_as_the_cpu(experiment, tmp_path):
    """On a simulated device (`far.py`), as strict as a GPU, all invariant checks pass and the numbers are the CPU's."""
    tables = []
    for device in ("cpu", "far"):
        command = [
            sys.executable,
            Path(__file__).with_name("far.py"),
            "run",
            experiment,
            "--smoke",
            "--executor=inline",
        ]
        done = subprocess.run(
            [*command, *sets(device=device), f"--store={device}", "--out=out", "--json"], cwd=tmp_path,
            capture_output=True, text=True,
            env={"PYTHONPATH": PATHS, "OMP_NUM_THREADS": "1", "PATH": "", "HOME": str(tmp_path)},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        table = json.loads(done.stdout)["table"]
        (line,) = [line for line in table.splitlines() if line.startswith("invariants: ")]
        passed, points = (int(word) for word in line.split() if word.isdigit())
        assert passed == points > 0
        tables.append(table)
    assert tables[0] == tables[1]


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:100])


def cut_last_row(path: Path) -> None:
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-1]))


def change_digit(path: Path) -> None:
    content = path.read_bytes()
    place = content.index(b'_accuracy": ') + len(b'_accuracy": ')
    path.write_bytes(
        content[:place] + (b"8" if content[place : place + 1] == b"9" else b"9") + content[place + 1 :]
    )


def flip_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-100] ^= 1
    path.write_bytes(content)


RUN = ("run", NAME, "--smoke", "--executor=inline", "--replicates=2")


@pytest.mark.parametrize(
    ("file", "damage"),
    [
        ("run.json", cut),
        ("run.json", change_digit),
        ("run.json", Path.unlink),
        ("rows.jsonl", cut),
        ("rows.jsonl", cut_last_row),
        ("rows.jsonl", change_digit),
        ("rows.jsonl", Path.unlink),
    ],
)
@pytest.mark.filterwarnings("ignore:The run")
def test_damaged_file_of_a_run_is_named_with_a_remedy(file, damage, made, store, run, tmp_path):
    ticket = next((store / "runs").glob("ticket-*"))
    damage(ticket / file)
    sentence = error_of(run(*RUN, *sets(), "--store", store, "--out", "o", code=8).err)
    assert f"{ticket / file}" in sentence
    advice = f"`prunus runs rm {ticket.name} --store {store}`"
    assert sentence.endswith(f"; remove the run, {advice}, and run the command again.")
    run(*advice.strip("`").split()[1:])
    assert "1 to do" in run(*RUN, *sets(), "--store", store, "--out", "again").err
    assert csvs(tmp_path / "again") == csvs(made[0] / "figures")


@pytest.mark.parametrize("damage", [flip_bit, cut, Path.unlink])
@pytest.mark.parametrize("name", ["state-0", "final"])
def test_damaged_baseline_is_never_used_by_a_ticket(name, damage, made, store, run, tmp_path):
    tickets = list((store / "runs").glob("ticket-*"))
    (dense,) = json.loads((tickets[0] / "run.json").read_text())["dependencies"].values()
    shutil.rmtree(tickets[0])
    damage(store / "runs" / dense / f"{name}.safetensors")
    sentence = error_of(run(*RUN, *sets(), "--store", store, "--out", "o", code=8).err)
    assert f"{dense}/{name}.safetensors" in sentence
    assert f"`prunus runs rm {dense} --store {store}`" in sentence
    run("runs", "rm", dense, "--store", store, "--force")
    assert "2 to do" in run(*RUN, *sets(), "--store", store, "--out", "again").err
    assert csvs(tmp_path / "again") == csvs(made[0] / "figures")


def test_removed_dependency_of_a_finished_run_is_computed_again(made, store, run, tmp_path):
    dense = next((store / "runs").glob("baseline-*"))
    run("runs", "rm", dense.name, "--store", store, "--force")
    assert "1 to do" in run(*RUN, *sets(), "--store", store, "--out", "again").err
    assert csvs(tmp_path / "again") == csvs(made[0] / "figures")


def test_numbers_are_on_disk_before_a_figure_is_drawn(made, store, run, tmp_path, monkeypatch):
    def fail(*arguments: object) -> None:
        raise RuntimeError("no figure today")

    monkeypatch.setattr("prunus.experiments.results.save_images", fail)
    run(*RUN, *sets(), "--store", store, "--out", "again", code=1)
    assert csvs(tmp_path / "again") == csvs(made[0] / "figures")
    assert {path.suffix for path in (tmp_path / "again").iterdir()} == {".csv", ".json", ".md"}
    rows = [
        json.loads((folder / f"{NAME}.json").read_text())["rows"]
        for folder in (tmp_path / "again", made[0] / "figures")
    ]
    assert rows[0] == rows[1]


@pytest.mark.parametrize(
    ("name", "library"),
    [
        *((name, library) for name in (NAME, "han2016.kmeans_init") for library in ("matplotlib", "jinja2")),
        (NAME, "scipy"),
    ],
)
def test_missing_library_is_reported_before_the_runs(name, library, run, monkeypatch):
    for module in [known for known in sys.modules if known.partition(".")[0] == library]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, library, None)
    arguments = ("--store=s", *(sets() if name == NAME else ()))
    sentence = error_of(run("run", name, "--smoke", *arguments, "--out=o", code=1).err)
    assert f" need {library}, which is not installed: pip install 'prunus[cli]'." in sentence
    assert not Path("s").exists()
    assert not Path("o").exists()


@pytest.mark.parametrize(
    "backend", ["module://matplotlib_inline.backend_inline", pytest.param("nonsense", marks=pytest.mark.slow)]
)
def test_figures_are_drawn_with_any_backend_in_the_environment(backend, made):
    folder, _ = made
    done = subprocess.run(
        [sys.executable, "-m", "prunus", "figure", NAME, "--store=store", f"--out={backend[-8:]}"],
        cwd=folder, capture_output=True, text=True,
        env={"PYTHONPATH": PATHS, "MPLBACKEND": backend, "PATH": "", "HOME": str(folder)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (
        len(list((folder / backend[-8:]).glob("*.png"))) == len(list((folder / "figures").glob("*.png"))) > 0
    )
