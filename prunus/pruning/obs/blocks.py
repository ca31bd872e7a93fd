"""Hessians of one block of a network at a time, where blocks follow one another, as those of a transformer.

    x_0 = the inputs of the first block          x_(i+1) = block_i(x_i)

The inputs of the first block are captured, and then pass from block to block, so that each block runs once and only
its own Hessians are in memory. Every block receives its inputs in the network before any layer is pruned, so that
Hessians are those of `layer_hessians`, and the order of the layers has no effect. (The authors of SparseGPT pass on the
outputs of pruned blocks.)

Whether the blocks follow one another is tried on the first examples: the input of each must be the output of the one
before, all other arguments must be equal, and a second run must return the same. Where they do not, and for layers
outside of the blocks, all Hessians are collected at once. A pass has so few examples that its activations need little
memory compared with the Hessians.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, Unpack

import torch
from torch import Tensor, nn

from prunus.data.examples import Batch, Calibration, Examples, as_examples, map_tensors
from prunus.pruning.calibration_checks import run_forward
from prunus.pruning.layer_checks import NUM_COMPARED_EXAMPLES
from prunus.pruning.masks import check_finite
from prunus.pruning.obs.hessian import DAMPING, LayerHessian, ProductSum, layer_hessians
from prunus.pruning.obs.layer_inputs import PassOptions, check_used_by_layers_alone, hooked_layers, layer_of
from prunus.pruning.progress import tracked
from prunus.pruning.weights import with_weights
from prunus.training.modes import eval_mode
from prunus.training.outputs import Forward, call_model
from prunus.types import Params

CACHES = ("cache", "past_key_values", "past_key_value")
"""Arguments of Hugging Face blocks that collect keys and values from call to call; None: nothing is collected."""
MAX_PASSED_ON = 1 << 18
"""Entries that one block passes on to the next one at a time (one example may have more): 1 MiB in float32."""


@torch.no_grad()
def hessians_by_block(
    model: nn.Module,
    weights: Params,
    inputs: Calibration,
    *,
    damping: float = DAMPING,
    **options: Unpack[PassOptions],
) -> Iterator[dict[str, LayerHessian]]:
    """As `layer_hessians`, for some of the layers at a time.

    Args:
        model: Any module; it is not changed.
        weights: Weights of Linear and convolutional layers, by name.
        inputs: Calibration examples in any form.
        damping: λ as a fraction of the mean of H's diagonal.
        options: See `PassOptions`; progress is reported after each block too.

    Yields:
        The Hessians of the layers outside of the blocks, then those of each block; or all together.

    Raises:
        StatisticsError, ModelError, NonFiniteError: As `layer_hessians`.
    """
    examples, paths = as_examples(inputs), _find_blocks(model, weights)
    check_finite(weights, "The weight")
    forward, progress = options.get("forward"), options.get("progress")
    outside = {name: w for name, w in weights.items() if not name.startswith(paths)}
    if paths and not all(torch.equal(weight, model.get_parameter(name)) for name, weight in weights.items()):
        model = with_weights(model, weights)
    blocks = [model.get_submodule(path.rstrip(".")) for path in paths]
    first = _try_blocks(model, blocks, examples, forward) if blocks else None
    if first is None:
        yield layer_hessians(model, weights, examples, damping=damping, **options)
        return
    most = max(1, MAX_PASSED_ON * len(first.x) // first.x.numel())
    options["batch_size"] = min(options.get("batch_size", 100), most)
    if outside:
        yield layer_hessians(model, outside, examples, damping=damping, **options)
    calls = _capture(model, blocks[0], examples.batches(options["batch_size"]), forward)
    for path, block in tracked(list(zip(paths, blocks, strict=True)), "blocks", progress):
        names = [name for name in weights if name.startswith(path)]
        sums = {name: ProductSum(name, layer_of(model, name)) for name in names}
        _run_block(path, block, sums, calls)
        if names:
            yield {name: products.hessian(len(examples), damping) for name, products in sums.items()}


@dataclass
class _Call:
    """The arguments of a block for one batch."""

    x: Tensor
    """What the blocks pass on."""
    others: tuple[Any, ...]
    named: dict[str, Any]

    def output(self, block: nn.Module) -> Tensor | None:
        """What `block` passes on to the next one; None: no tensor."""
        return _passed_on(block(self.x.clone(), *self.others, **self.named))

    def take(self, num_examples: int) -> "_Call":
        """The first examples; tensors of another length belong to every example alike."""
        total = len(self.x)

        def first(tensor: Tensor) -> Tensor:
            return tensor[:num_examples] if tensor.dim() and len(tensor) == total else tensor

        return _Call(first(self.x), map_tensors(first, self.others), map_tensors(first, self.named))


def _run_block(path: str, block: nn.Module, sums: Mapping[str, ProductSum], calls: Sequence[_Call]) -> None:
    """Collect the products of the layers of a block, and replace the inputs of the block by its outputs."""
    inside = with_weights(block, {}).eval()
    parent: nn.Module = inside
    for part in reversed(path.rstrip(".").split(".")):
        child, parent = parent, nn.Module()
        parent.add_module(part, child)  # so that names are those of the model
    first = calls[0].take(NUM_COMPARED_EXAMPLES)
    with hooked_layers(parent, {name: products.add for name, products in sums.items()}):
        for call in calls:
            output = call.output(inside)
            assert output is not None
            call.x = output
    check_used_by_layers_alone(parent, list(sums), lambda: first.output(inside))


def _find_blocks(model: nn.Module, weights: Params) -> tuple[str, ...]:
    """The paths, with a dot at the end, of the children of the list of modules that contains most of the weights.

    All are of one class, and none is itself a layer of a weight.
    """
    best: tuple[str, ...] = ()
    most = 0
    for path, module in model.named_modules():
        if not isinstance(module, nn.ModuleList | nn.Sequential) or len(module) < 2:
            continue
        prefix = f"{path}." if path else ""
        paths = tuple(f"{prefix}{name}." for name, _ in module.named_children())
        inside = [name for name in weights if name.startswith(paths)]
        are_layers = any(f"{path}weight" in weights for path in paths)
        if len(inside) > most and not are_layers and len({type(child) for child in module}) == 1:
            best, most = paths, len(inside)
    return best


def _try_blocks(
    model: nn.Module, blocks: Sequence[nn.Module], examples: Examples, forward: Forward | None
) -> _Call | None:
    """The arguments of the first block for the first examples; None where the blocks do not follow one another."""
    called: list[tuple[nn.Module, _Call | None]] = []
    returned: list[tuple[nn.Module, Tensor | None]] = []

    def before(module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        called.append((module, _call(arguments, named)))

    def after(module: nn.Module, arguments: tuple[Any, ...], output: object) -> None:
        passed_on = _passed_on(output)
        returned.append((module, None if passed_on is None else passed_on.clone()))

    with eval_mode(model):
        try:
            with ExitStack() as hooks:
                for block in blocks:
                    hooks.enter_context(block.register_forward_pre_hook(before, with_kwargs=True))
                    hooks.enter_context(block.register_forward_hook(after))
                call_model(model, examples.take(slice(NUM_COMPARED_EXAMPLES)).batch, forward)
            calls = [call for _, call in called if call is not None]
            outputs = [output for _, output in returned if output is not None]
            order = [module for module, _ in called], [module for module, _ in returned]
            if order != (list(blocks), list(blocks)) or not len(calls) == len(outputs) == len(blocks):
                return None
            again = [call.output(block) for call, block in zip(calls, blocks, strict=True)]
        except Exception:  # all at once, its error says what is wrong
            return None
    first = calls[0]
    expected = [_Call(x, first.others, first.named) for x in (first.x, *outputs[:-1])]
    return first if _are_equal([calls, again], [expected, outputs]) else None


def _capture(
    model: nn.Module, block: nn.Module, batches: Sequence[Batch], forward: Forward | None
) -> list[_Call]:
    """The arguments of the first block for each batch."""
    calls: list[_Call] = []

    def stop(module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        call = _call(arguments, named)
        assert call is not None
        calls.append(call)
        raise _Stop

    with eval_mode(model), block.register_forward_pre_hook(stop, with_kwargs=True):
        for batch in batches:
            with suppress(_Stop):
                run_forward(model, batch, partial(call_model, model, forward=forward))
    return calls


class _Stop(BaseException):
    """Ends a forward pass at the first block; no error, so that nobody handles it on the way."""


def _call(arguments: tuple[Any, ...], named: dict[str, Any]) -> _Call | None:
    """The arguments of a block; None where the first is not a tensor."""
    if not arguments or not isinstance(arguments[0], Tensor):
        return None
    named = {name: None if name in CACHES else value for name, value in named.items()}
    return _Call(arguments[0].clone(), arguments[1:], named)


def _passed_on(output: object) -> Tensor | None:
    """The output of a block, or the first tensor of several."""
    first = output[0] if isinstance(output, tuple | list) and output else output
    return first if isinstance(first, Tensor) else None


def _are_equal(a: Any, b: Any) -> bool:
    """Whether two nested arguments are equal."""
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a is b or (a.shape == b.shape and a.dtype == b.dtype and torch.equal(a, b))
    if isinstance(a, tuple | list) and type(a) is type(b):
        return len(a) == len(b) and all(map(_are_equal, a, b))
    if isinstance(a, _Call) and isinstance(b, _Call):
        return _are_equal([a.x, a.others, a.named], [b.x, b.others, b.named])
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_are_equal(a[key], b[key]) for key in a)
    # Other objects may have a state that a call changes.
    return type(a) is type(b) and isinstance(a, bool | int | float | str | None) and a == b
