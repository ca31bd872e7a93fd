"""Bad input to the command line: one sentence, an exit code that means something, nothing half-written."""

import os
import pickle
import re
import shlex
import shutil
import subprocess
import sys
import time
import traceback
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from typer.main import get_command

import prunus
from prunus.cli import main
from prunus.cli.app import app
from prunus.cli.output import clean
from prunus.compression.container import pack
from prunus.runs.store import Store
from prunus.tickets.baseline import BaselineSpec

OWN = """
import prunus
import torch
from prunus import Dataset, Split, load_data
from torch import nn

def net():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))

def nothing_to_prune():
    return nn.Sequential(nn.Flatten(), nn.LayerNorm(64))

class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(64, 64), nn.Linear(64, 64)
        self.b.weight.data = self.a.weight.data
    def forward(self, x):
        return self.b(self.a(x.flatten(1)))

def needs_an_argument(width):
    return nn.Linear(width, 10)

def no_module():
    return 3

def fails():
    raise RuntimeError("this is mine,\\nand has two lines")

def quits():
    raise SystemExit(0)

def unsplit():
    return prunus.Dataset("unsplit", [], [], [], ("a", "b"))

class Late(nn.Linear):
    count = 0
    def forward(self, x):
        self.count += self.training
        if self.count > 20:  # more often than the checks before the training call it
            raise RuntimeError("nobody expects this")
        return super().forward(x.flatten(1))

def fails_late():
    return Late(64, 10)

def few_classes():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 9))

def not_logits():
    return nn.Conv2d(1, 10, 3)

not_callable = 3

def on_meta():
    return net().to("meta")

def lazy():
    return nn.Sequential(nn.Flatten(), nn.LazyLinear(10))

def frozen():
    return net().requires_grad_(False)

def normalized():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.BatchNorm1d(16), nn.Linear(16, 10))

def nan_weights():
    model = net()
    nn.init.constant_(model[1].weight, float("nan"))
    return model

class Returning(nn.Linear):
    def __init__(self, how):
        super().__init__(64, 10)
        self.how = how

    def forward(self, x):
        return self.how(super().forward(x.flatten(1)))

def returns_tuple():
    return Returning(lambda logits: (logits, logits))

def returns_none():
    return Returning(lambda logits: None)

def returns_classes():
    return Returning(lambda logits: logits.argmax(1))

def detached():
    return Returning(lambda logits: logits.detach())

def nothing():
    return None

def interrupts():
    raise SystemExit("no")

def few(**changes):
    d = load_data("digits")
    splits = {"train": d.train.take(100), "validation": d.validation.take(50), "test": d.test.take(50)}
    return Dataset("few", **{**splits, **changes}, class_names=d.class_names)

def one_left():
    return few(train=load_data("digits").train.take(129))

def with_labels(change):
    split = few().train
    return few(train=Split(split.inputs, change(split.labels)))

def with_inputs(change, part="train"):
    split = getattr(few(), part)
    return few(**{part: Split(change(split.inputs.clone()), split.labels)})

def empty():
    return few(train=few().train.take(0))

def labels_too_high():
    return with_labels(lambda labels: labels + 77)

def labels_negative():
    return with_labels(lambda labels: labels - 1)

def labels_float():
    return with_labels(lambda labels: labels.float())

def labels_short():
    return with_labels(lambda labels: labels[:-1])

def labels_matrix():
    return with_labels(lambda labels: labels[:, None])

def labels_numpy():
    return with_labels(lambda labels: labels.numpy())

def inputs_numpy():
    return with_inputs(lambda inputs: inputs.numpy())

def inputs_list():
    return with_inputs(lambda inputs: inputs.tolist())

def nan_in_train():
    return with_inputs(lambda inputs: inputs.index_fill(0, torch.tensor([7]), float("nan")))

def infinity_in_validation():
    return with_inputs(lambda inputs: inputs.index_fill(0, torch.tensor([7]), float("inf")), "validation")

def nan_in_test():
    return with_inputs(lambda inputs: inputs.index_fill(0, torch.tensor([7]), float("nan")), "test")

def unlike_shapes():
    return with_inputs(lambda inputs: inputs[..., :7], "test")

def pair():
    return few().train, few().test
"""
NET = "--model=bad_nets:net"
DATA = "--data=digits"
OUT = "--out=out.prunus"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty current folder with bad_nets.py."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "bad_nets.py").write_text(OWN)
    return tmp_path


@pytest.fixture
def refused(folder, capsys):
    """Run `prunus`; it must end with `code`, print nothing to stdout, leave no file, and say one sentence."""

    def call(code, *arguments):
        before = {
            path: path.stat().st_mtime_ns for path in folder.rglob("*") if "__pycache__" not in str(path)
        }
        with pytest.raises(SystemExit) as ended:
            main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        assert ended.value.code == code, err
        assert out == ""
        assert "Traceback" not in err
        assert "\x1b" not in err
        after = {
            path: path.stat().st_mtime_ns for path in folder.rglob("*") if "__pycache__" not in str(path)
        }
        assert after == before
        *before_it, sentence = err.splitlines()
        assert sentence.startswith("error: ")
        assert not any(line.startswith("error: ") for line in before_it)
        return sentence

    return call


@pytest.mark.parametrize(
    ("code", "arguments", "says"),
    [
        (2, ("--model=lenet-301", DATA), "did you mean 'lenet-300-100'"),
        (2, (NET, "--data=minst"), "did you mean 'mnist'"),
        (2, (NET, DATA, "--preset=lenet-30-100"), "did you mean 'lenet-300-100'"),
        (2, (NET, DATA, "--epochs=final_retrai=3"), "did you mean 'final_retrain'"),
        (2, (NET, DATA, "--epochs=3"), "STAGE=N"),
        (2, (NET, DATA, "--epochs=final_retrain=-1"), "STAGE=N"),
        (
            2,
            (NET, DATA, "--epochs=dense=1", "--epochs=dense=2"),
            "one number of epochs of dense, got 1 and 2",
        ),
        (2, (NET, DATA, "--bits=9"), "--bits"),
        (2, (NET, DATA, "--bits=0"), "--bits"),
        (2, (NET, DATA, "--rounds=0"), "--rounds"),
        (2, (NET, DATA, "--threads=0"), "--threads"),
        (3, (NET,), "--data"),
        (2, ("--model=bad_nets", DATA), "bad_nets"),
        (2, ("--model=bad_nets:", DATA), "package.module:function"),
        (2, ("--model=bad_nets:nett", DATA), "has no 'nett'"),
        (2, ("--model=bad_nets:not_callable", DATA), "to be a function to call, got a int"),
        (2, ("--model=no_such_module:net", DATA), "no_such_module"),
        (4, ("--model=bad_nets:needs_an_argument", DATA), "width"),
        (4, ("--model=bad_nets:no_module", DATA), "got a int"),
        (4, ("--model=bad_nets:fails", DATA), "this is mine, and has two lines"),
        (4, ("--model=bad_nets:few_classes", DATA), "[2, 9]"),
        (4, ("--model=bad_nets:not_logits", DATA), "[2, 10, 6, 6]"),
        (4, ("--model=bad_nets:nothing_to_prune", DATA), "no weight to prune"),
        (4, ("--model=bad_nets:Tied", DATA), "exclude"),
        (4, (NET, DATA, "--include=conv*"), "conv*"),
        (4, (NET, DATA, "--exclude=*"), "no weight to prune"),
        (4, ("--model=lenet-300-100", DATA), "[2, 1, 8, 8]"),
        (1, (NET, DATA, "--checkpoints=bad_nets.py"), "bad_nets.py: it is not a folder"),
        (4, ("--model=bad_nets:quits", DATA), "SystemExit: 0"),
        (3, (NET, "--data=bad_nets:no_module"), "got a int"),
        (3, (NET, "--data=bad_nets:fails"), "failed: RuntimeError: this is mine, and has two lines"),
        (
            3,
            (NET, "--data=bad_nets:needs_an_argument"),
            "failed: TypeError: needs_an_argument() missing 1",
        ),
        (3, (NET, "--data=bad_nets:quits"), "failed: SystemExit: 0"),
        (
            3,
            (NET, "--data=bad_nets:unsplit"),
            "Expected the train split of unsplit to be a prunus.Split of two tensors, got list",
        ),
        (5, (NET, DATA, "--density=0"), "above 0"),
        (5, (NET, DATA, "--density=0.0005"), "one of the 640 weights of all layers"),
        (5, (NET, DATA, "--density=0.0005", "--preset=lenet-300-100"), "of the 640 weights of '1.weight'"),
        (5, (NET, DATA, "--density=2"), "at most 1"),
        (5, (NET, DATA, "--density=-0.5"), "above 0"),
        (5, (NET, DATA, "--density=nan"), "above 0"),
    ],
)
def test_compress_refuses(code, arguments, says, refused):
    assert says in refused(code, "compress", *arguments, OUT)


@pytest.mark.parametrize("device", ["cuda:99", "gpu", "meta", "cuda:-1", "", "cpu\x1b[2J"])
@pytest.mark.parametrize(
    "command", [("compress", NET, DATA, OUT), ("evaluate", "a.prunus", DATA, NET), ("demo", "--out=new")]
)
def test_commands_refuse_an_unknown_device(command, device, refused, folder):
    (folder / "a.prunus").write_bytes(good())
    message = refused(2, *command, f"--device={device}")
    assert message.startswith(f"error: Expected a device that can compute here, got {clean(repr(device))}")
    assert ": cpu" in message


@pytest.mark.parametrize("out", ["no/such/folder/out.prunus", "bad_nets.py/out.prunus", ".", "", "out.html"])
def test_compress_refuses_an_unwritable_out_before_the_work(out, refused):
    assert (
        "--page" in (message := refused(1, "compress", NET, DATA, f"--out={out}"))
        or "cannot be written" in message
    )


def test_compress_refuses_an_unwritable_page_before_the_work(refused):
    assert "cannot be written" in refused(1, "compress", NET, DATA, OUT, "--page=no/page.html")


class Bomb:
    def __reduce__(self):
        return os.mkdir, ("exploded",)


WEIGHTS = {
    "missing.pt": lambda path: None,
    "missing.safetensors": lambda path: None,
    "bomb.pt": lambda path: torch.save({"1.weight": Bomb()}, path),
    "bomb.pkl": lambda path: path.write_bytes(pickle.dumps(Bomb())),
    "bomb_2.pt": lambda path: path.write_bytes(pickle.dumps(Bomb(), protocol=2)),
    "module.pt": lambda path: torch.save(nn.Linear(64, 10), path),
    "list.pt": lambda path: torch.save([1, 2], path),
    "numbers.pt": lambda path: torch.save({"1.weight": 3.0}, path),
    "nested.pt": lambda path: torch.save({"state_dict": {"1.weight": [1.0]}}, path),
    "keys.pt": lambda path: torch.save({1: torch.zeros(3)}, path),
    "empty.pt": lambda path: path.write_bytes(b""),
    "empty.safetensors": lambda path: path.write_bytes(b""),
    "text.pt": lambda path: path.write_text("no weights\n"),
    "text.safetensors": lambda path: path.write_text("no weights\n" * 9),
    "zip.pt": lambda path: path.write_bytes(b"PK\x03\x04" + bytes(60)),
    "folder.pt": lambda path: path.mkdir(),
    "folder.safetensors": lambda path: path.mkdir(),
    "cut.pt": lambda path: (
        torch.save(state(), path),
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    ),
    "cut.safetensors": lambda path: (save_file(state(), path), path.write_bytes(path.read_bytes()[:-9])),
    "named.safetensors": lambda path: save_file({"fc.weight": torch.zeros(10, 64)}, path),
    "shaped.safetensors": lambda path: save_file({**state(), "1.weight": torch.zeros(10, 63)}, path),
    "nan.safetensors": lambda path: save_file({**state(), "1.bias": torch.full((10,), torch.nan)}, path),
}
CODES = {"nan.safetensors": 5, "named.safetensors": 7, "shaped.safetensors": 7}


def state():
    return {"1.weight": torch.ones(10, 64), "1.bias": torch.zeros(10)}


@pytest.mark.parametrize("name", WEIGHTS)
def test_compress_refuses_unsuitable_weights(name, refused, folder):
    WEIGHTS[name](folder / name)
    message = refused(CODES.get(name, 4), "compress", NET, DATA, OUT, f"--weights={name}")
    assert name in message or "1.bias" in message
    assert ("is not a file" in message) == name.startswith(("missing", "folder"))
    assert not (folder / "exploded").exists()
    assert not (folder / "out.prunus").exists()


def good(**options) -> bytes:
    return pack(state(), **options)


FILES = {
    "missing": (7, None),
    "empty": (7, b""),
    "text": (7, b"import prunus\n"),
    "truncated": (7, good()[:-5]),
    "flipped": (7, good()[:60] + bytes([good()[60] ^ 1]) + good()[61:]),
    "longer": (7, good() + b"x"),
    "version": (7, good()[:8] + b"\xff\xff" + good()[10:]),
}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(
    "command", [("inspect",), ("inspect", "--json"), ("decompress",), ("evaluate", DATA, NET, "--json")]
)
def test_commands_refuse_a_bad_file(name, command, refused, folder):
    code, content = FILES[name]
    if content is not None:
        (folder / "bad.prunus").write_bytes(content)
    refused(code, command[0], "bad.prunus", *command[1:])


def test_evaluate_refuses_a_file_of_another_model(refused, folder):
    (folder / "a.prunus").write_bytes(good())
    assert "--model" in refused(7, "evaluate", "a.prunus", DATA)
    assert "RuntimeError" in refused(3, "evaluate", "a.prunus", NET, "--data=bad_nets:fails")
    assert "[10, 64]" in refused(7, "evaluate", "a.prunus", DATA, "--model=bad_nets:few_classes")
    assert "missing" in refused(7, "evaluate", "a.prunus", DATA, "--model=lenet-5")
    (folder / "b.prunus").write_bytes(good(model={"name": "lenet-5", "arguments": {}}))
    assert "missing" in refused(7, "evaluate", "b.prunus", DATA)
    (folder / "c.prunus").write_bytes(good(model={"name": "resnet-1000", "arguments": {}}))
    assert "--model" in refused(7, "evaluate", "c.prunus", DATA)
    prunus.save(prunus.models.MODELS["lenet-300-100"](), folder / "d.prunus")
    assert "[100, 1, 8, 8]" in refused(4, "evaluate", "d.prunus", DATA)


@pytest.mark.parametrize("out", ["no/such/folder/a.safetensors", "bad_nets.py/a.safetensors", "."])
def test_decompress_refuses_an_unwritable_out(out, refused, folder):
    (folder / "a.prunus").write_bytes(good())
    assert "cannot be written" in refused(1, "decompress", "a.prunus", f"--out={out}", "--force")
    assert "ends in .safetensors, got a.pt" in refused(1, "decompress", "a.prunus", "--out=a.pt")


def test_full_disk_leaves_existing_files(folder):
    (folder / "a.prunus").write_bytes(pack({"x": torch.linspace(0, 1, 5000)}))
    (folder / "a.safetensors").write_text("mine")
    script = (
        "import resource; from prunus.cli import main;"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096,) * 2);"
        "main(['decompress', 'a.prunus', '--force'])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "error: a.safetensors cannot be written: File too large."
    assert Path("a.safetensors").read_text(encoding="utf-8") == "mine"
    assert {path.name for path in folder.iterdir()} == {"bad_nets.py", "a.prunus", "a.safetensors"}


def test_names_in_a_file_are_printed_without_markup_and_control_codes(folder, capsys):
    evil = "[bold red]\x1b[2J\x1b]0;owned\x07\n[/]\ud800"[:-1]
    Path("evil.prunus").write_bytes(pack({evil: torch.ones(3)}, metadata={"by\x1b[31m": "\x9b31m[link=x]"}))
    with pytest.raises(SystemExit) as ended:
        main(["inspect", "evil.prunus"])
    out, err = capsys.readouterr()
    assert (ended.value.code or 0, err) == (0, "")
    assert not set("\x1b\x07\x9b") & set(out)
    assert "[bold red]\\x1b[2J" in out
    with pytest.raises(SystemExit) as ended:
        main(["evaluate", "evil.prunus", DATA, NET])
    out, err = capsys.readouterr()
    assert ended.value.code == 7
    assert not set("\x1b\x07\x9b") & set(out + err)
    assert err.count("\n") == 1


def test_unknown_names_are_refused(refused):
    assert refused(2, "compres") == "error: Unknown command 'compres'; did you mean 'compress'?"
    assert "available: demo, compress" in refused(2, "frobnicate")
    assert refused(2, "inspect", "a", "--jso") == "error: Unknown option '--jso'; did you mean '--json'?"
    assert refused(2, "inspect") == "error: Missing argument 'FILE'; see `prunus inspect --help`."
    assert "Unknown experiment 'han2051'" in refused(2, "run", "han2051")
    assert "choose one" in refused(2, "run", "han2015", "--smoke", "--full")


def test_unexpected_error_is_one_sentence(refused, folder, monkeypatch):
    arguments = ("compress", "--model=bad_nets:fails_late", DATA, OUT)
    message = refused(70, *arguments)
    assert message == "error: RuntimeError: nobody expects this (PRUNUS_TRACEBACK=1 shows where)"
    monkeypatch.setenv("PRUNUS_TRACEBACK", "1")
    with pytest.raises(RuntimeError, match="nobody expects this"):
        main(list(arguments))


@pytest.mark.parametrize("arguments", [(NET, "--data=bad_nets:fails"), ("--model=bad_nets:fails", DATA)])
def test_failing_user_function_shows_its_traceback_on_request(arguments, refused, folder, monkeypatch):
    message = refused(3 if DATA not in arguments else 4, "compress", *arguments, OUT)
    assert re.match(r"error: The function of the (data set|model) 'fails' failed: ", message)
    assert message.endswith(": RuntimeError: this is mine, and has two lines; correct the function.")
    monkeypatch.setenv("PRUNUS_TRACEBACK", "1")
    with pytest.raises(prunus.PrunusError) as ended:
        main(["compress", *arguments, OUT])
    assert "fails" in [frame.name for frame in traceback.extract_tb(ended.value.__cause__.__traceback__)]


def test_unwritable_data_root_is_refused(refused, folder, monkeypatch):
    monkeypatch.setenv("PRUNUS_DATA", str(folder / "bad_nets.py"))
    prunus.save(prunus.models.MODELS["lenet-300-100"](), folder / "lenet.prunus")
    message = refused(3, "evaluate", "lenet.prunus", "--data=mnist")
    assert "bad_nets.py" in message


# Bad command lines, generated: a kind of fault for each table, and in it every command that the fault concerns.


NUMBER_OPTIONS = {
    "bits": (2, ("0", "9", "-1", "1.5", "x", "")),
    "rounds": (2, ("0", "-1", "x", "", "1e9", "1000000000")),
    "seed": (2, ("-5", str(2**70), str(2**63), "x", "1.5", "")),
    "threads": (2, ("0", "-1", "100000000", str(2**40), "x", "")),
    "density": (5, ("nan", "inf", "-inf", "-1", "0", "-0.0", "2", "1e300", "1e-300")),
    "density, not a number": (2, ("x", "", "0,5", "50%")),
    "cuts": (2, ("0", "-1", "x", "")),
    "examples": (2, ("0", "-1", "x", "")),
    "damping, not a number": (2, ("x", "")),
    "workers": (2, ("0", "-1", "x")),
    "replicates": (2, ("0", "-1", "x")),
}
OTHER_OPTIONS = {
    "scope": {
        2: ("", "x", "1x", "x4", ":", "2:", "-1x4", "2:4:8", "layers", "99999999999:3", "9" * 5000 + ":4"),
        5: ("0x0", "0:0", "4:2", "0:4", "4:4", "3x7", "1x640", "1x999999999", "1:999999999", "1:3"),
    },
    "include": {4: ("conv*", "", "[", "2.bias", "?")},
    "exclude": {4: ("*", "conv*", "", "2.bias", "*.weight")},
    "device": {2: ("", "gpu", "cuda:99", "meta", "cpu:x", "-1")},
    "epochs": {
        2: (
            "",
            "3",
            "=3",
            "dense",
            "dense=",
            "dense=-1",
            "dense=1.5",
            "dense=x",
            "final_retrai=3",
            "dense=" + "9" * 5000,
        )
    },
    "recipe": {2: ("", "x", "lenet-30-100", "LENET5")},
    "criterion": {
        2: ("", "x", "magnitud", "obss", "bad_nets:absent", "bad_nets:", ":net", "no_such_module:f")
    },
    "damping": {5: ("-1", "nan", "inf", "-inf")},
}
MODELS = {
    2: (
        "",
        ":",
        ":net",
        "bad_nets:",
        "bad nets:net",
        "bad_nets:net:net",
        "lenet",
        "absent:net",
        "bad_nets:absent",
        "broken:f",
    ),
    4: (
        *(
            "bad_nets:nothing",
            "bad_nets:interrupts",
            "bad_nets:on_meta",
            "bad_nets:lazy",
            "bad_nets:Returning",
        ),
        "bad_nets:returns_tuple",
        *(
            "bad_nets:returns_none",
            "bad_nets:returns_classes",
            "os:getcwd",
            "os:system",
        ),
        *("resnet-20", "conv-2", "lenet-5"),
    ),
}
DATA_SETS = {
    2: ("", "x", "minst", "MNIST2", "bad_nets:absent", "absent:few"),
    3: tuple(
        f"bad_nets:{name}"
        for name in (
            *(
                "nothing",
                "pair",
                "net",
                "interrupts",
                "empty",
                "labels_too_high",
                "labels_negative",
                "labels_float",
            ),
            *("labels_short", "labels_matrix", "labels_numpy", "inputs_numpy", "inputs_list", "nan_in_train"),
            *("infinity_in_validation", "nan_in_test", "unlike_shapes"),
        )
    ),
}
WEIGHT_FILES = {
    7: (
        *("other.safetensors", "integers.safetensors", "complex.safetensors", "empty.safetensors"),
        *("cut.prunus", "lenet.prunus"),
    ),
    5: ("nan.safetensors", "infinite.safetensors"),
    4: (
        "zeros.safetensors",
        "absent.safetensors",
        "text.pt",
        "folder",
        "evil.pt",
        "short.safetensors",
    ),
}
SETTINGS = (
    *(
        "",
        "=",
        "=1",
        "epochs",
        "x=1",
        "epoch=1",
        "epochs=",
        "epochs=x",
        "epochs=1.5",
        "epochs=0",
        "epochs=-1",
    ),
    *("batch_size=0", "batch_size=x", "network=", "network=lenett", "network=lenet,lenet", "optimizer=adamm"),
    *("model=lenet-301", "data=minst", "dense=1", "dense.recipe=1", "patience=1", "rounds=0", "rounds=x"),
    *("learning_rate=nan", "learning_rate=inf", "learning_rate=x", "seed=x"),
)

COMPRESS = ("compress", "--model=bad_nets:net", "--data=bad_nets:few", "--out=out.prunus")
PRUNE = (
    "prune",
    "bad_nets:net",
    "--weights=whole.safetensors",
    "--data=bad_nets:few",
    "--density=0.5",
    "--out=out.prunus",
)
EVALUATE = ("evaluate", "whole.prunus", "--data=bad_nets:few", "--model=bad_nets:net")
EXPERIMENT = ("run", "zhou2019.criteria", "--smoke", "--out=out", "--store=out/store")
DEMO = ("demo", "--out=out")


def bad_command_lines():
    """(exit code, arguments) of each."""
    takers = {
        "compress": (
            COMPRESS,
            ("bits", "rounds", "seed", "threads", "density", "scope", "include", "exclude"),
        ),
        "compress too": (COMPRESS, ("device", "epochs", "recipe")),
        "prune": (
            PRUNE,
            ("seed", "threads", "density", "cuts", "examples", "scope", "include", "exclude", "device"),
        ),
        "prune too": (PRUNE, ("criterion",)),
        "prune by obs": ((*PRUNE, "--criterion=obs"), ("damping",)),
        "evaluate": (EVALUATE, ("device",)),
        "demo": (DEMO, ("seed", "threads", "device")),
        "run": (EXPERIMENT, ("seed", "workers", "replicates")),
    }
    for command, options in takers.values():
        for option in options:
            for key, (code, values) in NUMBER_OPTIONS.items():
                if key.partition(",")[0] == option:
                    yield from ((code, *command, f"--{option}={value}") for value in values)
            for code, values in OTHER_OPTIONS.get(option, {}).items():
                yield from ((code, *command, f"--{option}={value}") for value in values)
    for code, names in MODELS.items():
        for name in names:
            yield code, "compress", f"--model={name}", *COMPRESS[2:]
            yield code, "prune", name, *PRUNE[3:]
    for code, names in DATA_SETS.items():
        for name in names:
            for command in (COMPRESS, PRUNE, EVALUATE):
                yield code, *(part for part in command if not part.startswith("--data")), f"--data={name}"
    for code, names in WEIGHT_FILES.items():
        for name in names:
            yield code, *COMPRESS, f"--weights={name}"
            yield code, *(part for part in PRUNE if not part.startswith("--weights")), f"--weights={name}"
    for setting in SETTINGS:
        yield 2, *EXPERIMENT, f"--set={setting}"
    yield from OTHERS


OTHERS = [
    (4, "compress", "--model=bad_nets:frozen", *COMPRESS[2:]),
    (4, "compress", "--model=bad_nets:detached", *COMPRESS[2:]),
    (4, "compress", "--model=bad_nets:normalized", "--data=bad_nets:one_left", "--out=out.prunus"),
    (5, "compress", "--model=bad_nets:nan_weights", *COMPRESS[2:]),
    (5, *COMPRESS, "--scope=2:4", "--density=0.3", "--rounds=1"),
    (5, *COMPRESS, "--scope=2:4", "--density=0.5", "--rounds=4"),
    (1, *COMPRESS, "--checkpoints=text.pt"),
    (1, *COMPRESS, "--checkpoints=text.pt/below"),
    (1, *COMPRESS, "--page=out.prunus"),
    (1, *COMPRESS, "--page=folder"),
    (3, "prune", "bad_nets:net", "--density=0.5"),
    (1, "prune", "bad_nets:net", "--density=0.5", "--data=digits", "--out=out.txt"),
    (7, "prune", "absent.prunus", "--density=0.5"),
    (7, "prune", "cut-lenet.prunus", "--density=0.5"),
    (4, "prune", "whole.prunus", "--density=0.5"),
    (4, "prune", "whole.prunus", "--weights=whole.safetensors", "--density=0.5"),
    (5, *PRUNE, "--damping=0.1"),
    (5, *PRUNE, "--steps=3"),
    (5, *PRUNE, "--criterion=sparse_gpt", "--steps=3"),
    (5, *PRUNE, "--criterion=obd", "--damping=0.1"),
    (5, *PRUNE, "--criterion=obs", "--steps=1000000000"),
    (5, *PRUNE, "--criterion=fisher", "--damping=0"),
    (5, *PRUNE, "--criterion=obs", "--damping=1e308"),
    (5, *PRUNE, "--scope=2:4", "--density=0.3"),
    *(
        (7, command, f"{name}.prunus")
        for command in ("inspect", "decompress")
        for name in ("absent", "cut", "flipped", "text", "none")
    ),
    *(
        (7, *EVALUATE[:1], f"{name}.prunus", *EVALUATE[2:])
        for name in ("absent", "cut", "flipped", "text", "none")
    ),
    (7, "evaluate", "whole.prunus", "--data=bad_nets:few"),
    (7, "evaluate", "whole.prunus", "--data=bad_nets:few", "--model=lenet-5"),
    (4, "evaluate", "lenet.prunus", "--data=bad_nets:few"),
    (2, "evaluate", "whole.prunus", "--data=bad_nets:few", "--model=lenet"),
    (1, *COMPRESS, "--out=new.safetensors"),
    (1, "pack", "whole.safetensors", "--out=new.pt"),
    (1, "slim", "lenet-300-100", "--macs=0.5", "--out=new.bin"),
    (1, "demo", "--out=text.pt"),
    (1, "demo", "--out=text.pt/below"),
    (2, "run", "zhou2019.critera"),
    (2, "run", ""),
    (2, "run", "zhou2019", "--smoke", "--full"),
    (2, "run", "han2015.tables", "--set=epochs=3"),
    (2, *EXPERIMENT, "--executor=process"),
    (2, *EXPERIMENT, "--set=epochs=1", "--set=epochs=2"),
    (2, *EXPERIMENT, "--set=epochs=1", "--set=dense.recipe.epochs=2"),
    (8, *EXPERIMENT[:3], "--out=out", "--store=text.pt"),
    (1, *EXPERIMENT[:3], "--out=text.pt", "--store=out/store"),
    (2, "figure", "zhou2019.critera", "--store=store"),
    (8, "figure", "zhou2019.criteria", "--store=absent"),
    (8, "figure", "zhou2019.criteria", "--store=text.pt"),
    (8, "figure", "zhou2019.criteria", "--store=store", "--out=out"),
    (8, "figure", "han2015.tables", "--store=store"),
    *(
        (8, "runs", *command, f"--store={store}")
        for command in (
            ("list",),
            ("show", "x"),
            ("compare", "x", "y"),
            ("save", "x", "out"),
            ("rm", "x"),
        )
        for store in ("absent", "text.pt", "folder")
    ),
    *(
        (8, "runs", *command, "--store=store")
        for command in (("show", "x"), ("compare", "x", "y"), ("save", "x", "out"), ("rm", "x"))
    ),
    *((8, "runs", "show", id, "--store=store") for id in ("", "dense", "../../folder", "' OR 1=1 --", "*")),
    (2, "runs", "lst", "--store=store"),
    (2, "runs", "show", "--store=store"),
    (2, "runs", "show", "a", "b", "--store=store"),
    (2, "runs", "list"),
    (2, "compres"),
    (2, ""),
    (2, "--verson"),
    (2, "inspect"),
    (2, "inspect", "a", "b"),
    (2, "inspect", "a", "--json=1"),
    (2, "compress", "--model"),
]


@pytest.fixture(scope="module")
def shared_folder(tmp_path_factory):
    """A folder with every file that the bad command lines name."""
    folder = tmp_path_factory.mktemp("bad")
    (folder / "bad_nets.py").write_text(OWN)
    (folder / "broken.py").write_text("def f(:\n")
    (folder / "folder").mkdir()
    (folder / "text.pt").write_text("no weights\n")
    valid = pack(state())
    contents = {"whole": valid, "cut": valid[:-9], "text": b"import prunus\n", "none": b""}
    contents["flipped"] = valid[:60] + bytes([valid[60] ^ 1]) + valid[61:]
    for name, content in contents.items():
        (folder / f"{name}.prunus").write_bytes(content)
    prunus.save(prunus.models.MODELS["lenet-300-100"](), folder / "lenet.prunus")
    (folder / "cut-lenet.prunus").write_bytes((folder / "lenet.prunus").read_bytes()[:-9])
    weights = {
        "whole": state(),
        "other": {"fc.weight": torch.ones(10, 64)},
        "integers": {name: tensor.long() for name, tensor in state().items()},
        "complex": {name: tensor.to(torch.complex64) for name, tensor in state().items()},
        "empty": {},
        "nan": {**state(), "1.bias": torch.full((10,), torch.nan)},
        "infinite": {**state(), "1.weight": torch.full((10, 64), torch.inf)},
        "zeros": {name: torch.zeros_like(tensor) for name, tensor in state().items()},
    }
    for name, tensors in weights.items():
        save_file(tensors, folder / f"{name}.safetensors")
    (folder / "short.safetensors").write_bytes((folder / "whole.safetensors").read_bytes()[:-9])
    (folder / "evil.pt").write_bytes(pickle.dumps(Bomb()))
    store = Store(folder / "store")
    for seed in range(2):
        opened = store.open(BaselineSpec(replicate=seed), "inline")
        opened.append_row({"level": 0, "density": 1.0})
        store.finish(opened, {})
    return folder


def content(folder):
    """What is in a folder, but for what Python keeps there for itself."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else b""
        for path in folder.rglob("*")
        if "__pycache__" not in path.parts
    }


def misspelled_options():
    """Every option of every command, with a letter left out."""
    commands = get_command(app).commands
    groups = {(name,): command for name, command in commands.items() if name != "runs"}
    groups |= {("runs", name): command for name, command in commands["runs"].commands.items()}
    for names, command in groups.items():
        for option in (option for parameter in command.params for option in parameter.opts):
            if option.startswith("--"):
                yield option, (*names, f"{option[:-2]}{option[-1]}")


CASES = list(bad_command_lines())


def test_bad_command_lines_are_many():
    assert len({tuple(case) for case in CASES}) > 400


@pytest.mark.parametrize("case", CASES, ids=lambda case: " ".join(case[1:])[:100])
def test_bad_command_line_ends_in_one_sentence_before_any_work(case, shared_folder, monkeypatch, capsys):
    monkeypatch.chdir(shared_folder)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "bad_nets", raising=False)
    code, *arguments = case
    before, start = content(shared_folder), time.process_time()
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    seconds = time.process_time() - start
    out, err = capsys.readouterr()
    after = content(shared_folder)
    for path in sorted(after.keys() - before.keys(), reverse=True):  # or the next command would find it there
        (shared_folder / path).rmdir() if (shared_folder / path).is_dir() else (shared_folder / path).unlink()
    assert ended.value.code == code, err
    assert out == ""
    *before_it, sentence = err.splitlines()
    assert all(
        line.startswith("warning: ") or line.endswith(" so far") for line in before_it
    )  # the latter on a slow machine
    assert sentence.startswith("error: ")
    assert "Traceback" not in sentence
    assert after == before
    assert seconds < 20  # CPU seconds; 1 on an idle machine, and a training takes longer


def test_damaged_run_is_named_with_the_command_that_removes_it(shared_folder, tmp_path, run_cli):
    store = shutil.copytree(shared_folder / "store", tmp_path / "store")
    (run, *_) = sorted((store / "runs").iterdir())
    (run / "run.json").write_text((run / "run.json").read_text()[:20])
    message = run_cli("runs", "show", run.name, "--store", store, code=8).err
    assert f"{run / 'run.json'} is damaged" in message
    command = re.search("`prunus (.*?)`", message)[1]
    run_cli(*shlex.split(command))
    assert not run.exists()


def test_misspelled_setting_is_suggested(refused):
    arguments = ("run", "zhou2019.criteria", "--smoke", "--out=out", "--store=out/store")
    assert refused(2, *arguments, "--set=epoch=1").endswith("Unknown setting 'epoch'; did you mean 'epochs'?")
    assert refused(2, *arguments, "--set=networks=lenet").endswith("did you mean 'network'?")
    assert "did you mean 'nothing_to_prune'?" in refused(
        2, "prune", "bad_nets:nothing_to_prun", "--density=0.5"
    )


@pytest.mark.parametrize(("option", "arguments"), list(misspelled_options()), ids=str)
def test_misspelled_option_is_suggested(option, arguments, refused):
    assert refused(2, *arguments) == f"error: Unknown option {arguments[-1]!r}; did you mean {option!r}?"
