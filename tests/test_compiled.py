"""Kernels are compiled and right with a cache that is missing, damaged, or cannot be written."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

KERNELS = """
from prunus.compiled import compile_kernel

@compile_kernel()
def add_one(number):
    return number + 1

@compile_kernel()
def add_two(number):
    return add_one(add_one(number))
"""
RUN = "import kernels; print(kernels.add_two(1), kernels.add_two.stats.cache_hits)"


def run(folder: Path, code: str = RUN, **environment: str) -> str:
    """The output of `code` in another process, started in `folder`."""
    (folder / "kernels.py").write_text(KERNELS)
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{folder}", **environment},
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_kernels_are_compiled_when_no_directory_can_hold_a_cache(tmp_path):
    """Files stand where the directories would be, so that not even root can write there."""
    (tmp_path / "__pycache__").write_text("")
    (tmp_path / "home").write_text("")
    home = str(tmp_path / "home")
    assert run(tmp_path, HOME=home, XDG_CACHE_HOME=home, PYTHONDONTWRITEBYTECODE="1") == "3 Counter()"


def test_kernels_are_compiled_when_the_cache_is_damaged(tmp_path):
    assert run(tmp_path) == "3 Counter()"
    assert "1" in run(tmp_path).removeprefix("3 ")  # the second process compiles nothing
    files = [path for path in tmp_path.rglob("*") if path.suffix in (".nbi", ".nbc")]
    assert len(files) == 4
    for path in files:
        path.write_bytes(path.read_bytes()[:20])
    assert run(tmp_path) == "3 Counter()"


def test_kernels_are_compiled_when_the_cache_cannot_be_written_any_more(tmp_path):
    """The directory is there when the kernels are defined, and a file when they are compiled."""
    break_cache = (
        "import kernels, shutil, pathlib; shutil.rmtree('__pycache__'); pathlib.Path('__pycache__').touch();"
    )
    assert run(tmp_path, break_cache + RUN) == "3 Counter()"


@pytest.mark.parametrize("word", ["njit", "numba.jit", "cache=True"])
def test_every_kernel_is_compiled_by_the_same_decorator(word):
    users = [path for path in (ROOT / "prunus").rglob("*.py") if word in path.read_text()]
    assert [path.name for path in users if path.name != "compiled.py"] == []
