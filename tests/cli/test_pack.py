"""`prunus pack` writes any weights file into a .prunus file, bit for bit."""

import json

import pytest
import torch
from safetensors.torch import save_file

from prunus.compression.container import read, read_header
from prunus.compression.container.file_format import as_bytes

STATE = {
    "weight": torch.tensor([[0.0, -0.0, 1.5], [0.0, 0.0, float("nan")]]),
    "mask": torch.full((3, 3), -torch.inf).triu(1),
    "half": torch.arange(8, dtype=torch.bfloat16),
    "small": torch.arange(256).to(torch.uint8).view(torch.float8_e5m2),
    "steps": torch.tensor(3),
}


def equal(state, other):
    return list(state) == list(other) and all(
        torch.equal(as_bytes(tensor), as_bytes(other[name])) for name, tensor in state.items()
    )


def test_safetensors_file_is_packed_and_unpacked_bit_for_bit(run_cli, tmp_path):
    save_file(STATE, tmp_path / "w.safetensors", metadata={"format": "pt", "of": "x"})
    printed = json.loads(run_cli("pack", tmp_path / "w.safetensors", "--json").out)
    assert printed["file_bytes"] == (tmp_path / "w.prunus").stat().st_size
    back = read(tmp_path / "w.prunus")
    assert equal(dict(sorted(STATE.items())), dict(sorted(back.items())))
    assert read_header(tmp_path / "w.prunus")["made"]["safetensors"]["of"] == "x"
    run_cli("decompress", tmp_path / "w.prunus", "--out", tmp_path / "again.safetensors")


def test_a_file_of_another_kind_is_named(run_cli, tmp_path):
    save_file(STATE, tmp_path / "w.safetensors")
    run_cli("pack", tmp_path / "w.safetensors")
    (tmp_path / "w.safetensors").rename(tmp_path / "w.bin")
    for name, head in (("w.prunus", r"\x89prunus"), ("w.bin", "b'")):
        message = run_cli("pack", tmp_path / name, "--out", tmp_path / "out.prunus", code=4).err
        assert f"{name} is neither and begins with" in message
        assert head in message


def test_torch_checkpoint_is_packed_with_its_own_names(run_cli, tmp_path):
    state = {
        **STATE,
        "complex": torch.ones(2, dtype=torch.complex128),
        "fp8._extra_state": {"scale": (1, 2.0)},
    }
    torch.save({"model": {f"module.{n}": t for n, t in state.items()}, "epoch": 3}, tmp_path / "w.pth")
    printed = run_cli("pack", tmp_path / "w.pth", "--out", tmp_path / "out.prunus")
    assert "taken from 'model'" in printed.err
    assert "out.prunus: 7 tensors" in printed.out
    back = read(tmp_path / "out.prunus")
    assert back.pop("module.fp8._extra_state") == {"scale": (1, 2.0)}
    assert equal({f"module.{n}": t for n, t in state.items() if n != "fp8._extra_state"}, back)


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"no weights", "cannot be read"), (None, "is not a file"), ({"w": torch.eye(2).to_sparse()}, "sparse")],
)
def test_other_files_are_refused_and_nothing_is_written(run_cli, tmp_path, content, message):
    path = tmp_path / "w.safetensors"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        path = tmp_path / "w.pt"
        torch.save(content, path)
    printed = run_cli("pack", path, code=7 if isinstance(content, dict) else 4)
    assert message in printed.err
    assert not list(tmp_path.glob("*.prunus"))


def test_existing_file_is_kept_without_force(run_cli, tmp_path):
    save_file(STATE, tmp_path / "w.safetensors")
    (tmp_path / "w.prunus").write_bytes(b"mine")
    run_cli("pack", tmp_path / "w.safetensors", code=1)
    assert (tmp_path / "w.prunus").read_bytes() == b"mine"
    run_cli("pack", tmp_path / "w.safetensors", "--force")


def test_prunus_file_is_taken_as_weights(run_cli, tmp_path, monkeypatch):
    (tmp_path / "nets_of_pack.py").write_text(
        "from torch import nn\ndef net(): return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    torch.manual_seed(0)
    torch.save({"net": torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10)).state_dict()}, "w.pt")
    run_cli("pack", "w.pt")
    run_cli(
        "prune",
        "nets_of_pack:net",
        "--weights",
        "w.prunus",
        "--data",
        "digits",
        "--density",
        "0.5",
        "--out",
        "o.prunus",
    )
    assert int(read("o.prunus")["1.weight"].count_nonzero()) == 320


def test_a_folder_is_no_file_to_pack(run_cli, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "it is a folder" in run_cli("pack", ".", code=1).err
