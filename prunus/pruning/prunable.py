"""Which weights of a model may be pruned: those of its linear and convolutional layers.

Biases and normalisation layers never are. Names can be included or excluded by shell patterns.
"""

from collections.abc import Sequence
from fnmatch import fnmatchcase

from torch import Tensor, nn

from prunus.errors import ModelError, NothingPrunableError, TiedWeightsError
from prunus.nouns import Params
from prunus.training.checks import check_initialized

LINEAR = (nn.Linear, nn.Bilinear)
CONVOLUTIONS = (
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
)


def layer_kinds(model: nn.Module) -> dict[str, str]:
    """The kind, "linear" or "conv", of every weight that layer types allow to prune, by parameter name."""
    kinds = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, LINEAR + CONVOLUTIONS):
            kind = "linear" if isinstance(module, LINEAR) else "conv"
            kinds[f"{name}.weight" if name else "weight"] = kind
    return kinds


def prunable(model: nn.Module, include: Sequence[str] = ("*",), exclude: Sequence[str] = ()) -> Params:
    """The weights that may be pruned, by name, in the order of the model; not copies.

    Args:
        model: any module.
        include, exclude: shell patterns over parameter names; a pattern that matches nothing is an error.

    Raises NothingPrunableError, TiedWeightsError (a weight that has a second name), ModelError.

    >>> list(prunable(nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1)), exclude=["2.*"]))
    ['0.weight']
    """
    check_initialized(model)
    kinds = layer_kinds(model)
    for pattern in (*include, *exclude):
        if pattern != "*" and not any(fnmatchcase(name, pattern) for name in kinds):
            raise ModelError(f"The pattern {pattern!r} matches none of the prunable weights {list(kinds)}.")
    names = [n for n in kinds if _matches(n, include) and not _matches(n, exclude)]
    parameters: Params = dict(model.named_parameters(remove_duplicate=False))
    chosen: Params = {name: parameters[name] for name in names if parameters.get(name) is not None}
    chosen = {name: weight for name, weight in chosen.items() if weight.numel()}
    if not chosen:
        raise NothingPrunableError(
            f"{type(model).__name__} has no weight to prune: of its parameters {list(parameters)[:6]} "
            f"the layer types allow {list(kinds)}, and the patterns leave none with an entry."
        )
    _check_not_tied(chosen, parameters)
    return chosen


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _check_not_tied(chosen: Params, parameters: dict[str, Tensor]) -> None:
    for name, weight in chosen.items():
        twins = [other for other, tensor in parameters.items() if other != name and tensor is weight]
        if twins:
            raise TiedWeightsError(
                f"{name!r} is the same tensor as {twins[0]!r}, so that pruning one prunes the other; "
                f"exclude {name!r} to leave it out."
            )
