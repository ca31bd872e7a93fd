"""Bad input to the command line: one sentence, an exit code that means something, nothing half-written."""

import os
import pickle
import subprocess
import sys
import traceback
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import prunus
from prunus.cli import main
from prunus.cli.show import clean
from prunus.compression.container import pack

OWN = """
import prunus
import torch
from torch import nn

def net():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))

def nothing_to_prune():
    return nn.Sequential(nn.Flatten(), nn.LayerNorm(64))

class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(64, 64), nn.Linear(64, 64)
        self.b.weight = self.a.weight
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
    def forward(self, x):
        if self.training:
            raise RuntimeError("nobody expects this")
        return super().forward(x.flatten(1))

def fails_late():
    return Late(64, 10)

def few_classes():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 9))

def not_logits():
    return nn.Conv2d(1, 10, 3)

not_callable = 3
"""
NET = "--model=bad_nets:net"
DATA = "--data=digits"
OUT = "--out=out.prunus"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty folder with bad_nets.py, to stand in."""
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
        sentences = [line for line in err.splitlines() if line.startswith("error: ")]
        if code == 2 and not sentences:  # a wrong option, in the words of the option parser
            return err
        assert len(sentences) == 1
        assert err.endswith(sentences[0] + "\n")
        return sentences[0]

    return call


@pytest.mark.parametrize(
    ("code", "arguments", "says"),
    [
        (2, ("--model=lenet-301", DATA), "did you mean 'lenet-300-100'"),
        (2, (NET, "--data=minst"), "did you mean 'mnist'"),
        (2, (NET, DATA, "--recipe=lenet-30-100"), "did you mean 'lenet-300-100'"),
        (2, (NET, DATA, "--epochs=setle=3"), "did you mean 'settle'"),
        (2, (NET, DATA, "--epochs=3"), "STAGE=N"),
        (2, (NET, DATA, "--epochs=settle=-1"), "STAGE=N"),
        (2, (NET, DATA, "--bits=9"), "--bits"),
        (2, (NET, DATA, "--bits=0"), "--bits"),
        (2, (NET, DATA, "--rounds=0"), "--rounds"),
        (2, (NET, DATA, "--threads=0"), "--threads"),
        (2, (NET,), "--data"),
        (2, ("--model=bad_nets", DATA), "bad_nets"),
        (2, ("--model=bad_nets:", DATA), "package.module:function"),
        (2, ("--model=bad_nets:nett", DATA), "has no 'nett'"),
        (2, ("--model=bad_nets:not_callable", DATA), "not a function"),
        (2, ("--model=no_such_module:net", DATA), "no_such_module"),
        (4, ("--model=bad_nets:needs_an_argument", DATA), "width"),
        (4, ("--model=bad_nets:no_module", DATA), "returned a int"),
        (4, ("--model=bad_nets:fails", DATA), "this is mine, and has two lines"),
        (4, ("--model=bad_nets:few_classes", DATA), "[2, 9]"),
        (4, ("--model=bad_nets:not_logits", DATA), "[2, 10, 6, 6]"),
        (4, ("--model=bad_nets:nothing_to_prune", DATA), "no weight to prune"),
        (4, ("--model=bad_nets:Tied", DATA), "exclude"),
        (4, (NET, DATA, "--include=conv*"), "conv*"),
        (4, (NET, DATA, "--exclude=*"), "no weight to prune"),
        (4, ("--model=lenet-300-100", DATA), "[2, 1, 8, 8]"),
        (4, ("--model=bad_nets:quits", DATA), "SystemExit: 0"),
        (3, (NET, "--data=bad_nets:no_module"), "returned a int"),
        (3, (NET, "--data=bad_nets:fails"), "no data set: RuntimeError: this is mine, and has two lines"),
        (
            3,
            (NET, "--data=bad_nets:needs_an_argument"),
            "no data set: TypeError: needs_an_argument() missing 1",
        ),
        (3, (NET, "--data=bad_nets:quits"), "no data set: SystemExit: 0"),
        (3, (NET, "--data=bad_nets:unsplit"), "no data set: AttributeError: 'list' object has no attribute"),
        (5, (NET, DATA, "--density=0"), "above 0"),
        (5, (NET, DATA, "--density=0.0005"), "none of the 640 weights of all layers"),
        (5, (NET, DATA, "--density=0.0005", "--recipe=lenet-300-100"), "of the 640 weights of '1.weight'"),
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
def test_a_device_that_is_not_there(command, device, refused, folder):
    (folder / "a.prunus").write_bytes(good())
    said = refused(2, *command, f"--device={device}")
    assert said.startswith(f"error: {clean(repr(device))} is no device to compute on here")
    assert ": cpu" in said


@pytest.mark.parametrize("out", ["no/such/folder/out.prunus", "bad_nets.py/out.prunus", ".", "", "out.html"])
def test_compress_refuses_an_out_it_cannot_write_before_the_work(out, refused):
    assert (
        "--page" in (said := refused(1, "compress", NET, DATA, f"--out={out}")) or "cannot be written" in said
    )


def test_compress_refuses_a_page_it_cannot_write_before_the_work(refused):
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
def test_compress_refuses_weights(name, refused, folder):
    WEIGHTS[name](folder / name)
    said = refused(CODES.get(name, 4), "compress", NET, DATA, OUT, f"--weights={name}")
    assert name in said or "1.bias" in said
    assert ("is not a file" in said) == name.startswith(("missing", "folder"))
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
def test_a_bad_file(name, command, refused, folder):
    code, content = FILES[name]
    if content is not None:
        (folder / "bad.prunus").write_bytes(content)
    refused(code, command[0], "bad.prunus", *command[1:])


def test_a_file_of_another_model(refused, folder):
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
    assert "[2, 1, 8, 8]" in refused(4, "evaluate", "d.prunus", DATA)


@pytest.mark.parametrize("out", ["no/such/folder/a.safetensors", "bad_nets.py/a.safetensors", "."])
def test_decompress_refuses_an_out_it_cannot_write(out, refused, folder):
    (folder / "a.prunus").write_bytes(good())
    assert "cannot be written" in refused(1, "decompress", "a.prunus", f"--out={out}", "--force")


def test_a_full_disk_leaves_what_was_there(folder):
    (folder / "a.prunus").write_bytes(pack({"x": torch.linspace(0, 1, 5000)}))
    (folder / "a.safetensors").write_text("mine")
    script = (
        "import resource; from prunus.cli import main;"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096,) * 2);"
        "main(['decompress', 'a.prunus', '--force'])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert done.stderr == "error: a.safetensors cannot be written: File too large.\n"
    assert Path("a.safetensors").read_text(encoding="utf-8") == "mine"
    assert {path.name for path in folder.iterdir()} == {"bad_nets.py", "a.prunus", "a.safetensors"}


def test_names_in_a_file_are_neither_markup_nor_control_codes(folder, capsys):
    evil = "[bold red]\x1b[2J\x1b]0;owned\x07\n[/]\ud800"[:-1]
    Path("evil.prunus").write_bytes(pack({evil: torch.ones(3)}, made={"by\x1b[31m": "\x9b31m[link=x]"}))
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


def test_unknown_commands_options_experiments_and_sizes(refused):
    assert "No such command" in refused(2, "compres")
    assert "No such option" in refused(2, "inspect", "a", "--jso")
    assert "No experiment is called 'han2051'" in refused(2, "run", "han2051")
    assert "choose one" in refused(2, "run", "han2015", "--smoke", "--full")


def test_a_fault_nobody_foresaw_is_still_a_sentence(refused, folder, monkeypatch):
    asked = ("compress", "--model=bad_nets:fails_late", DATA, OUT)
    said = refused(70, *asked)
    assert said == "error: RuntimeError: nobody expects this (PRUNUS_TRACEBACK=1 shows where)"
    monkeypatch.setenv("PRUNUS_TRACEBACK", "1")
    with pytest.raises(RuntimeError, match="nobody expects this"):
        main(list(asked))


@pytest.mark.parametrize("arguments", [(NET, "--data=bad_nets:fails"), ("--model=bad_nets:fails", DATA)])
def test_a_function_of_ones_own_that_fails_can_show_where(arguments, refused, folder, monkeypatch):
    said = refused(3 if DATA not in arguments else 4, "compress", *arguments, OUT)
    assert said.startswith("error: bad_nets:fails was called without arguments and ")
    assert said.endswith(": RuntimeError: this is mine, and has two lines")
    monkeypatch.setenv("PRUNUS_TRACEBACK", "1")
    with pytest.raises(prunus.PrunusError) as ended:
        main(["compress", *arguments, OUT])
    assert "fails" in [frame.name for frame in traceback.extract_tb(ended.value.__cause__.__traceback__)]


def test_a_data_root_that_cannot_be_written(refused, folder, monkeypatch):
    monkeypatch.setenv("PRUNUS_DATA", str(folder / "bad_nets.py"))
    prunus.save(prunus.models.MODELS["lenet-300-100"](), folder / "lenet.prunus")
    said = refused(3, "evaluate", "lenet.prunus", "--data=mnist")
    assert "bad_nets.py" in said
