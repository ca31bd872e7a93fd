"""`prunus doctor`: its report, and the problems that it finds."""

import json
import subprocess
import sys
import types
from importlib.metadata import version

import pytest

import prunus
from prunus import diagnostics
from prunus.diagnostics import OPTIONAL, REQUIRED, diagnose


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty current folder; the data root in it does not exist yet."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PRUNUS_DATA", str(tmp_path / "data"))
    return tmp_path


def problems(err):
    """The lines on stderr, without those that a slow machine adds: "prunus doctor: 2 s so far"."""
    return [line for line in err.splitlines() if not line.startswith("prunus ")]


def test_doctor_reports_all_sections_and_creates_nothing(folder, run_cli):
    report = json.loads(run_cli("doctor", "--json").out)
    assert report == json.loads(json.dumps(diagnose().to_json()))
    assert report["problems"] == []
    assert report["versions"]["prunus"] == prunus.__version__
    assert {name: report["versions"][name] for name in REQUIRED} == {name: version(name) for name in REQUIRED}
    assert report["machine"].keys() >= {"cpu", "cpu capability", "cpus", "torch threads", "gpus"}
    assert report["data"]["root"] == str(folder / "data")
    assert set(report["data"]) == {"root", "mnist", "fashion-mnist", "cifar-10"}
    assert "downloaded" in report["data"]["mnist"]
    assert report["optional"] == {name: version(name) for names in OPTIONAL.values() for name in names}
    printed = run_cli("doctor")
    assert printed.out.endswith("No problem found.\n")
    assert problems(printed.err) == []
    assert list(folder.iterdir()) == []


def test_doctor_names_a_data_root_and_a_store_that_cannot_be_written(folder, run_cli, monkeypatch):
    (folder / "file").write_text("")
    monkeypatch.setenv("PRUNUS_DATA", str(folder / "file"))
    printed = run_cli("doctor", "--store", folder / "file" / "below", code=1)
    data, store = problems(printed.err)
    assert data.startswith(
        f"problem: The data root {folder / 'file'} cannot be written (it is not a folder), so that mnist"
    )
    assert data.endswith("or set PRUNUS_DATA to another folder.")
    assert store.startswith(f"problem: The store {folder / 'file' / 'below'} cannot be written: ")
    assert "No problem found" not in printed.out
    assert len(json.loads(run_cli("doctor", "--store=file", "--json", code=1).out)["problems"]) == 2


def test_complete_data_root_need_not_be_writable(folder, monkeypatch):
    names = [f"{name}/{file}" for name in ("mnist", "fashion-mnist") for file in prunus.data.mnist.FILES]
    names += [f"cifar-10-batches-bin/{part}.bin" for part in prunus.data.cifar10.PARTS]
    for name in names:
        (folder / "data" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "data" / name).write_text("")
    monkeypatch.setattr(
        diagnostics, "why_not_writable", lambda path: "Read-only file system" if path.name == "data" else ""
    )
    assert diagnose().problems == []
    (folder / "data" / names[-1]).unlink()
    (problem,) = diagnose().problems
    assert "(Read-only file system), so that cifar-10 cannot be downloaded" in problem


def test_missing_optional_package_is_no_problem(folder, run_cli, monkeypatch):
    for name in ("jinja2", "matplotlib", "PIL"):
        monkeypatch.setitem(sys.modules, name, None)
    optional = json.loads(run_cli("doctor", "--json").out)["optional"]
    assert optional["jinja2"] == optional["matplotlib"] == 'missing: pip install "prunus[cli]"'
    assert optional["pillow"] == 'missing: pip install "prunus[images]"'
    assert "magnitude" in run_cli("list").out


@pytest.mark.parametrize("name", REQUIRED)
def test_missing_required_package_is_a_problem(name, folder, run_cli, monkeypatch):
    monkeypatch.setitem(sys.modules, name, None)
    assert problems(run_cli("doctor", code=1).err) == [
        f"problem: {name} is not installed: pip install {name}"
    ]


def test_doctor_works_in_a_process_without_torch(folder):
    code = "import sys; sys.modules['torch'] = None; from prunus.cli import main; main(['doctor'])"
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert "Traceback" not in process.stderr
    assert process.returncode == 1
    assert problems(process.stderr) == ["problem: torch is not installed: pip install torch"]


def test_incompatible_torch_and_numpy_are_a_problem(folder, run_cli, monkeypatch):
    def refuse(array):
        raise RuntimeError("Numpy is not available")

    monkeypatch.setattr("torch.from_numpy", refuse)
    (line,) = problems(run_cli("doctor", code=1).err)
    assert line.startswith(
        f"problem: torch {version('torch')} and numpy {version('numpy')} do not work together"
    )


@pytest.mark.parametrize("path", [None, "file/below"])
def test_unwritable_cache_is_no_problem(path, folder, monkeypatch):
    (folder / "file").write_text("")
    function = types.SimpleNamespace(stats=types.SimpleNamespace(cache_path=path))
    monkeypatch.setitem(sys.modules, "compiled", types.SimpleNamespace(function=function))
    monkeypatch.setattr(diagnostics, "COMPILED", "compiled")
    diagnosis = diagnose()
    assert diagnosis.problems == []
    assert "NUMBA_CACHE_DIR" in diagnosis.to_json()["cache"]["numba"]
