"""ExactOBS: Optimal Brain Surgeon on the output of each layer, row by row, the inverse downdated exactly.

    score of a weight = what its deletion adds to E (`layerwise.inputs`), at its turn, cheapest first in its row:
        w_q² / (2 [H⁻¹]_qq)          w -= w_q / [H⁻¹]_qq · H⁻¹_:q          H⁻¹ -= H⁻¹_:q H⁻¹_q: / [H⁻¹]_qq
    what is left of a row, K:    w_K = H_KK⁻¹ (H w)_K,  the least squares that the deletions add up to

Every row of a layer has the same H, so that rows go separately and one run through each serves all densities: a scope
that keeps the highest scores deletes exactly what was cheapest, of a layer or of all of them.

Source: Frantar & Alistarh 2022, "Optimal Brain Compression" (OBC), section 4 and Algorithm 1, N:M and blocks as there.
Also called: OBC, ExactOBS; on layers of some thousand inputs `sparse_gpt` stands in for it.
Where we depart: where a deletion costs less than those before it in its row, that stretch is scored with its mean, so
that the lowest scores follow the convex curve that lies below the errors; weights are solved for once, for the masks
chosen, instead of being stored along the way. Deleting runs on the CPU wherever the weights are.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from prunus.errors import DensityError, NonFiniteError
from prunus.masks import apply_masks, are_nested
from prunus.pruning.layerwise.fallback import no_worse_than_zeroing, warn_of_rejected
from prunus.pruning.layerwise.hessian import DAMPING, LayerHessian, layer_hessians
from prunus.pruning.masks import check_finite
from prunus.pruning.matrix import from_matrix
from prunus.pruning.scopes import parse_block, parse_n_m
from prunus.pruning.weights import with_weights
from prunus.types import MaskDict, Params, Progress, Scores

ROW_WORK = 1 << 31
"""Operations, D³ for each row, after which progress is reported at the latest: about a second."""
SOLVED = 1 << 24
"""Entries of the systems that are solved at once: 128 MiB."""


@dataclass(frozen=True)
class SparsityPattern:
    """What is deleted together, and what may not be: columns of the layer's matrix."""

    block: int = 1
    """Neighboring columns that go together, as the scope "1x4" deletes them."""
    n_m: tuple[int, int] | None = None
    """Of every M neighboring columns N are kept until all others are gone, as the scope "2:4" keeps them."""

    @staticmethod
    def of(scope: str) -> "SparsityPattern":
        """What the scope of this name deletes; single weights where it has no pattern along a row.

        >>> SparsityPattern.of("2:4"), SparsityPattern.of("1x4")
        (SparsityPattern(block=1, n_m=(2, 4)), SparsityPattern(block=4, n_m=None))
        """
        rows, columns = parse_block(scope) or (0, 0)
        return SparsityPattern(columns if rows == 1 else 1, parse_n_m(scope))


@dataclass(frozen=True)
class ExactObsState:
    """Layers, what is left of them, and what their inputs say."""

    weights: Params
    masks: MaskDict
    inputs: Mapping[str, LayerHessian]
    start: Params
    """The weights that were examined."""
    holes: SparsityPattern = SparsityPattern()
    predicted: float = 0.0
    seconds: dict[str, float] = field(default_factory=dict)
    """What each layer took so far."""
    progress: Progress | None = None
    """Called as rows are scored."""

    @property
    def damping(self) -> float:
        """The largest of any layer."""
        return max(inputs.damping for inputs in self.inputs.values())

    def scores(self) -> Scores:
        """What each deletion costs at its turn, in float64; 0 for deleted ones."""
        return {name: self._timed(name, self._scores) for name in self.weights}

    def keep(self, masks: MaskDict) -> "ExactObsState":
        """Delete what `masks` do not keep; the rest becomes what answers most nearly as the examined weights did.

        Raises DensityError where `masks` bring a weight back, NonFiniteError where H cannot be solved with.
        """
        if not are_nested(masks, self.masks):
            raise DensityError(
                "A mask keeps a weight that was deleted before; a deleted weight does not come back."
            )
        weights, rejected = {}, {}
        for name in masks:
            solved = self._timed(name, lambda name: self._kept(name, masks[name]))
            weights[name], rejected[name] = no_worse_than_zeroing(
                self.inputs[name], self.start[name], masks[name], solved
            )
        warn_of_rejected("ExactOBS", [name for name, was_worse in rejected.items() if was_worse])
        check_finite(weights, "The updated weight")
        cost = sum(
            replace(inputs, hessian=inputs.damped()).error(weights[name] - self.start[name])
            for name, inputs in self.inputs.items()
        )
        return replace(self, weights=weights, masks=masks, predicted=cost)

    def _timed(self, name: str, work: Callable[[str], Tensor]) -> Tensor:
        began = time.perf_counter()
        result = work(name)
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - began
        return result

    def _scores(self, name: str) -> Tensor:
        from prunus.pruning.layerwise.elimination import elimination_scores  # compiled where it is first used

        inputs, weight = self.inputs[name], self.weights[name]
        groups, size = inputs.hessian.shape[:2]
        n, m = self.holes.n_m or (0, size)
        rows, left = inputs.rows(weight).cpu(), inputs.rows(self.masks[name]).bool().cpu()
        threads = torch.get_num_threads()
        step, done, scores = max(threads, ROW_WORK // size**3), 0, []
        for group in range(groups):
            inverted = inverse(name, inputs, group).cpu().numpy()
            for first in range(0, rows.shape[1], step):
                here = slice(first, first + step)
                part, mask = rows[group, here].numpy(), left[group, here].numpy()
                scores.append(elimination_scores(part, inverted, mask, self.holes.block, m, m - n, threads))
                done += len(part)
                if self.progress:
                    self.progress(f"rows of {name} scored", done, groups * rows.shape[1])
        torch.set_num_threads(threads)  # numba counts the threads of the whole process anew
        matrix = torch.cat([torch.from_numpy(one) for one in scores])
        return from_matrix(matrix, weight).to(weight.device)

    def _kept(self, name: str, mask: Tensor) -> Tensor:
        inputs, weight = self.inputs[name], self.start[name]
        rows, left = inputs.rows(weight).clone(), inputs.rows(mask).bool()
        for group, hessian in enumerate(inputs.damped()):
            _solve(name, rows[group], left[group], hessian)
        return from_matrix(rows.flatten(0, 1), weight).to(weight.dtype).contiguous()


def inverse(name: str, inputs: LayerHessian, group: int) -> Tensor:
    """(H + λ I)⁻¹ of a group, [D, D]. Raises NonFiniteError where λ is too small for it."""
    return torch.cholesky_inverse(cholesky(name, inputs, group))


def cholesky(name: str, inputs: LayerHessian, group: int, reverse: bool = False) -> Tensor:
    """L with L Lᵀ = H + λ I of a group, on request of the last input first. Raises NonFiniteError."""
    hessian = inputs.hessian[group]
    hessian = hessian.flip(0, 1) if reverse else hessian.clone()
    hessian.diagonal().add_(inputs.damping)
    factor: Tensor
    factor, failed = torch.linalg.cholesky_ex(hessian)
    if failed:
        raise NonFiniteError(
            f"The Hessian of {name!r}, {len(hessian)} inputs from {inputs.vectors} vectors of which {inputs.dead} "
            f"inputs are always zero, is singular with damping {inputs.damping:.3g}; ask for more, as damping=0.01."
        )
    return factor


def _solve(name: str, rows: Tensor, left: Tensor, hessian: Tensor) -> None:
    """Set each of `rows` [R, D] to the least squares on what is `left` of it, in place; rows of like size together."""
    targets, kept = rows @ hessian, left.sum(1)
    order = kept.argsort()
    order = order[kept[order] < left.shape[1]]
    while len(order):
        most = int(kept[order[-1]])
        chosen = order[-max(1, SOLVED // max(1, most) ** 2) :]
        order = order[: -len(chosen)]
        # The columns that are left stand first; what is beyond a row's own is made the identity, and answers zero.
        columns = left[chosen].int().argsort(dim=1, descending=True, stable=True)[:, :most]
        there = torch.gather(left[chosen], 1, columns)
        system = hessian[columns.unsqueeze(2), columns.unsqueeze(1)]
        system *= there.unsqueeze(2) & there.unsqueeze(1)
        system.diagonal(dim1=1, dim2=2).add_((~there).to(system.dtype))
        answers = torch.gather(targets[chosen], 1, columns) * there
        factor, failed = torch.linalg.cholesky_ex(system)
        if failed.any():
            raise NonFiniteError(
                f"The Hessian of what is left of {name!r} is singular; ask for more damping, as damping=0.01."
            )
        solved = torch.cholesky_solve(answers.unsqueeze(2), factor).squeeze(2)
        rows[chosen] = torch.zeros_like(rows[chosen]).scatter(1, columns, solved * there)


def exact_obs(
    model: nn.Module,
    inputs: Tensor,
    *,
    damping: float = DAMPING,
    holes: SparsityPattern = SparsityPattern(),
    batch_size: int = 100,
    progress: Progress | None = None,
) -> Callable[[Params, MaskDict], ExactObsState]:
    """The surgeon of every layer alone, with calibration `inputs` [N, ...]; for layers of some hundred inputs.

    Args:
        model: where the layers are; left as it is.
        inputs, damping, batch_size: as for `layer_inputs`.
        holes: what the scope deletes together, as `Holes.of("2:4")`.
        progress: called after each batch of inputs, and as rows are scored.

    Raises, when it looks, what `layer_inputs` raises; when it scores or deletes, NonFiniteError where H is singular
    with this damping.

    >>> from prunus.pruning.scopes import layer
    >>> from prunus.pruning.second_order import prune_weights
    >>> model = nn.Linear(2, 1, bias=False)
    >>> weights = {"weight": torch.tensor([[1.0, 1.0]])}
    >>> seen = torch.tensor([[1.0, 1.0], [2.0, 2.0]])
    >>> prune_weights(exact_obs(model, seen, damping=1e-9), weights, 0.5, layer).weights["weight"].sum()
    tensor(2.)
    """

    def examine(weights: Params, masks: MaskDict) -> ExactObsState:
        found = layer_hessians_at(model, weights, inputs, damping, batch_size, progress)
        start = {name: w.detach().clone() for name, w in apply_masks(weights, masks).items()}
        return ExactObsState(start, masks, found, start, holes, progress=progress)

    return examine


def layer_hessians_at(
    model: nn.Module,
    weights: Params,
    inputs: Tensor,
    damping: float,
    batch_size: int,
    progress: Progress | None = None,
) -> dict[str, LayerHessian]:
    """What the layers are given where the network has these weights; `model` itself is left alone."""
    check_finite(weights, "The weight")
    return layer_hessians(
        with_weights(model, weights),
        weights,
        inputs,
        damping=damping,
        batch_size=batch_size,
        progress=progress,
    )
