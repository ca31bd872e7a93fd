"""ExactOBS: Optimal Brain Surgeon on the output of each layer, row by row, with an exactly downdated inverse.

    score of a weight = what its removal adds to E (`hessian.py`), in its turn, cheapest first in its row:
        w_q² / (2 [H⁻¹]_qq)          w -= w_q / [H⁻¹]_qq · H⁻¹_:q          H⁻¹ -= H⁻¹_:q H⁻¹_q: / [H⁻¹]_qq
    the remaining weights K of a row:    w_K = H_KK⁻¹ (H w)_K,  the least squares that the removals add up to

Every row of a layer has the same H, so that rows are independent and one run through each serves all densities: a scope
that keeps the highest scores prunes exactly the cheapest weights, of a layer or of all of them.

Source: Frantar & Alistarh 2022, "Optimal Brain Compression" (OBC), section 4 and Algorithm 1, N:M and blocks as there.
Also called: OBC, ExactOBS; for layers of some thousand inputs use `SparseGpt`.
Differences from the paper: where a removal costs less than those before it in its row, that stretch is scored with its
mean, so that the lowest scores follow the convex curve that lies below the errors; weights are solved for once, for the
selected masks, instead of being stored along the way. Scores are computed on the CPU wherever the weights are.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Unpack

import torch
from torch import Tensor, nn

from prunus.data.examples import Calibration
from prunus.errors import NonFiniteError
from prunus.masks import apply_masks
from prunus.pruning.matrix import from_matrix
from prunus.pruning.obs.fallback import limit_layer_updates
from prunus.pruning.obs.hessian import LayerHessian, layer_hessians
from prunus.pruning.obs.layer_inputs import PassOptions
from prunus.pruning.obs.layer_method import LayerMethod, LayerTask
from prunus.pruning.obs.method import PruneTask
from prunus.pruning.obs.state import PruneResult, PruningState, prune_in_steps
from prunus.pruning.scopes import Block, Layer, NByM, Scope
from prunus.types import MaskDict, Params, Progress, Scores

UNSTRUCTURED = Layer()
ROW_WORK = 1 << 31
"""Operations, D³ per row, after which progress is reported at the latest: about a second."""
MAX_SYSTEM_ENTRIES = 1 << 24
"""Entries of the linear systems that are solved at once: 128 MiB."""


@dataclass(frozen=True, kw_only=True)
class ExactObsState(PruningState):
    """Weights and masks of layers, and the Hessians of their outputs."""

    hessians: Mapping[str, LayerHessian]
    initial: Params
    """The weights that were examined."""
    scope: Scope = UNSTRUCTURED
    """Blocks in a row are pruned together; of N:M groups all are pruned to N before one is emptied."""
    seconds: dict[str, float]
    progress: Progress | None = None
    """Called while rows are scored."""

    def scores(self) -> Scores:
        """What each removal costs in its turn, in float64; 0 for pruned weights."""
        return {name: self._timed(name, self._layer_scores) for name in self.weights}

    def _prune_to(self, masks: MaskDict) -> "ExactObsState":
        """Set the remaining weights so that the outputs are closest to those of the examined weights."""
        hessians, initial = self.hessians, self.initial
        solved = {
            name: self._timed(name, lambda name: self._solve_layer(name, masks[name])) for name in hessians
        }
        weights, _ = limit_layer_updates("ExactOBS", hessians, initial, masks, solved)
        increase = sum(h.damped_error(weights[name] - initial[name]) for name, h in hessians.items())
        return replace(self, weights=weights, masks=masks, predicted_increase=increase)

    def _timed(self, name: str, work: Callable[[str], Tensor]) -> Tensor:
        start = time.perf_counter()
        result = work(name)
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start
        return result

    def _layer_scores(self, name: str) -> Tensor:
        from prunus.pruning.obs.elimination import elimination_scores  # compiled where it is first used

        hessian, weight = self.hessians[name], self.weights[name]
        groups, size = hessian.hessian.shape[:2]
        block = self.scope.columns if isinstance(self.scope, Block) and self.scope.rows == 1 else 1
        n, m = (self.scope.n, self.scope.m) if isinstance(self.scope, NByM) else (0, size)
        rows, remaining = hessian.rows(weight).cpu(), hessian.rows(self.masks[name]).bool().cpu()
        threads = torch.get_num_threads()
        step, done, scores = max(threads, ROW_WORK // size**3), 0, []
        try:
            for group in range(groups):
                inverse = torch.cholesky_inverse(cholesky(name, hessian, group)).cpu().numpy()
                for first in range(0, rows.shape[1], step):
                    part = slice(first, first + step)
                    part_rows, part_mask = rows[group, part].numpy(), remaining[group, part].numpy()
                    scores.append(elimination_scores(part_rows, inverse, part_mask, block, m, m - n, threads))
                    done += len(part_rows)
                    if self.progress:
                        self.progress(f"rows of {name} scored", done, groups * rows.shape[1])
        finally:
            torch.set_num_threads(threads)  # numba sets the number of threads of the whole process
        matrix = torch.cat([torch.from_numpy(part) for part in scores])
        return from_matrix(matrix, weight).to(weight.device)

    def _solve_layer(self, name: str, mask: Tensor) -> Tensor:
        hessian, weight = self.hessians[name], self.initial[name]
        rows, remaining = hessian.rows(weight).clone(), hessian.rows(mask).bool()
        for group, damped in enumerate(hessian.damped()):
            _solve_rows(name, rows[group], remaining[group], damped)
        return from_matrix(rows.flatten(0, 1), weight).to(weight.dtype).contiguous()


def cholesky(name: str, hessian: LayerHessian, group: int, reverse: bool = False) -> Tensor:
    """L with L Lᵀ = H + λ I.

    Args:
        name: Of the weight, for the error.
        hessian: Of the layer.
        group: The group of the convolution, else 0.
        reverse: Whether to factorize with the last input first.

    Returns:
        [D, D], lower triangular.

    Raises:
        NonFiniteError: λ is too small for H to be inverted.
    """
    matrix = hessian.hessian[group]
    matrix = matrix.flip(0, 1) if reverse else matrix.clone()
    matrix.diagonal().add_(hessian.damping)
    factor, failed = matrix.mT, torch.empty((), dtype=torch.int32, device=matrix.device)
    torch.linalg.cholesky_ex(factor, out=(factor, failed))  # in place
    if failed:
        raise NonFiniteError(
            f"The Hessian of {name!r}, {len(matrix)} inputs from {hessian.num_vectors} vectors of which "
            f"{hessian.num_zero_inputs} inputs are always zero, is singular with damping {hessian.damping:.3g}; use a "
            "larger one, such as damping=0.01."
        )
    return factor


def _solve_rows(name: str, rows: Tensor, remaining: Tensor, hessian: Tensor) -> None:
    """Set each of `rows` [R, D] to the least squares on its `remaining` weights, in place; similar sizes together."""
    targets, counts = rows @ hessian, remaining.sum(1)
    order = counts.argsort()
    order = order[counts[order] < remaining.shape[1]]
    while len(order):
        most = int(counts[order[-1]])
        batch = order[-max(1, MAX_SYSTEM_ENTRIES // max(1, most) ** 2) :]
        order = order[: -len(batch)]
        # The remaining columns come first; beyond a row's own the system is the identity, and the solution zero.
        columns = remaining[batch].int().argsort(dim=1, descending=True, stable=True)[:, :most]
        is_own = torch.gather(remaining[batch], 1, columns)
        system = hessian[columns.unsqueeze(2), columns.unsqueeze(1)]
        system *= is_own.unsqueeze(2) & is_own.unsqueeze(1)
        system.diagonal(dim1=1, dim2=2).add_((~is_own).to(system.dtype))
        right_side = torch.gather(targets[batch], 1, columns) * is_own
        factor, failed = torch.linalg.cholesky_ex(system)
        if failed.any():
            raise NonFiniteError(
                f"The Hessian of the remaining weights of {name!r} is singular; use more damping, such as damping=0.01."
            )
        solved = torch.cholesky_solve(right_side.unsqueeze(2), factor).squeeze(2)
        rows[batch] = torch.zeros_like(rows[batch]).scatter(1, columns, solved * is_own)


@dataclass(frozen=True, kw_only=True)
class ExactObs(LayerMethod):
    """OBS layer by layer and row by row, for layers of some hundred inputs.

    Args:
        damping: λ as a fraction of the mean curvature of a layer; may be 0.
        batch_size: Examples per forward pass.
        num_examples: Calibration examples.
        num_steps: Steps of equal size; the Hessians are computed again before each.

    Raises:
        StatisticsError: A number out of range.

    >>> from prunus.pruning.scopes import Layer
    >>> from prunus.types import Split
    >>> model = nn.Linear(2, 1, bias=False)
    >>> examples = Split(torch.tensor([[1.0, 1.0], [2.0, 2.0]]), torch.zeros(2, dtype=torch.int64))
    >>> weights = {"weight": torch.tensor([[1.0, 1.0]])}
    >>> ExactObs(damping=1e-9).prune(model, weights, 0.5, Layer(), examples).weights["weight"].sum()
    tensor(2.)
    """

    allows_steps: ClassVar[bool] = True
    summary: ClassVar[str] = (
        "OBS layer by layer, row by row (ExactOBS), with an update of the remaining weights."
    )

    def examiner(
        self,
        model: nn.Module,
        inputs: Calibration,
        scope: Scope = UNSTRUCTURED,
        **options: Unpack[PassOptions],
    ) -> Callable[[Params, MaskDict], ExactObsState]:
        """The function (weights, masks) -> ExactObsState.

        Args:
            model: Contains the layers; it is not changed.
            inputs: Calibration examples in any form.
            scope: The pattern to prune in.
            options: See `PassOptions`; progress is reported while rows are scored too.

        Returns:
            The function; it raises what `layer_hessians` raises, and its states NonFiniteError where H is singular with
            this damping.
        """

        def examine(weights: Params, masks: MaskDict) -> ExactObsState:
            passing: PassOptions = {"batch_size": self.batch_size, **options}
            hessians = layer_hessians(model, weights, inputs, damping=self.damping, **passing)
            return exact_obs_state(hessians, weights, masks, scope, options.get("progress"))

        return examine

    def _prune(self, task: PruneTask) -> PruneResult:
        if self.num_steps == 1:
            return super()._prune(task)
        examine = self.examiner(
            task.model, task.examples, task.scope, forward=task.forward, progress=task.progress
        )
        return task.prune_in_steps(examine, self.num_steps)

    def _prune_layers(self, task: LayerTask) -> PruneResult:
        def examine(weights: Params, masks: MaskDict) -> ExactObsState:
            return exact_obs_state(task.hessians, weights, masks, task.scope, task.progress)

        return prune_in_steps(
            examine, task.weights, task.density, task.scope, within=task.within, seed=task.seed
        )


def exact_obs_state(
    hessians: Mapping[str, LayerHessian],
    weights: Params,
    masks: MaskDict,
    scope: Scope = UNSTRUCTURED,
    progress: Progress | None = None,
) -> ExactObsState:
    """The state of ExactOBS where the Hessians are known.

    Args:
        hessians: Of the layers of `weights`.
        weights: The weights to prune.
        masks: Those that remain.
        scope: The pattern to prune in.
        progress: Called while rows are scored.

    Returns:
        The state, in which pruned weights are zero.
    """
    masked = {name: weight.detach().clone() for name, weight in apply_masks(weights, masks).items()}
    return ExactObsState(
        weights=masked,
        masks=masks,
        hessians=hessians,
        initial=masked,
        scope=scope,
        damping=max(hessian.damping for hessian in hessians.values()),
        dampings={name: hessian.damping for name, hessian in hessians.items()},
        seconds={},
        progress=progress,
    )
