"""Sparse structure selection: a factor on every residual block, trained so that some of them become zero.

Source: Huang & Wang 2018, "Data-driven sparse structure selection", eq. 4 and 12-14: x + λ F(x), and accelerated
proximal gradient with momentum μ for the loss + γ Σ |λ|:

    z = λ' - η dL/dλ'        λ = sign(z) max(|z| - η γ, 0)        v = λ - λ' + μ v        λ' = λ + μ v

The network is trained with the factor λ'; λ is the factor that it has after the training.
"""

import warnings
from collections import Counter
from collections.abc import Mapping
from functools import partial
from itertools import permutations
from typing import Any

import torch
from torch import Tensor, nn

from prunus.errors import CheckpointError, ModelError, NoEffectWarning, SpecError
from prunus.modules import check_module, trainable_parameters, unwrapped
from prunus.pruning.structured.blocks import RemovableBlock, check_removable, remove_blocks, residual_blocks


class BlockFactors:
    """Factors λ on the residual blocks of a model, a constraint for `prunus.train` or a training loop of your own.

    While this object exists, and until `remove`, the model computes x + λ F(x) for every residual block with an
    identity shortcut. Every λ is 1 at first. Files of the model do not hold factors: call `remove` before saving.

    Blocks that cannot be removed, or whose last layer shares parameters with another one, have no factor; a warning
    names them.

    Example:
        >>> import prunus
        >>> model, x = prunus.MODELS["resnet-20"](), torch.randn(8, 3, 32, 32)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> factors = BlockFactors(model, x, penalty=30.0).attach(optimizer)
        >>> torch.nn.functional.cross_entropy(model(x), torch.arange(8)).backward()
        >>> optimizer.step()
        >>> sum(value == 0 for value in factors.values().values())
        7
        >>> _ = factors.remove(optimizer)
        >>> [block.name for block in prunus.residual_blocks(model, x)]
        []
    """

    has_own_step = True
    """Tells `prunus.train` that the factors are not stepped by its optimizer, which unscales gradients."""

    def __init__(
        self,
        model: nn.Module,
        example_inputs: object,
        penalty: float,
        learning_rate: float = 0.1,
        momentum: float = 0.9,
    ) -> None:
        """Put a factor of 1 on every block.

        Args:
            model: Any module that `torch.export` can export.
            example_inputs: As for `prunus.slim`.
            penalty: γ > 0, the strength of the L1 penalty.
            learning_rate: η > 0 of the factors; the authors use that of the weights.
            momentum: μ in [0, 1).

        Raises:
            ModelError: The model has no residual block with an identity shortcut that can have a factor, has factors
                already, or cannot be exported.
            SpecError: A number out of range.
        """
        for name, value in (("penalty", penalty), ("learning_rate", learning_rate)):
            if not 0 < value < float("inf"):
                raise SpecError(f"Expected a {name} above 0 and finite, got {value!r}.")
        if not 0 <= momentum < 1:
            raise SpecError(f"Expected a momentum at least 0 and below 1, got {momentum!r}.")
        check_module(model)
        model = unwrapped(model)
        hooks = [hook for module in model.modules() for hook in module._forward_hooks.values()]
        if any(getattr(hook, "func", None) is _scale for hook in hooks):
            raise ModelError(
                f"Expected a {type(model).__name__} without factors; remove the other ones first."
            )
        blocks = residual_blocks(model, example_inputs)
        if not blocks:
            raise ModelError(
                f"Expected residual blocks with an identity shortcut in {type(model).__name__}, got none."
            )
        blocks = _usable(model, example_inputs, blocks)
        self.model, self.example_inputs = model, example_inputs
        self.penalty, self.learning_rate, self.momentum = penalty, learning_rate, momentum
        self._names = [block.name for block in blocks]
        self._factors = torch.ones(len(blocks), requires_grad=True)
        self._remaining, self._velocities = torch.ones(len(blocks)), torch.zeros(len(blocks))
        self._used: set[int] = set()
        """The numbers of the blocks that ran since the last step; others, such as dropped ones, keep their factor."""
        self._handles: list[Any] = []
        self._hooks: list[Any] = []
        self._hook()

    def _hook(self) -> None:
        self._hooks = [
            self.model.get_submodule(name).register_forward_hook(
                partial(_scale, self._factors, self._used, number)
            )
            for number, name in enumerate(self._names)
        ]

    def values(self) -> dict[str, float]:
        """λ of each block, by the name of its last layer; a block with 0 is to be removed."""
        return dict(zip(self._names, self._remaining.tolist(), strict=True))

    def attach(self, optimizer: torch.optim.Optimizer) -> "BlockFactors":
        """Step the factors before every step of an optimizer of the weights, in any training loop without loss scaling.

        Returns:
            These factors.
        """
        self._handles.append(optimizer.register_step_pre_hook(lambda *_: self.before_optimizer_step()))
        return self

    def detach(self) -> None:
        """Remove the hooks of optimizers; the model keeps its factors."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    @torch.no_grad()
    def before_optimizer_step(self) -> None:
        """One step of accelerated proximal gradient with the gradients of the backward pass."""
        if self._factors.grad is None:
            return
        used = sorted(self._used)
        factors, velocities = self._factors[used], self._velocities[used]
        z = factors - self.learning_rate * self._factors.grad[used]
        remaining = z.sign() * (z.abs() - self.learning_rate * self.penalty).clamp(min=0)
        velocities = remaining - factors + self.momentum * velocities
        self._remaining[used], self._velocities[used] = remaining, velocities
        self._factors[used] = remaining + self.momentum * velocities
        self.apply()

    def trainable_tensors(self) -> dict[str, Tensor]:
        """Every trainable parameter of the model; the factors have a step of their own."""
        return trainable_parameters(self.model)

    def apply(self) -> None:
        """Forget gradients of the factors that were not used for a step."""
        self._factors.grad = None
        self._used.clear()

    def verify(self) -> int:
        """Zero: no weight has a prescribed value."""
        return 0

    def finalize(self) -> None:
        """End the training: λ is what the model computes with."""
        self._factors.data.copy_(self._remaining)
        self._velocities.zero_()

    def state_dict(self) -> dict[str, Tensor]:
        """λ and v of each block, [blocks, 2]."""
        return {"factors": torch.stack([self._remaining, self._velocities], 1)}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore what `state_dict` returned; raises CheckpointError for the state of another constraint."""
        pairs = state.get("factors")
        if len(state) != 1 or pairs is None or pairs.shape != (len(self._factors), 2):
            raise CheckpointError(
                f"Expected the factors of {len(self._factors)} residual blocks in the checkpoint, got "
                f"{', '.join(state) or 'nothing'}; delete it to train from the start."
            )
        self._remaining, self._velocities = pairs.clone().unbind(1)
        self._factors.copy_(self._remaining + self.momentum * self._velocities)

    def remove(self, optimizer: torch.optim.Optimizer | None = None) -> nn.Module:
        """Remove the blocks whose λ is zero, and multiply every other λ into the last layer of its block.

        Args:
            optimizer: An optimizer of the model's parameters, from which those of removed blocks are deleted.

        Returns:
            The model, changed in place; it has no factors any more.

        Raises:
            ModelError: The factors were removed before, or the model cannot be exported any more, or computes
                something else without a block; it is unchanged, and still has its factors.
        """
        if not self._hooks:
            raise ModelError(
                f"Expected factors in {type(self.model).__name__}, but they were removed; make new BlockFactors."
            )
        for hook in self._hooks:
            hook.remove()
        removed = [name for name, value in self.values().items() if value == 0]
        try:
            if removed:
                remove_blocks(self.model, self.example_inputs, removed, optimizer)
        except Exception:
            self._hook()
            raise
        self._hooks = []
        self.detach()
        with torch.no_grad():
            for name, value in zip(self._names, self._remaining, strict=True):
                for parameter in self.model.get_submodule(name).parameters() if value else ():
                    parameter.mul_(value.to(parameter))
        if not removed:
            text = "No factor is zero, so no block is removed; raise the penalty, or train longer."
            warnings.warn(text, NoEffectWarning, stacklevel=2)
        return self.model


def _usable(model: nn.Module, example_inputs: object, blocks: list[RemovableBlock]) -> list[RemovableBlock]:
    """The blocks that can have a factor; a warning names the others. Raises ModelError if there is none."""
    owners = Counter(id(p) for _, p in model.named_parameters(remove_duplicate=False))
    problems = {
        block.name: f"{block.name} shares parameters with another layer."
        for block in blocks
        if any(owners[id(p)] > 1 for p in model.get_submodule(block.name).parameters())
    }
    candidates = [block for block in blocks if block.name not in problems]
    if _has_nested(candidates) or _problem(model, example_inputs, candidates):
        each = {block.name: _problem(model, example_inputs, [block]) for block in candidates}
        problems.update({name: text for name, text in each.items() if text})
    usable = [block for block in candidates if block.name not in problems]
    if not usable:
        raise ModelError(
            f"Expected a residual block of {type(model).__name__} that can have a factor, got none: "
            + " ".join(problems.values())
        )
    if problems:
        text = f"{len(problems)} of {len(blocks)} residual blocks have no factor: "
        text += " ".join(problems.values())
        warnings.warn(text, NoEffectWarning, stacklevel=3)
    return usable


def _has_nested(blocks: list[RemovableBlock]) -> bool:
    """Whether a block contains another one, whose removal is then not tested when both are removed together."""
    paths = [path for block in blocks for path in block.modules]
    return any(path == other or path.startswith(f"{other}.") for path, other in permutations(paths, 2))


def _problem(model: nn.Module, example_inputs: object, blocks: list[RemovableBlock]) -> str:
    """Why blocks cannot be removed together; empty if they can."""
    try:
        check_removable(model, example_inputs, blocks)
    except ModelError as error:
        return str(error)
    return ""


def _scale(
    factors: Tensor, used: set[int], number: int, module: nn.Module, inputs: object, output: Tensor
) -> Tensor:
    if torch.is_grad_enabled():
        used.add(number)
    return output * factors[number].to(output)
