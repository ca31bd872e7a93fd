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
from prunus.pruning.structured.verify import check_training_mode, removal_error


@dataclass
class SlimPlan:
    """The channels to remove from a model. `print` shows the report.

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
    """The model, which `apply` changes."""
    analysis: Analysis
    """The groups of coupled channels, and the dimensions that are refused."""
    removed: dict[str, list[int]]
    """The indices of the channels to remove, by name of the group."""
    verify: bool | str = True
    """Whether `apply` checks first that removing is the same as setting to zero; "groups" to check each group alone."""
    rewrite: bool = False
    """Whether `apply` returns the exported graph, with other sizes, where sizes are literals of the model's code."""
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

    def __str__(self) -> str:
        return str(self.report)

    def __repr__(self) -> str:
        macs = self.analysis.macs(), self.analysis.macs(self.removed)
        return f"SlimPlan(groups={len(self.groups)}, macs={macs})"

    @torch.inference_mode(False)  # weights that are made in inference mode cannot be trained
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
            change_constants(
                base, self.analysis.graph.coupling.constants, self.analysis.kept_ids(self.removed)
            )
        else:
            base.edited_attributes = merge_edits(getattr(base, "edited_attributes", {}), edits)  # type: ignore[assignment]
        return base

    def attributes(self, removed: Mapping[str, Sequence[int]]) -> dict[str, dict[str, Any]]:
        """New values of attributes of the user's modules if channels are removed.

        Raises ModelError where two sizes that differ afterwards are one attribute.
        """
        values = bound_attributes(self.analysis.bindings, self.analysis.kept_ids(removed))
        if values is None:
            raise ModelError("Expected equal numbers of channels where the model has one attribute for them.")
        return values

    def _check_shapes(self) -> None:
        for group in self.groups:
            for member in group.members:
                tensor = find_tensor(self.model, member.name)
                size = 0 if tensor is None or tensor.dim() <= member.dim else tensor.shape[member.dim]
                if size <= int(member.indices.max()):
                    raise ModelError(
                        f"Expected {member.name!r} as it was when the plan was made; make a new plan of the model."
                    )

    def _verify(self, base: nn.Module) -> None:
        """Raise ModelError unless removing channels of exact groups is the same as setting them to zero."""
        if not self.verify:
            return
        inputs, used = self.analysis.traced.inputs, self.analysis.graph.parameters
        unused = [name for name, _ in self.model.named_parameters() if name not in used]
        if unused and not self.rewrite:
            indices, attributes = kept_indices(self.analysis, self.removed), self.attributes(self.removed)
            check_training_mode(base, inputs, indices, attributes, unused)
        exact = [group.name for group in self.groups if group.exact]
        changed = {group: self.removed[group] for group in exact if self.removed.get(group)}
        difference = 0.0
        if self.verify != "groups":
            difference = self._difference(base, changed) if changed else 0.0
            if not difference:
                return
        alone = {group: self._difference_alone(base, group) for group in changed}
        at_fault = [group for group in changed if alone[group]]
        if not at_fault and not difference:
            return
        what = f"the channels of {', '.join((at_fault or list(changed))[:5])}"
        advice = "Name these layers in exclude=, and report this error."
        if at_fault:
            difference = max(alone.values())
            names = [self._name_to_exclude(group) for group in self.groups if group.name in at_fault]
            advice = (
                f"Pass exclude={names!r}: the code may use the number of these channels as a number, as a scale "
                "1 / sqrt(q.shape[-1]) does."
            )
        raise ModelError(
            f"Expected the same outputs of {type(base).__name__} with {what} removed and with {what} set to zero, but "
            f"they differ by {difference:.3g}, relative to the largest output; the model is unchanged. {advice}"
        )

    def _difference(self, base: nn.Module, removed: Mapping[str, Sequence[int]]) -> float:
        """How far outputs without channels are from those with the channels set to zero; 0 within the tolerance."""
        edit = None
        if self.rewrite:
            constants, is_kept = self.analysis.graph.coupling.constants, self.analysis.kept_ids(removed)
            edit = partial(change_constants, constants=constants, is_kept=is_kept)
        indices, attributes = kept_indices(self.analysis, removed), self.attributes(removed)
        inputs = self.analysis.traced.inputs
        error, tolerance = removal_error(base, inputs, indices, attributes, edit)
        return 0.0 if error <= tolerance else error

    def _difference_alone(self, base: nn.Module, group: str) -> float:
        """The difference for one group; 0 for a group that is removed only together with others."""
        try:
            return self._difference(base, {group: self.removed[group]})
        except ModelError:
            if self.verify == "groups":
                raise
            return 0.0

    def _name_to_exclude(self, group: Group) -> str:
        """A name that excludes a group: names of groups, buffers and constants are not taken."""
        parameters = dict(self.model.named_parameters())
        return next((member.name for member in group.members if member.name in parameters), group.name)
