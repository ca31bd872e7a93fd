"""Long work reports every step, and can be interrupted."""

import sys
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import nn

from prunus.masks import all_kept
from prunus.pruning.methods import METHODS
from prunus.pruning.obs.diagonals import DIAGONALS
from prunus.pruning.obs.exact_obs import ExactObs
from prunus.pruning.obs.fisher import Fisher
from prunus.pruning.obs.full_obs import FullObs
from prunus.pruning.obs.hessian import layer_hessians
from prunus.pruning.obs.objective import make_objective
from prunus.pruning.obs.state import prune_in_steps
from prunus.pruning.prunable import prunable_weights
from prunus.pruning.recalibrate import recalibrate_batchnorm
from prunus.pruning.scopes import SCOPES
from prunus.pruning.sensitivity import sensitivity
from prunus.seeds import make_generator
from prunus.types import Split

sys.path.insert(0, str(Path(__file__).parents[1] / "helpers"))
from objectives import sparse_gpt


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, 4))


def examples(n=60):
    draw = make_generator(0, "examples")
    return Split(torch.randn(n, 16, generator=draw), torch.randint(0, 4, (n,), generator=draw))


def long_work():
    model, split = network(), examples()
    x, y = split.inputs, split.labels
    weights = {n: w.detach() for n, w in prunable_weights(model).items()}
    layer, objective = SCOPES["layer"], make_objective(model, weights, x, y)
    normed = nn.Sequential(nn.Linear(16, 4), nn.BatchNorm1d(4))
    calls = {
        "layer_hessians": lambda p: layer_hessians(model, weights, x, batch_size=7, progress=p),
        "exact_obs": lambda p: prune_in_steps(ExactObs().examiner(model, x, progress=p), weights, 0.5, layer),
        "sparse_gpt": lambda p: sparse_gpt(model, x, progress=p)(weights, 0.5, layer),
        "sparse_gpt at once": lambda p: sparse_gpt(model, x, mask_block_size=None, progress=p)(
            weights, 0.5, layer
        ),
        "fisher": lambda p: Fisher(batch_size=7).examiner(objective, progress=p)(weights, all_kept(weights)),
        "full_obs": lambda p: FullObs(damping=0.1).examiner(objective, progress=p)(
            weights, all_kept(weights)
        ),
        "sensitivity": lambda p: sensitivity(model, split, densities=(1.0, 0.5), progress=p),
        "recalibrate": lambda p: recalibrate_batchnorm(normed, x, 7, progress=p),
    }
    for name, diagonal in DIAGONALS.items():
        calls[name] = lambda p, diagonal=diagonal: diagonal(objective, progress=p)
    return calls


class Interrupted(BaseException):
    """As KeyboardInterrupt, which is no Exception."""


@pytest.mark.filterwarnings("ignore::prunus.errors.UpdateRejectedWarning")
@pytest.mark.parametrize("name", long_work())
def test_long_work_reports_every_step_and_can_be_interrupted(name):
    steps = {}
    long_work()[name](lambda what, done, total: steps.setdefault((what, total), []).append(done))
    assert steps
    for (_, total), done in steps.items():
        assert done[-1] == total
        assert all(earlier < other for earlier, other in pairwise(done)), done

    def interrupt(what, done, total):
        raise Interrupted

    with pytest.raises(Interrupted):
        long_work()[name](interrupt)


@pytest.mark.filterwarnings("ignore::prunus.errors.UpdateRejectedWarning")
@pytest.mark.parametrize("name", list(METHODS))
def test_every_method_reports_progress(name):
    model, split, steps = network(), examples(), []
    weights = prunable_weights(model)
    METHODS[name].prune(model, weights, 0.5, "layer", split, progress=lambda *step: steps.append(step))
    assert steps
