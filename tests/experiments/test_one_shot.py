"""The network of the experiment one_shot: its weights are those of the file, and its runs know their digest."""

from pathlib import Path

import pytest
import torch

from prunus.errors import ModelError, ModelMismatchError, StoreError
from prunus.experiments.function_run import FunctionRun
from prunus.experiments.one_shot import OneShot, accuracy_per_sparsity, trained_network
from prunus.models import MODELS
from prunus.runs.executors import run_plan
from prunus.runs.spec import run_id
from prunus.runs.store import Store


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "weights.pt"
    torch.save(MODELS["lenet-300-100"](seed=1).state_dict(), path)
    return path


def test_file_that_lacks_a_weight_is_refused(file: Path) -> None:
    state = torch.load(file)
    del state["fc2.weight"]
    torch.save(state, file)
    settings = OneShot(weights=str(file), model="lenet-300-100")
    with pytest.raises(ModelMismatchError, match=r"fc2\.weight is missing"):
        trained_network(settings, None)
    file.unlink()
    with pytest.raises(ModelError, match="is not a file"):
        trained_network(settings, None)


def test_networks_of_two_files_of_one_name_are_not_mixed(file: Path, tmp_path: Path) -> None:
    settings, store = OneShot(weights=str(file), model="lenet-300-100", methods="none"), Store(tmp_path)
    network = FunctionRun.of(trained_network, settings, replicate=None)
    run_plan([network], store, executor="inline")
    stored = store.directory(run_id(network)).load_tensors("tensors")
    expected = MODELS["lenet-300-100"](seed=1).state_dict()
    assert all(torch.equal(stored[name], tensor) for name, tensor in expected.items())
    torch.save(MODELS["lenet-300-100"](seed=2).state_dict(), file)
    with pytest.raises(StoreError, match=f"weights.pt gives other data than the run {run_id(network)}"):
        run_plan(
            [FunctionRun.of(accuracy_per_sparsity, settings, inputs=(network,))], store, executor="inline"
        )
