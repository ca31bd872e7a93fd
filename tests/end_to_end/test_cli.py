"""The command line as users call it: compress, evaluate and decompress a network of theirs; output and exit codes."""

import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import prunus
from prunus.cli.app import COMMANDS
from prunus.cli.recipe_options import default_preset, parse_epochs
from prunus.compression.codecs import CODECS
from prunus.compression.presets import compression_recipe
from prunus.compression.quantization.kmeans_init import KMEANS_INITS
from prunus.data import DATASETS
from prunus.experiments import EXPERIMENTS, PAPERS
from prunus.experiments.results import Result
from prunus.models import MODELS
from prunus.models.loading import make_model
from prunus.pruning.methods import METHODS
from prunus.registry import import_object
from prunus.report import formatting
from prunus.runs.executors import EXECUTORS
from prunus.tickets.mask0_actions import MASK0_ACTIONS
from prunus.tickets.mask1_actions import MASK1_ACTIONS
from prunus.tickets.supermask import SUPERMASKS
from prunus.training.augmentation import AUGMENTATIONS

OWN = """
import itertools, os, signal
import torch
from torch import nn
from prunus import Dataset, Split, load_data

count = itertools.count(1)

class Flat(nn.Flatten):
    def forward(self, x):
        assert x.device.type == os.environ.get("DEVICE", "cpu")
        if len(x) > 2 and next(count) == int(os.environ.get("INTERRUPT_AT", 0)):
            signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
            signal.raise_signal(signal.SIGINT)  # as Ctrl-C would, at a moment that does not depend on speed
        return super().forward(x)

def net():
    return nn.Sequential(Flat(), nn.Linear(64, 24), nn.BatchNorm1d(24), nn.ReLU(), nn.Linear(24, 10))

def few():
    d = load_data("digits")
    train = Split(d.train.inputs[:240], d.train.labels[:240])
    return Dataset("few", train, d.validation, d.test, d.class_names, "the first 240 of digits")

def framed():
    d = few()
    frame = lambda split: Split(nn.functional.pad(split.inputs, (10,) * 4), split.labels)
    return Dataset("framed", frame(d.train), frame(d.validation), frame(d.test), d.class_names)
"""
EPOCHS = [f"--epochs={stage}" for stage in ("dense=3", "retrain=1", "final_retrain=2", "finetune=1")]
COMPRESS = ("compress", "--model=own_nets:net", "--data=own_nets:few", "--rounds=3", "--threads=1", *EPOCHS)


def process(folder, *arguments, **options):
    """`prunus` in another process."""
    command = [sys.executable, "-m", "prunus", *map(str, arguments)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=900, **options)
    assert "Traceback" not in done.stdout + done.stderr
    return done


@pytest.fixture
def run(run_cli, monkeypatch, made):
    """`prunus` in this process, where `made` is: what it printed to stdout and to stderr."""
    monkeypatch.chdir(made)
    monkeypatch.setattr(sys, "path", [*sys.path])
    return run_cli


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with a user's network, compressed by another process into own.prunus."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "own_nets.py").write_text(OWN)
    done = process(folder, *COMPRESS, "--out=own.prunus", "--json")
    assert done.returncode == 0, done.stderr
    (folder / "printed.json").write_text(done.stdout)
    (folder / "stderr.txt").write_text(done.stderr)
    return folder


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_every_command_has_an_example(command, run):
    assert f"Example: prunus {command}" in run(command, "--help").out


REFUSED = {
    "compress": ("compress", "--model=own_nets:net", "--data=own_nets:few", "--out=."),
    "demo": ("demo", "--out=own.prunus"),
}
"""Ends before any work: the one would write a file where a folder is, the other a folder where a file is."""


@pytest.mark.parametrize("command", REFUSED)
def test_commands_use_one_thread_by_default(command, run, monkeypatch):
    try:
        torch.set_num_threads(2)
        run(*REFUSED[command], code=1)
        assert torch.get_num_threads() == 1
        run(*REFUSED[command], "--threads=2", code=1)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)
    monkeypatch.setenv("COLUMNS", "1000")
    (line,) = (line for line in run(command, "--help").out.splitlines() if "--threads" in line)
    assert "LeNets" in line
    assert "[default: 1]" in line


def test_inspect_adds_up_to_the_file_size(run):
    size = Path("own.prunus").stat().st_size
    result = json.loads(run("inspect", "own.prunus", "--json").out)
    assert result == json.loads(json.dumps(prunus.inspect("own.prunus").to_json()))
    assert result["file_bytes"] == size
    assert sum(layer["bytes"] for layer in result["layers"]) + result["framing_bytes"] == size
    assert {"name", "shape", "density", "bytes"} <= result["layers"][0].keys()
    assert result["ratio"] == result["original_bytes"] / size
    rows = run("inspect", "own.prunus").out.splitlines()
    column = [int(row.split()[-3].replace(",", "")) for row in rows if row.endswith("%")]
    assert sum(column[:-1]) == column[-1] == size
    average = result["average"]
    (total,) = (re.split(r"\s{2,}", row) for row in rows if row.startswith("the file"))
    for cell, kind in zip(total[3:5], ("weight_bits", "index_bits"), strict=True):
        before, after = (
            formatting.format_bits(average[kind]),
            formatting.format_bits(average[f"coded_{kind}"]),
        )
        assert cell == (before if before == after else f"{before} → {after}")


def test_decompress_restores_every_bit(run):
    run("decompress", "own.prunus", "--out", "back.safetensors")
    back, state = load_file("back.safetensors"), prunus.read("own.prunus")
    assert back.keys() == state.keys()
    for name, tensor in state.items():
        assert back[name].dtype == tensor.dtype
        assert back[name].shape == tensor.shape
        assert back[name].numpy().tobytes() == tensor.numpy().tobytes()


def test_decompress_replaces_a_file_only_with_force(run, tmp_path):
    target = tmp_path / "there.safetensors"
    target.write_text("mine")
    assert "--force" in run("decompress", "own.prunus", "--out", target, code=1).err
    assert target.read_text() == "mine"
    run("decompress", "own.prunus", "--out", target, "--force")
    assert load_file(target)
    assert [path.name for path in tmp_path.iterdir()] == [target.name]


def test_evaluate_prints_the_result_of_the_library(run):
    printed = run("evaluate", "own.prunus", "--data", "digits", "--model", "own_nets:net", "--json")
    model = prunus.load("own.prunus", into=import_object("own_nets:net")())
    result = prunus.evaluate(model, prunus.load_data("digits").test)
    assert json.loads(printed.out) == {"test_error": result.error, "n": 300, "loss": result.loss}
    words = run("evaluate", "own.prunus", "--data", "digits", "--model", "own_nets:net").out
    assert f"{result.error:.1f} %" in words


def test_compress_prints_only_json_to_stdout(made):
    printed, message = json.loads((made / "printed.json").read_text()), (made / "stderr.txt").read_text()
    assert printed["file_bytes"] == (made / "own.prunus").stat().st_size
    assert [stage["name"] for stage in printed["stages"]] == [
        "dense",
        "pruned",
        "quantized",
        "huffman",
        "range",
    ]
    assert printed["stages"][-1]["bytes"] == printed["file_bytes"]
    assert printed["n"] == 300
    assert (made / "own.html").read_text().startswith("<!DOCTYPE html>")
    assert "will prune 1.weight (24 × 64)" in message
    assert "not pruned: 1.bias, 2.weight, 2.bias, 4.bias" in message
    assert message.count("validation error") == 3 + 2 + 2 + 1
    assert "(8 of 8 epochs)" in message


def test_compress_prints_the_test_error_of_the_file(made, run):
    printed = json.loads((made / "printed.json").read_text())
    result = run("evaluate", "own.prunus", "--data=own_nets:few", "--model=own_nets:net", "--json").out
    assert json.loads(result)["test_error"] == printed["test_error"]


def test_compress_reports_the_zeros_among_the_activations(made, run):
    zeros = json.loads((made / "printed.json").read_text())["activation_zeros"]
    assert zeros["before"].keys() == zeros["after"].keys() == {"1", "4"}
    assert zeros["before"]["1"] == zeros["after"]["1"]  # the inputs of the network
    assert zeros["before"]["4"] != zeros["after"]["4"]
    assert "Zeros among the activations" in (made / "own.html").read_text()


def test_same_seed_gives_the_same_file_in_another_process(made, run, tmp_path):
    run(*COMPRESS, "--out", tmp_path / "again.prunus")
    assert (tmp_path / "again.prunus").read_bytes() == (made / "own.prunus").read_bytes()
    run(*COMPRESS, "--out", tmp_path / "other.prunus", "--seed=1")
    assert (tmp_path / "other.prunus").read_bytes() != (made / "own.prunus").read_bytes()


@pytest.mark.parametrize(
    ("data", "model", "into"),
    [
        ("own_nets:few", "own_nets:net", ("--model=own_nets:net",)),
        ("own_nets:framed", "lenet-300-100", ()),
    ],
)
def test_device_option_selects_the_device_and_files_load_on_the_cpu(data, model, into, made, run):
    """With a pretend device (`far.py`); Flat looks at every batch whether it is there."""
    far, aside = Path(__file__).with_name("far.py"), {**os.environ, "DEVICE": "far"}

    def run_on_device(*arguments):
        command = [sys.executable, far, *arguments, "--device=far", "--json"]
        done = subprocess.run(command, cwd=made, capture_output=True, text=True, timeout=300, env=aside)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    names = (f"--model={model}", f"--data={data}")
    compressed = run_on_device(
        "compress", *names, "--out=far.prunus", "--density=0.2", "--rounds=2", "--force", *EPOCHS
    )
    measured = run_on_device("evaluate", "far.prunus", f"--data={data}", *into)
    assert measured["test_error"] == compressed["test_error"]
    near = run("evaluate", "far.prunus", f"--data={data}", *into, "--json")
    assert measured == pytest.approx(json.loads(near.out), rel=1e-5)


def test_interrupted_compress_resumes_from_checkpoints(made, run):
    arguments = (*COMPRESS, "--out=resumed.prunus", "--checkpoints=steps")
    stopped = process(made, *arguments, env={**os.environ, "INTERRUPT_AT": "26"})
    assert stopped.returncode == 130
    assert "error: interrupted." in stopped.stderr
    assert "pruning" in stopped.stderr
    assert "quantizing" not in stopped.stderr
    assert not (made / "resumed.prunus").exists()
    message = run(*COMPRESS, "--out=resumed.prunus", "--checkpoints=steps").err
    assert "training" not in message
    assert (made / "resumed.prunus").read_bytes() == (made / "own.prunus").read_bytes()


@pytest.mark.parametrize("name", ["w.safetensors", "w.pt", "nested.pth"])
def test_compress_uses_the_given_weights(name, run, tmp_path):
    torch.manual_seed(5)
    state = import_object("own_nets:net")().state_dict()
    state["4.weight"].zero_()[0, :3] = torch.tensor([0.5, -0.5, 0.25])
    path = tmp_path / name
    if name.endswith(".safetensors"):
        save_file(state, path)
    else:
        torch.save({"state_dict": state} if "nested" in name else state, path)
    out = tmp_path / "out.prunus"
    nothing = [f"--epochs={stage}=0" for stage in ("retrain", "final_retrain", "finetune")]
    printed = run(
        *("compress", "--model=own_nets:net", "--data=own_nets:few", "--weights", path, "--out", out),
        *("--density=1", "--bits=8", "--include=4.weight", *nothing),
    )
    assert "warning: '4.weight' has 3 distinct nonzero values" in printed.err
    assert "Warning" not in printed.err
    result = prunus.read(out)
    assert torch.equal(result["4.weight"], state["4.weight"])
    assert torch.equal(result["1.weight"], state["1.weight"])
    assert torch.equal(result["2.running_var"], state["2.running_var"])


@pytest.fixture
def weights(tmp_path):
    torch.manual_seed(5)
    path = tmp_path / "w.safetensors"
    save_file(import_object("own_nets:net")().state_dict(), path)
    return path


def test_compress_without_training_writes_the_file_of_the_library(made, run, weights, tmp_path):
    options = ("own_nets:net", "--data=own_nets:few", "--weights", weights, "--no-train")
    printed = run(
        "compress",
        *options,
        "--out",
        tmp_path / "a.prunus",
        "--density=0.5",
        "--bits=4",
        "--recalibrate",
        "--json",
    )
    assert "epoch" not in printed.err
    result = json.loads(printed.out)
    model = import_object("own_nets:net")()
    model.load_state_dict(load_file(weights))
    expected = prunus.compress(
        model, tmp_path / "b.prunus", data=import_object("own_nets:few")(),
        train=False, density=0.5, bits=4, recalibrate=True,
    )  # fmt: skip
    assert (tmp_path / "a.prunus").read_bytes() == (tmp_path / "b.prunus").read_bytes()
    assert (result["file_bytes"], result["ratio"]) == (expected.file_bytes, expected.ratio)
    assert (tmp_path / "a.html").exists()


def test_compress_without_training_needs_weights_of_a_built_in_model(run, tmp_path):
    printed = run("compress", "lenet-5", "--data=mnist", "--out", tmp_path / "a.prunus", "--no-train", code=2)
    assert "Expected trained weights of lenet-5 without training, got none" in " ".join(printed.err.split())


def test_compress_prints_what_the_search_has_tried(made, run, weights, tmp_path):
    options = ("own_nets:net", "--data=own_nets:few", "--weights", weights, "--no-train", "--bits=6")
    printed = run("compress", *options, "--max-accuracy-drop=20", "--out", tmp_path / "a.prunus")
    assert re.search(r"density +bits +points lost in validation +bytes", printed.out)
    assert "Han et al. 2016" not in printed.out


BAD_OPTIONS = [
    (("--no-train", "--weights=WEIGHTS", "--rounds=3"), "without training, got rounds; leave them out"),
    (
        ("--no-train", "--weights=WEIGHTS", "--learning-rate=1", "--epochs=dense=1"),
        "got epochs, learning_rate;",
    ),
    (
        ("--max-accuracy-drop=1", "--density=0.5"),
        "either max_accuracy_drop or a density, got 1.0 points and 0.5",
    ),
    (("--max-accuracy-drop=-1",), "0 to 100 percentage points, got -1.0"),
    (
        ("--model=own_nets:net",),
        "Expected one model, as MODEL or as --model, got own_nets:net and own_nets:net.",
    ),
    (
        ("--no-train", "--weights=WEIGHTS", "--backend=sparse"),
        "without training, got backend; leave them out",
    ),
    (("--preset=",), "Unknown compression preset ''"),
    (("--recipe=lenet",), "did you mean 'lenet-5'"),
    (("--optimizer=adan", "--out=x.prunus"), "did you mean 'adam"),
]


@pytest.mark.parametrize(("options", "message"), BAD_OPTIONS)
def test_compress_refuses_options_before_the_work(options, message, made, run, weights, tmp_path):
    options = [option.replace("WEIGHTS", str(weights)) for option in options]
    printed = run(
        "compress", "own_nets:net", "--data=own_nets:few", f"--out={tmp_path}/a.prunus", *options, code=2
    )
    assert message.rstrip(".") in " ".join(printed.err.split())
    assert not (tmp_path / "a.prunus").exists()


def test_scope_option_accepts_a_pattern(run, tmp_path):
    out = tmp_path / "out.prunus"
    arguments = (*COMPRESS, "--out", out, "--scope=2:4")
    printed = run(*arguments, "--density=0.5", "--rounds=1")
    assert "will prune 1.weight (24 × 64) to density 0.5" in printed.err
    for name in ("1.weight", "4.weight"):
        num_kept = (prunus.read(out)[name] != 0).unflatten(1, (-1, 4)).sum(-1)
        assert set(num_kept.unique().tolist()) <= {1, 2}  # a shared value may be zero
    out.unlink()
    out.with_suffix(".html").unlink()
    for wrong in (("--density=0.5",), ("--density=0.4", "--rounds=1")):
        printed = run(*arguments, *wrong, code=5)
        assert "which 2:4 keeps of every layer" in printed.err
        assert "training" not in printed.err
    assert "as 1:4, and blocks ROWSxCOLUMNS" in run(*arguments[:-1], "--scope=filters", code=2).err
    assert not out.exists()


def test_recipe_of_a_command_line_is_that_of_the_model_with_its_settings():
    table = prunus.COMPRESSION_RECIPES
    assert default_preset(make_model("lenet300100")) == "lenet-300-100"
    networks = make_model("resnet-20"), make_model("conv-2"), make_model(lambda: torch.nn.Conv2d(3, 2, 1))
    assert [default_preset(network, is_trained=True) for network in networks] == ["cnn", "default", "default"]
    assert default_preset(networks[0]) == "default"
    assert default_preset(networks[0], train=False, is_trained=True) == "without-training"
    epochs = parse_epochs(["final_retrain=4", "dense=0"])
    changed = compression_recipe("lenet-300-100", density=0.5, bits=3, rounds=7, epochs=epochs, scope=None)
    assert (changed.density, changed.bits, changed.rounds) == (0.5, 3, 7)
    assert (changed.final_retrain.epochs, changed.dense.epochs) == (4, 0)
    assert changed.finetune == table["lenet-300-100"].finetune
    assert changed.scope == table["lenet-300-100"].scope
    rates = compression_recipe("lenet-300-100", optimizer="sgd", momentum=0.9, learning_rate=0.01)
    assert (rates.final_retrain.optimizer, rates.final_retrain.momentum) == ("sgd", 0.9)
    assert rates.final_retrain.learning_rate == 0.01
    assert rates.dense.learning_rate == pytest.approx(0.012)
    assert rates.finetune == table["lenet-300-100"].finetune


def test_list_names_all_built_in_components(run):
    result = json.loads(run("list", "--json").out)
    tables = {
        "models": MODELS,
        "data_sets": DATASETS,
        "criteria": prunus.CRITERIA,
        "filter_criteria": prunus.FILTER_CRITERIA,
        "pruning_methods": METHODS,
        "scopes": prunus.SCOPES,
        "schedules": prunus.SCHEDULES,
        "mask_1_actions": MASK1_ACTIONS,
        "mask_0_actions": MASK0_ACTIONS,
        "supermasks": SUPERMASKS,
        "codecs": CODECS,
        "k_means_initializations": KMEANS_INITS,
        "augmentations": AUGMENTATIONS,
        "executors": EXECUTORS,
        "compression_presets": prunus.COMPRESSION_RECIPES,
        "experiments": dict.fromkeys((*PAPERS, *EXPERIMENTS)),
    }
    assert {kind: [row["name"] for row in rows] for kind, rows in result.items()} == {
        kind: list(table) for kind, table in tables.items()
    }
    assert all(len(row["description"]) > 10 for rows in result.values() for row in rows)
    described = {row["name"]: row["description"] for rows in result.values() for row in rows}
    assert all(described[name] == EXPERIMENTS[name].description for name in EXPERIMENTS)
    for kind in ("experiments", "criteria", "pruning_methods", "codecs"):  # none has the text of another
        assert len({row["description"] for row in result[kind]}) == len(result[kind])
    words = run("list").out
    for table in tables.values():
        for name in table:
            assert re.search(rf"(^|\s){re.escape(name)}\s", words, re.MULTILINE)


def test_run_passes_size_and_replicates_and_prints_the_result(run, monkeypatch, tmp_path):
    def count(experiment, size, out, *, replicates, seed, log, **options):
        """Count to three."""
        log("counting")
        (out / "counted.txt").write_text(f"{experiment.name} {size} {replicates} {seed}")
        content = {"question": "How many?", "verdicts": []}
        return Result("count", content, "| 1 | 2 | 3 |", [out / "counted.txt"])

    monkeypatch.setattr("prunus.experiments.running.run_experiment", count)
    name = "hassibi1993.xor"
    printed = run("run", name, "--smoke", "--out", tmp_path / "new" / "folder", "--replicates=2", "--json")
    assert printed.err == "counting\n"
    result = json.loads(printed.out)
    assert (result["table"], result["question"]) == ("| 1 | 2 | 3 |", "How many?")
    assert Path(result["files"][0]).read_text(encoding="utf-8") == f"{name} smoke 2 0"
    assert "| 1 | 2 | 3 |" in run("run", name, "--out", tmp_path).out
    assert (tmp_path / "counted.txt").read_text() == f"{name} default None 0"


@pytest.mark.parametrize("form", [(), ("--json",)])
def test_closed_pipe_ends_the_command_quietly(form, made):
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "prunus", "inspect", "own.prunus", *form]
    done = subprocess.run(command, cwd=made, stdout=writer, stderr=subprocess.PIPE, text=True, timeout=60)
    os.close(writer)
    assert done.returncode == 1
    assert all(line.startswith("prunus ") for line in done.stderr.splitlines())  # on a slow machine alone


def test_terminal_without_unicode_shows_replacements(run, monkeypatch):
    shown = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", shown)
    run("inspect", "own.prunus")
    assert b"24 ? 64" in shown.buffer.getvalue()


def test_missing_extra_is_named(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "typer", None)
    message = run("list", code=1).err
    assert message == 'error: the command line needs typer: pip install "prunus[cli]"\n'


@pytest.mark.parametrize("group", [(), ("runs",)])
def test_group_without_a_command_shows_its_help(group, run_cli):
    printed = run_cli(*group, code=2)
    assert printed.err == ""
    assert printed.out.strip() == run_cli(*group, "--help").out.strip()


@pytest.fixture
def shell(tmp_path):
    """Run a script in bash, with `prunus` on the path and a new home directory; returns its output."""
    bash = shutil.which("bash") or pytest.skip("there is no bash here")
    program = tmp_path / "prunus"
    program.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m prunus "$@"\n')
    program.chmod(0o755)
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"

    def run(script):
        command, aside = [bash, "--norc", "-c", script], {**os.environ, "PATH": path, "HOME": str(tmp_path)}
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=aside)
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout.splitlines()

    return run


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("prunus dec", ["decompress"]),
        ("prunus compress --check", ["--checkpoints"]),
        ("prunus compress --model lenet-5", ["lenet-5"]),
        ("prunus prune lenet-5 --criterion full_", ["full_obs"]),
        ("prunus evaluate my.prunus --data fash", ["fashion-mnist"]),
    ],
)
def test_shell_completes_commands_options_and_names(words, offered, shell):
    place = len(words.split()) - 1
    complete = f"COMP_WORDS=({words}); COMP_CWORD={place}; _prunus_completion prunus"
    script = f'eval "$(prunus --show-completion)"; {complete}; printf "%s\\n" "${{COMPREPLY[@]}}"'
    assert shell(script) == offered


def test_completion_is_installed_for_the_calling_shell(shell, tmp_path):
    *_, message = shell("prunus --install-completion; true")
    assert message == "Completion will take effect once you restart the terminal"
    (script,) = (tmp_path / ".bash_completions").iterdir()
    assert str(script) in (tmp_path / ".bashrc").read_text()
    assert "_prunus_completion" in script.read_text()


def test_version_option_prints_the_version(run):
    assert run("--version").out == f"prunus {prunus.__version__}\n"


@pytest.mark.slow
def test_demo_file_is_fifty_times_smaller_with_little_more_error(tmp_path):
    done = process(tmp_path, "demo", "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["ratio"] >= 50
    # One run ends within 0.5 points of its dense network; the mean over seeds, which is closer, is in docs/results.
    assert result["test_error"] <= result["dense_test_error"] + 0.5
    assert result["file_bytes"] == (tmp_path / "demo" / "lenet-300-100.prunus").stat().st_size
    assert (tmp_path / "demo" / "report.html").exists()
