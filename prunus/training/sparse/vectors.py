"""Vectors of 64 floats in compiled kernels: one number of each example of a batch.

Each operation is one LLVM instruction on <64 x float>, or a few, which become instructions on registers of the CPU. The
order of rounding does not depend on the compiler: a multiply-add rounds once, and a sum adds halves, then quarters, and
so on. No instruction assumes that there is no NaN.
"""

from collections.abc import Callable
from inspect import Parameter, Signature
from typing import Any

import numpy as np
from llvmlite import ir  # type: ignore[import-untyped]
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, models, register_model
from numpy.typing import NDArray

LANES = 64
"""The number of examples in a vector."""
TILE = 16
"""The number of features, and of examples, that `transpose_tile` reads at once."""

_FLOAT, _INDEX = ir.FloatType(), ir.IntType(32)
_VECTOR = ir.VectorType(_FLOAT, LANES)
_UNDEFINED = ir.Constant(_VECTOR, ir.Undefined)
_ZERO = ir.Constant(_VECTOR, [0.0] * LANES)
_ARRAY, _INTEGER, _NUMBER = None, types.int64, types.float32


class _VectorType(types.Type):  # type: ignore[misc]
    """The numba type of a vector."""


@register_model(_VectorType)
class _VectorModel(models.PrimitiveModel):  # type: ignore[misc]
    def __init__(self, dmm: Any, fe_type: Any) -> None:
        super().__init__(dmm, fe_type, _VECTOR)


_VECTOR_TYPE = _VectorType("prunus_vector")


def _operation(result: Any, arguments: tuple[Any, ...], generate: Callable[..., Any]) -> Any:
    """A function for compiled kernels.

    Args:
        result: Its numba type.
        arguments: The numba types of its arguments; `_ARRAY` stands for any contiguous array.
        generate: Called with the LLVM builder and the value of each argument, for an array the address of its data.

    Returns:
        The function.
    """

    def define(typing: Any, *argument_types: Any) -> Any:
        signature = result(*(g if a is _ARRAY else a for g, a in zip(argument_types, arguments, strict=True)))

        def lower(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            values = [
                context.make_array(kind)(context, builder, value).data if argument is _ARRAY else value
                for kind, argument, value in zip(signature.args, arguments, values, strict=True)
            ]
            value = generate(builder, *values)
            return context.get_dummy_value() if result is types.void else value

        return signature, lower

    names = ("typing", *(f"argument_{i}" for i in range(len(arguments))))
    kind = Parameter.POSITIONAL_OR_KEYWORD  # numba reads the parameters, and has none of a variable number
    define.__signature__ = Signature([Parameter(name, kind) for name in names])  # type: ignore[attr-defined]
    return intrinsic(define)


def _address(builder: Any, data: Any, index: Any, size: int = LANES) -> Any:
    """The address of `size` floats from the float with this index."""
    return builder.bitcast(builder.gep(data, [index]), ir.VectorType(_FLOAT, size).as_pointer())


def _place(builder: Any, data: Any, index: Any) -> Any:
    """The address of vector number `index`."""
    return _address(builder, data, builder.mul(index, ir.Constant(index.type, LANES)))


def _splat(builder: Any, number: Any) -> Any:
    first = builder.insert_element(_UNDEFINED, number, ir.Constant(_INDEX, 0))
    return builder.shuffle_vector(first, _UNDEFINED, ir.Constant(ir.VectorType(_INDEX, LANES), [0] * LANES))


def _fma(builder: Any, left: Any, right: Any, summand: Any) -> Any:
    signature = ir.FunctionType(_VECTOR, [_VECTOR] * 3)
    function = cgutils.get_or_insert_function(builder.module, signature, f"llvm.fma.v{LANES}f32")
    return builder.call(function, [left, right, summand])


def _total(builder: Any, vector: Any) -> Any:
    while (size := vector.type.count // 2) > 0:
        undefined, halves = ir.Constant(vector.type, ir.Undefined), ir.VectorType(_INDEX, size)
        low, high = (ir.Constant(halves, list(range(start, start + size))) for start in (0, size))
        parts = (builder.shuffle_vector(vector, undefined, entries) for entries in (low, high))
        vector = builder.fadd(*parts)
    return builder.extract_element(vector, ir.Constant(_INDEX, 0))


def _maximum(builder: Any, left: Any, right: Any) -> Any:
    larger = builder.select(builder.fcmp_ordered(">=", left, right), left, right)
    return builder.select(builder.fcmp_unordered("uno", left, left), left, larger)


def _transpose_tile(
    builder: Any, inputs: Any, starts: Any, lane: Any, feature: Any, values: Any, places: Any, offset: Any
) -> None:
    lines = []
    for j in range(TILE):
        start = builder.load(builder.gep(starts, [builder.add(lane, ir.Constant(lane.type, j))]))
        address = _address(builder, inputs, builder.add(start, feature), TILE)
        lines.append(builder.load(address, align=4))
    for i, column in enumerate(_transposed(builder, lines)):
        place = builder.load(builder.gep(places, [builder.add(feature, ir.Constant(feature.type, i))]))
        start = builder.add(builder.mul(place, ir.Constant(place.type, LANES)), offset)
        builder.store(column, _address(builder, values, start, TILE), align=4)


def _transposed(builder: Any, lines: list[Any]) -> list[Any]:
    """The columns of a square matrix, by exchanging ever smaller blocks."""
    size = len(lines)
    width = size // 2
    while width:
        swapped = list(lines)
        for i in (i for i in range(size) if not i & width):
            for k, shift in ((i, 0), (i + width, width)):
                entries = [(c & ~width) + shift + (size if c & width else 0) for c in range(size)]
                mask = ir.Constant(ir.VectorType(_INDEX, size), entries)
                swapped[k] = builder.shuffle_vector(lines[i], lines[i + width], mask)
        lines, width = swapped, width // 2
    return lines


load = _operation(
    _VECTOR_TYPE, (_ARRAY, _INTEGER), lambda builder, *at: builder.load(_place(builder, *at), align=4)
)
"""load(array, place): vector number `place`."""

store = _operation(
    types.void,
    (_ARRAY, _INTEGER, _VECTOR_TYPE),
    lambda builder, data, place, vector: builder.store(vector, _place(builder, data, place), align=4),
)
"""store(array, place, vector): set vector number `place`."""

splat = _operation(_VECTOR_TYPE, (_NUMBER,), _splat)
"""splat(number): the vector whose entries are all `number`."""

multiply_add = _operation(
    _VECTOR_TYPE,
    (_NUMBER, _VECTOR_TYPE, _VECTOR_TYPE),
    lambda builder, number, *vectors: _fma(builder, _splat(builder, number), *vectors),
)
"""multiply_add(number, vector, summand): number · vector + summand, rounded once."""

multiply_add_entries = _operation(_VECTOR_TYPE, (_VECTOR_TYPE,) * 3, _fma)
"""multiply_add_entries(left, right, summand): left · right + summand entry by entry, rounded once."""

total = _operation(_NUMBER, (_VECTOR_TYPE,), _total)
"""total(vector): the sum of the entries."""

positive_part = _operation(
    _VECTOR_TYPE,
    (_VECTOR_TYPE,),
    lambda builder, vector: builder.select(builder.fcmp_ordered("<", vector, _ZERO), _ZERO, vector),
)
"""positive_part(vector): 0 where an entry is below 0; NaN stays NaN."""

where_positive = _operation(
    _VECTOR_TYPE,
    (_VECTOR_TYPE, _VECTOR_TYPE),
    lambda builder, test, vector: builder.select(builder.fcmp_ordered("<=", test, _ZERO), _ZERO, vector),
)
"""where_positive(test, vector): the entries of `vector` where `test` is above 0 or NaN, and 0 for the others."""

maximum = _operation(_VECTOR_TYPE, (_VECTOR_TYPE, _VECTOR_TYPE), _maximum)
"""maximum(left, right): the larger entries; NaN where one is NaN."""

where_equal = _operation(
    _VECTOR_TYPE,
    (_VECTOR_TYPE,) * 3,
    lambda builder, left, right, vector: builder.select(
        builder.fcmp_ordered("==", left, right), vector, _ZERO
    ),
)
"""where_equal(left, right, vector): the entries of `vector` where `left` equals `right`, and 0 for the others."""

transpose_tile = _operation(
    types.void, (_ARRAY, _ARRAY, _INTEGER, _INTEGER, _ARRAY, _ARRAY, _INTEGER), _transpose_tile
)
"""transpose_tile(inputs, starts, lane, feature, values, places, offset): write 16 features of 16 examples.

values[LANES · places[f] + offset + j] = inputs[starts[lane + j] + f], for j from 0 and f from `feature`.
"""

never_inline = _operation(types.void, (), lambda builder: builder.function.attributes.add("noinline"))
"""never_inline(): keep the kernel that calls this a function of its own; inlined, loops were half as fast."""


def zeros(num_vectors: int) -> NDArray[np.float32]:
    """An array of zeros for this many vectors, at an address that is a multiple of 64 bytes."""
    raw = np.zeros(num_vectors * LANES + 16, np.float32)
    start = (-raw.ctypes.data % 64) // 4
    return raw[start : start + num_vectors * LANES]
