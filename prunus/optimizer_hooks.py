"""Hooks that enforce a constraint on weights in any training loop, with any optimizer."""

from collections.abc import Callable, Sequence
from functools import partial
from weakref import ref

import torch
from torch import Tensor, nn

from prunus.errors import ModelError
from prunus.modules import find_parameter


class OptimizerHooks:
    """Calls a constraint when a gradient is computed, and after every step of the attached optimizers.

    The parameters are looked up by name at every step, because modules and parameters of a model may be replaced.
    """

    def __init__(
        self,
        model: nn.Module,
        names: Sequence[str],
        constrain_gradient: Callable[[str, Tensor], None],
        after_step: Callable[[], None],
    ) -> None:
        """Store the constraint; nothing is hooked until `attach`.

        Args:
            model: The model.
            names: The names of the constrained parameters.
            constrain_gradient: Called with the name and the parameter, whose gradient it changes in place. It is
                linear, and a second call changes nothing, because gradients are accumulated.
            after_step: Makes the constraint true for the weights that the optimizer has changed.
        """
        self.model = model
        self.names = list(names)
        self._constrain_gradient = constrain_gradient
        self._after_step = after_step
        self._handles: list[torch.utils.hooks.RemovableHandle] = []
        self._hooked: dict[str, ref[Tensor]] = {}
        self._constrained: dict[str, tuple[Tensor, int]] = {}
        """The gradients that are constrained already, with their versions; empty after a step."""

    def __getstate__(self) -> dict[str, object]:
        """A pickle or copy is attached to no optimizer: hooks cannot be copied."""
        return {**self.__dict__, "_handles": [], "_hooked": {}, "_constrained": {}}

    def attach(self, optimizer: torch.optim.Optimizer) -> None:
        """Set the hooks. Nothing is hooked if an error is raised.

        Raises:
            ModelError: The optimizer steps no constrained parameter, or the model does not have one any more.
        """
        optimizer = _contained_optimizer(optimizer)
        stepped = _parameter_ids(optimizer)
        parameters = {name: find_parameter(self.model, name) for name in self.names}
        names = [name for name, parameter in parameters.items() if id(parameter) in stepped]
        if not names:
            raise ModelError(
                f"Expected an optimizer of this {type(self.model).__name__}, got one that steps none of its "
                f"{len(self.names)} masked or quantized parameters; make a new optimizer of model.parameters()."
            )
        self._hook_gradients(parameters)
        known = {name: ref(parameters[name]) for name in names}

        def before_step(optimizer: torch.optim.Optimizer, *_: object) -> None:
            parameters = {name: find_parameter(self.model, name) for name in self.names}
            self._hook_gradients(parameters)
            for name, reference in known.items():
                if reference() is not parameters[name]:
                    if id(parameters[name]) not in _parameter_ids(optimizer):
                        raise ModelError(
                            f"Expected the optimizer to step {name!r}, but the parameter was replaced in the model (by "
                            "load_state_dict(assign=True), for example); make a new optimizer and attach it."
                        )
                    known[name] = ref(parameters[name])
            for name, parameter in parameters.items():
                gradient = parameter.grad
                if gradient is not None and not self._is_constrained(name, gradient):
                    self._constrain_gradient(name, parameter)

        def after_step(*_: object) -> None:
            self._constrained.clear()
            self._after_step()

        self._handles += [
            optimizer.register_step_pre_hook(before_step),
            optimizer.register_step_post_hook(after_step),
        ]

    def detach(self) -> None:
        """Remove every hook."""
        for handle in self._handles:
            handle.remove()
        self._handles, self._hooked, self._constrained = [], {}, {}

    def _hook_gradients(self, parameters: dict[str, Tensor]) -> None:
        """Hook the parameters that are new in the model."""
        for name, parameter in parameters.items():
            hooked = self._hooked.get(name)
            if (hooked is None or hooked() is not parameter) and parameter.requires_grad:
                self._hooked[name] = ref(parameter)
                hook = partial(self._after_gradient, name)
                handle = parameter.register_post_accumulate_grad_hook(hook)  # type: ignore[no-untyped-call]
                self._handles.append(handle)

    def _after_gradient(self, name: str, parameter: Tensor) -> None:
        gradient = parameter.grad
        if gradient is not None:
            self._constrain_gradient(name, parameter)
            self._constrained[name] = gradient, gradient._version

    def _is_constrained(self, name: str, gradient: Tensor) -> bool:
        """Whether this gradient was constrained when it was computed and has not been changed since."""
        known, version = self._constrained.get(name, (None, 0))
        return known is gradient and version == gradient._version


def _contained_optimizer(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """The optimizer of torch in a wrapper of accelerate or Lightning, whose own hooks are never called."""
    while isinstance(contained := getattr(optimizer, "optimizer", None), torch.optim.Optimizer):
        optimizer = contained
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise ModelError(
            f"Expected a torch.optim.Optimizer, got a {type(optimizer).__name__}; attach the constraint to the "
            "optimizer that it contains."
        )
    return optimizer


def _parameter_ids(optimizer: torch.optim.Optimizer) -> set[int]:
    return {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
