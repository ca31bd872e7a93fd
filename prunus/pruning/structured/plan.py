"""A plan: which channels of which groups are removed; nothing is changed before `apply`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from prunus.errors import ModelError
from prunus.masks import Masks
from prunus.pruning.structured.edits import merge_edits
from prunus.pruning.structured.graph import find_tensor
from prunus.pruning.structured.groups import Analysis, Group, RefusedDimension, kept_indices
from prunus.pruning.structured.removal import check_optimizer, remove_channels
from prunus.pruning.structured.report import SlimReport, describe_plan
from prunus.pruning.structured.rewrite import change_constants, exported_module
from prunus.pruning.structured.sizes import bound_attributes
from prunus.pruning.structured.verify import check_removal, check_training_mode


@dataclass
class SlimPlan:
    """The channels to remove from a model.

    Example:
        >>> import prunus; from torch import Tensor, nn
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> plan = prunus.slim(model, torch.zeros(1, 4), density=0.5)
        >>> plan.groups
        [Group(name='0.weight', channels=8, exact=True)]
        >>> plan.apply()[0].weight.shape
        torch.Size([4, 4])
    """

    model: nn.Module
    analysis: Analysis
    removed: dict[str, list[int]]
    """The indices of the channels to remove, by name of the group."""
    verify: bool | str = True
    rewrite: bool = False
    weights: dict[str, Tensor] = field(default_factory=dict)
    """Refitted weights of layers that lose inputs, of the shapes before the removal."""

    @property
    def groups(self) -> list[Group]:
        """All groups of the model, including those from which no channel is removed."""
        return self.analysis.groups

    @property
    def refused(self) -> list[RefusedDimension]:
        """The dimensions from which no channel can be removed, with operator and source line."""
        return self.analysis.refused

    @property
    def report(self) -> SlimReport:
        """Channels, parameters and MACs of each layer before and after the removal."""
        return describe_plan(self.model, self.analysis, self.removed)

    def apply(self, optimizer: torch.optim.Optimizer | None = None, masks: Masks | None = None) -> nn.Module:
        """Remove the channels from the model, in place.

        Args:
            optimizer: An optimizer of the model's parameters, whose state is reduced in the same way.
            masks: Masks of the model, which are reduced in the same way.

        Returns:
            The model; with `rewrite`, a new module, the exported graph, and the model is unchanged.

        Raises:
            ModelError: The outputs without the channels differ from those with the channels set to zero, or the plan
                was applied before; the model is unchanged.
        """
        indices = kept_indices(self.analysis, self.removed)
        self._check_shapes()
        if self.rewrite and (optimizer is not None or masks is not None):
            raise ModelError(
                "Expected no optimizer and no masks with rewrite=True, which returns a new module; make them for that "
                "module."
            )
        if self.weights and masks is not None:
            raise ModelError(
                "Expected no masks with refit=True, which changes pruned weights; refit before pruning."
            )
        if optimizer is not None:
            check_optimizer(self.model, optimizer)
        if masks is not None and not (isinstance(masks, Masks) and masks.model is self.model):
            raise ModelError(
                f"Expected prunus.Masks of this {type(self.model).__name__}, got "
                f"{'those of another model' if isinstance(masks, Masks) else f'a {type(masks).__name__}'}."
            )
        base = exported_module(self.analysis.traced, self.model) if self.rewrite else self.model
        self._verify(base)
        edits = remove_channels(base, indices, self.attributes(self.removed), optimizer, masks, self.weights)
        if self.rewrite:
            self._change_constants(base, self.removed)
        else:
            base.edited_attributes = merge_edits(getattr(base, "edited_attributes", {}), edits)  # type: ignore[assignment]
        return base

    def _change_constants(self, module: nn.Module, removed: Mapping[str, Sequence[int]]) -> None:
        is_kept = self.analysis.kept_labels(removed)
        change_constants(module, self.analysis.constants, lambda constant: constant.reduced_value(is_kept))

    def attributes(self, removed: Mapping[str, Sequence[int]]) -> dict[str, dict[str, Any]]:
        """New values of attributes of the user's modules if channels are removed.

        Raises ModelError where two sizes that differ afterwards are one attribute.
        """
        is_kept = self.analysis.kept_labels(removed)
        values = bound_attributes(self.analysis.bindings, lambda constant: constant.reduced_value(is_kept))
        if values is None:
            raise ModelError("Expected equal numbers of channels where the model has one attribute for them.")
        return values

    def _check_shapes(self) -> None:
        for group in self.groups:
            for member in group.members:
                tensor = find_tensor(self.model, member.name)
                if (
                    tensor is None
                    or tensor.dim() <= member.dim
                    or tensor.shape[member.dim] <= int(member.indices.max())
                ):
                    raise ModelError(
                        f"Expected {member.name!r} as it was when the plan was made; make a new plan of the model."
                    )

    def _verify(self, base: nn.Module) -> None:
        if not self.verify:
            return
        traced = self.analysis.traced
        unused = [name for name, _ in self.model.named_parameters() if name not in self.analysis.shapes]
        if unused and not self.rewrite:
            indices = kept_indices(self.analysis, self.removed)
            attributes = self.attributes(self.removed)
            check_training_mode(base, traced.args, traced.kwargs, indices, attributes, unused)
        by_name = {group.name: group for group in self.groups if self.removed.get(group.name)}
        parts = [[name] for name in by_name] if self.verify == "groups" else [list(by_name)]
        for names in parts:
            exact = [name for name in names if by_name[name].exact]
            removed = {name: self.removed[name] for name in exact}
            if removed:
                edit = partial(self._change_constants, removed=removed) if self.rewrite else None
                what = f"the channels of {', '.join(exact[:5])}"
                indices = kept_indices(self.analysis, removed)
                check_removal(base, traced.args, traced.kwargs, indices, self.attributes(removed), what, edit)
