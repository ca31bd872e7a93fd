"""Whether two stores hold the same runs, whichever executor computed them."""

import hashlib

from safetensors.torch import load_file

from prunus.runs.spec import run_id
from prunus.runs.store import Store

TIMES = {"seconds"}


def with_dependencies(specs) -> list:
    """The specs and what they need, needs first."""
    unique: dict = {}
    for spec in specs:
        for spec_or_dependency in [*with_dependencies(spec.dependencies().values()), spec]:
            unique[run_id(spec_or_dependency)] = spec_or_dependency
    return list(unique.values())


def numbers(store: Store, spec):
    """All numbers of a finished run but times: rows, curves, summary."""
    directory = store.directory(run_id(spec))
    rows = [{k: v for k, v in row.items() if k not in TIMES} for row in directory.rows()]
    summary = {k: v for k, v in directory.record().summary.items() if k not in TIMES}
    return rows, directory.curve(), summary


def tensors(store: Store, spec):
    """The dtypes, shapes and digests of the bytes of all tensors of a finished run, by file and name."""
    path = store.directory(run_id(spec)).path
    return {
        file.name: {
            name: (tensor.dtype, tensor.shape, hashlib.sha256(tensor.numpy().tobytes()).hexdigest())
            for name, tensor in load_file(file).items()
        }
        for file in sorted(path.glob("*.safetensors"))
    }


def check_same(store, other, specs):
    """Both stores hold equal numbers and bit-identical tensors of the specs and of what they need."""
    for spec in with_dependencies(specs):
        assert numbers(store, spec) == numbers(other, spec)
        assert tensors(store, spec) == tensors(other, spec)
