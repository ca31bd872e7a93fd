"""A plan: which channels of which groups are removed; nothing is changed before `apply`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn

from prunus.errors import ModelError
from prunus.masks import Masks
from prunus.pruning.structured.groups import Analysis, Group, RefusedDimension, kept_indices
from prunus.pruning.structured.removal import Edits, remove_channels
from prunus.pruning.structured.sizes import bound_attributes
from prunus.pruning.structured.verify import check_removal


@dataclass
class SlimPlan:
    """The channels to remove from a model.

    Example:
        >>> import prunus; from torch import nn
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
    report: list[dict[str, Any]] = field(default_factory=list)

    @property
    def groups(self) -> list[Group]:
        """All groups of the model, also those that nothing is removed from."""
        return self.analysis.groups

    @property
    def refused(self) -> list[RefusedDimension]:
        """What cannot be removed, with operator, source line and dimensions."""
        return self.analysis.refused

    def apply(self, optimizer: torch.optim.Optimizer | None = None, masks: Masks | None = None) -> nn.Module:
        """Remove the channels from the model, in place.

        Args:
            optimizer: An optimizer of the model's parameters, whose state is carried along.
            masks: Masks of the model, which are carried along.

        Returns:
            The model.

        Raises:
            ModelError: The outputs without the channels are not those with the channels set to zero, or the plan was
                applied before; the model is as it was.
        """
        kept = kept_indices(self.analysis, self.removed)
        self._check_shapes(kept)
        self._verify()
        edits = remove_channels(self.model, kept, self.attributes(self.removed), optimizer, masks)
        merged = Edits({**getattr(self.model, "removed_channels", Edits()).attributes})
        for path, values in edits.attributes.items():
            merged.attributes[path] = {**merged.attributes.get(path, {}), **values}
        self.model.removed_channels = merged  # type: ignore[assignment]
        return self.model

    def attributes(self, removed: Mapping[str, Sequence[int]]) -> dict[str, dict[str, Any]]:
        """New values of attributes of the user's modules if channels are removed.

        Raises ModelError where two sizes that differ afterwards are one attribute.
        """
        kept = self.analysis.kept_labels(removed)
        values = bound_attributes(self.analysis.bindings, lambda constant: constant.kept(kept))
        if values is None:
            raise ModelError("Expected equal numbers of channels where the model has one attribute for them.")
        return values

    def _check_shapes(self, kept: Mapping[str, Mapping[int, torch.Tensor]]) -> None:
        from prunus.pruning.structured.walk import find_tensor

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

    def _verify(self) -> None:
        if not self.verify:
            return
        traced = self.analysis.traced
        chosen = {group.name: group for group in self.groups if self.removed.get(group.name)}
        parts = [[name] for name in chosen] if self.verify == "groups" else [list(chosen)]
        for names in parts:
            exact = [name for name in names if chosen[name].exact]
            removed = {name: self.removed[name] for name in exact}
            if removed:
                check_removal(
                    self.model, traced.args, traced.kwargs, kept_indices(self.analysis, removed),
                    self.attributes(removed), f"the channels of {', '.join(exact[:5])}",
                )  # fmt: skip
