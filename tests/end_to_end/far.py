"""`prunus` with one more device, "far", which is as strict as a GPU: `python far.py compress …`.

A far tensor computes on the CPU. It refuses what a CUDA tensor refuses: to meet a tensor of the CPU in one
operation (single numbers, copies and indices aside), to take a generator of the CPU, and to become a NumPy array
before it has been fetched.
"""

import sys

import torch
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.backend_registration import _DummyBackendModule, _setup_privateuseone_for_python_backend

from prunus.cli import main

aten = torch.ops.aten
MEETING = {aten.copy_.default, aten._to_copy.default, aten.index.Tensor, aten._index_put_impl_.default}


class Device(_DummyBackendModule):
    """What torch asks of a device: on_device is one, and it has no random numbers of its own."""

    def is_available(self):
        return True

    def device_count(self):
        return 1

    def current_device(self):
        return 0

    def get_rng_state(self, device=None):
        return torch.zeros(1, dtype=torch.uint8)

    def set_rng_state(self, state, device=None):
        pass


class Far(torch.Tensor):
    """A tensor on the far device; `near` has its numbers."""

    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, near, requires_grad=False):
        tensor = torch.Tensor._make_wrapper_subclass(
            cls,
            near.shape,
            strides=near.stride(),
            storage_offset=near.storage_offset(),
            dtype=near.dtype,
            device="far:0",
            requires_grad=requires_grad,
        )
        tensor.near = near
        return tensor

    def tolist(self):
        return self.near.tolist()

    @classmethod
    def __torch_dispatch__(cls, operation, types, args=(), kwargs=None):
        return called(operation, *args, **(kwargs or {}))


def called(operation, *args, **kwargs):
    """`operation` on the tensors inside, its results on the device where they belong."""
    leaves = tree_leaves((args, kwargs))
    far = {id(leaf.near): leaf for leaf in leaves if isinstance(leaf, Far)}
    near = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor) and not isinstance(leaf, Far)]
    device = kwargs.get("device")
    on_device = bool(far) if device is None else torch.device(device).type == "far"
    if operation is aten.copy_.default:
        on_device = isinstance(args[0], Far)
    if far and operation not in MEETING and any(tensor.dim() for tensor in near):
        raise RuntimeError(f"{operation} was given tensors of two devices.")
    if on_device and any(isinstance(leaf, torch.Generator) for leaf in leaves):
        raise RuntimeError(f"{operation} was given a generator of the CPU.")
    args, kwargs = tree_map_only(Far, lambda tensor: tensor.near, (args, kwargs))
    if device is not None:
        kwargs = {**kwargs, "device": torch.device("cpu")}
    result = operation(*args, **kwargs)
    if not on_device:
        return result
    return tree_map_only(torch.Tensor, lambda out: far[id(out)] if id(out) in far else Far(out), result)


def add_device():
    """Add the device to this process; it lasts as long as what is returned."""
    _setup_privateuseone_for_python_backend("far", backend_module=Device())
    fallback = torch.library.Library("_", "IMPL")
    fallback.fallback(called, "PrivateUse1")
    return fallback


if __name__ == "__main__":
    fallback = add_device()
    main(sys.argv[1:])
