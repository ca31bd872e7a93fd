"""Vectors of 64 floats in compiled kernels: one number of each example of a batch.

Each operation is one LLVM instruction on <64 x float>, which becomes a few registers of the CPU. Its order of rounding
does not depend on the compiler: a multiply-add rounds once, and a sum adds halves, then quarters, and so on. No
instruction assumes that there is no NaN.
"""

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, models, register_model
from numpy.typing import NDArray

LANES = 64
"""The number of examples in a vector."""

_FLOAT = ir.FloatType()
_VECTOR = ir.VectorType(_FLOAT, LANES)
_INDEX = ir.IntType(32)
_ZERO = ir.Constant(_VECTOR, [0.0] * LANES)


class _VectorType(types.Type):  # type: ignore[misc]
    """The numba type of a vector."""

    def __init__(self) -> None:
        super().__init__(name="prunus_vector_64xf32")


vector_type = _VectorType()


@register_model(_VectorType)
class _VectorModel(models.PrimitiveModel):  # type: ignore[misc]
    def __init__(self, dmm: Any, fe_type: Any) -> None:
        super().__init__(dmm, fe_type, _VECTOR)


def _splat(builder: Any, value: Any) -> Any:
    """The vector whose entries are all `value`."""
    undefined = ir.Constant(_VECTOR, ir.Undefined)
    first = builder.insert_element(undefined, value, ir.Constant(_INDEX, 0))
    return builder.shuffle_vector(first, undefined, ir.Constant(ir.VectorType(_INDEX, LANES), [0] * LANES))


def _place(context: Any, builder: Any, signature: Any, array: Any, index: Any) -> Any:
    """The address of vector number `index` in a contiguous float32 array."""
    data = context.make_array(signature.args[0])(context, builder, array).data
    start = builder.mul(index, ir.Constant(index.type, LANES))
    return builder.bitcast(builder.gep(data, [start]), _VECTOR.as_pointer())


def _fma(builder: Any, left: Any, right: Any, summand: Any) -> Any:
    """left · right + summand, with LLVM's intrinsic."""
    signature = ir.FunctionType(_VECTOR, [_VECTOR] * 3)
    function = cgutils.get_or_insert_function(builder.module, signature, f"llvm.fma.v{LANES}f32")
    return builder.call(function, [left, right, summand])


@intrinsic
def load(typing: Any, array: Any, index: Any) -> Any:
    """Vector number `index` of an array."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.load(_place(context, builder, signature, *arguments), align=4)

    return vector_type(array, types.int64), generate


@intrinsic
def store(typing: Any, array: Any, index: Any, vector: Any) -> Any:
    """Set vector number `index` of an array."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        array, index, vector = arguments
        builder.store(vector, _place(context, builder, signature, array, index), align=4)
        return context.get_dummy_value()

    return types.void(array, types.int64, vector_type), generate


@intrinsic
def splat(typing: Any, value: Any) -> Any:
    """The vector whose entries are all one float32 number."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return _splat(builder, arguments[0])

    return vector_type(types.float32), generate


@intrinsic
def multiply_add(typing: Any, number: Any, vector: Any, summand: Any) -> Any:
    """number · vector + summand, rounded once."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        number, vector, summand = arguments
        return _fma(builder, _splat(builder, number), vector, summand)

    return vector_type(types.float32, vector_type, vector_type), generate


@intrinsic
def multiply_add_entries(typing: Any, left: Any, right: Any, summand: Any) -> Any:
    """left · right + summand, entry by entry, rounded once."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return _fma(builder, *arguments)

    return vector_type(vector_type, vector_type, vector_type), generate


def _halves(builder: Any, vector: Any) -> tuple[Any, Any]:
    size = vector.type.count // 2
    undefined = ir.Constant(vector.type, ir.Undefined)
    masks = (ir.Constant(ir.VectorType(_INDEX, size), list(range(k, k + size))) for k in (0, size))
    low, high = (builder.shuffle_vector(vector, undefined, mask) for mask in masks)
    return low, high


@intrinsic
def total(typing: Any, vector: Any) -> Any:
    """The sum of the entries: halves are added, then quarters, and so on."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        vector = arguments[0]
        while vector.type.count > 1:
            vector = builder.fadd(*_halves(builder, vector))
        return builder.extract_element(vector, ir.Constant(_INDEX, 0))

    return types.float32(vector_type), generate


@intrinsic
def positive_part(typing: Any, vector: Any) -> Any:
    """The entries that are not below zero, and 0 for the others; NaN stays NaN."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        vector, zero = arguments[0], _ZERO
        return builder.select(builder.fcmp_ordered("<", vector, zero), zero, vector)

    return vector_type(vector_type), generate


@intrinsic
def where_positive(typing: Any, condition: Any, vector: Any) -> Any:
    """The entries of `vector` where `condition` is above 0 or NaN, and 0 for the others."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        condition, vector = arguments
        zero = _ZERO
        return builder.select(builder.fcmp_ordered("<=", condition, zero), zero, vector)

    return vector_type(vector_type, vector_type), generate


@intrinsic
def maximum(typing: Any, left: Any, right: Any) -> Any:
    """The larger entries; NaN where one is NaN."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        left, right = arguments
        larger = builder.select(builder.fcmp_ordered(">=", left, right), left, right)
        return builder.select(builder.fcmp_unordered("uno", left, left), left, larger)

    return vector_type(vector_type, vector_type), generate


@intrinsic
def where_equal(typing: Any, left: Any, right: Any, vector: Any) -> Any:
    """The entries of `vector` where `left` and `right` are equal, and 0 for the others."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        left, right, vector = arguments
        zero = _ZERO
        return builder.select(builder.fcmp_ordered("==", left, right), vector, zero)

    return vector_type(vector_type, vector_type, vector_type), generate


@intrinsic
def never_inline(typing: Any) -> Any:
    """Keep the function that calls this a function of its own: inlined into its callers, loops were half as fast."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        builder.function.attributes.add("noinline")
        return context.get_dummy_value()

    return types.void(), generate


TILE = 16
"""Features and examples that `transpose_tile` reads at once."""


@intrinsic
def transpose_tile(
    typing: Any, inputs: Any, starts: Any, lane: Any, feature: Any, values: Any, places: Any, offset: Any
) -> Any:
    """Write 16 features of 16 examples: values[LANES · places[f] + offset + j] = inputs[starts[lane + j] + f].

    Here j is from 0 to 15 and f from `feature` to `feature + 15`.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        _, _, lane, feature, _, _, offset = arguments
        data, first, target, place = (
            context.make_array(signature.args[i])(context, builder, arguments[i]).data for i in (0, 1, 4, 5)
        )
        part = ir.VectorType(_FLOAT, TILE).as_pointer()
        lines = []
        for j in range(TILE):
            index = builder.load(builder.gep(first, [builder.add(lane, ir.Constant(lane.type, j))]))
            address = builder.gep(data, [builder.add(index, feature)])
            lines.append(builder.load(builder.bitcast(address, part), align=4))
        for i, column in enumerate(_transposed(builder, lines)):
            index = builder.load(builder.gep(place, [builder.add(feature, ir.Constant(feature.type, i))]))
            start = builder.add(builder.mul(index, ir.Constant(index.type, LANES)), offset)
            builder.store(column, builder.bitcast(builder.gep(target, [start]), part), align=4)
        return context.get_dummy_value()

    number = types.int64
    return types.void(inputs, starts, number, number, values, places, number), generate


def _transposed(builder: Any, lines: list[Any]) -> list[Any]:
    """The columns of a square matrix, by exchanging ever smaller blocks."""
    size = len(lines)
    width = size // 2
    while width:
        swapped = list(lines)
        for i in range(size):
            if i & width:
                continue
            for k, shift in ((i, 0), (i + width, width)):
                entries = [(c & ~width) + shift + (size if c & width else 0) for c in range(size)]
                mask = ir.Constant(ir.VectorType(_INDEX, size), entries)
                swapped[k] = builder.shuffle_vector(lines[i], lines[i + width], mask)
        lines, width = swapped, width // 2
    return lines


def zeros(num_vectors: int) -> NDArray[np.float32]:
    """An array of zeros for this many vectors, at an address that is a multiple of 64 bytes."""
    raw = np.zeros(num_vectors * LANES + 16, np.float32)
    start = (-raw.ctypes.data % 64) // 4
    return raw[start : start + num_vectors * LANES]
