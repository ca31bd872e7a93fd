"""Values of a state_dict that are not tensors, such as the extra state of a module, as JSON.

None, booleans, integers, finite floats, strings, lists, and dicts whose keys are strings that do not begin with "$"
are themselves. Everything else is an object of one key:

    {"$float": "nan"}    {"$tuple": [...]}    {"$set": [...]}    {"$dict": [[key, value], ...]}    {"$bytes": base64}
    {"$tensor": [dtype, shape, base64 of the bytes]}
"""

import base64
import json
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from prunus.compression.container.file_format import DTYPES, as_bytes
from prunus.compression.container.header import check_structure, parse_json
from prunus.errors import ContainerError, CorruptFileError


def encode_plain_data(name: str, value: object) -> bytes:
    """The JSON of a value.

    Args:
        name: Its name in the state_dict, for errors.
        value: Any combination of the types above.

    Returns:
        UTF-8.

    Raises:
        ContainerError: The value is, or contains, an object of another type.

    >>> encode_plain_data("scale", {"amax": [1.5, float("inf")], "shape": (2, 3)})
    b'{"amax":[1.5,{"$float":"inf"}],"shape":{"$tuple":[2,3]}}'
    """
    try:
        text = json.dumps(_to_json(name, value), separators=(",", ":"), ensure_ascii=False, allow_nan=False)
        content = text.encode()
        check_structure(content, f"The value of {name!r}")
    except (RecursionError, UnicodeEncodeError, CorruptFileError) as error:
        raise ContainerError(f"{name} cannot be written as JSON: {error}.") from error
    return content


def decode_plain_data(content: bytes, label: str) -> Any:
    """The value of JSON that `encode_plain_data` wrote.

    Args:
        content: UTF-8.
        label: What it is called in errors.

    Returns:
        The value; no code is run, whatever `content` is.

    Raises:
        CorruptFileError: The content is not what `encode_plain_data` writes.
        SizeLimitError: It holds more values, strings or keys than allowed.
    """
    value = parse_json(content, label)
    try:
        return _from_json(value)
    except (ValueError, TypeError, KeyError, RecursionError, RuntimeError, OverflowError) as error:
        raise CorruptFileError(f"{label} is not plain data: {error}.") from error


def _to_json(name: str, value: object) -> object:
    if value is None or type(value) in (bool, int, str):
        return value
    if type(value) is float:
        return value if math.isfinite(value) else {"$float": repr(value)}
    if type(value) is list:
        return [_to_json(name, item) for item in value]
    if type(value) in (tuple, torch.Size):
        return {"$tuple": [_to_json(name, item) for item in value]}  # type: ignore[attr-defined]
    if type(value) in (set, frozenset):
        return {"$set": sorted((_to_json(name, item) for item in value), key=repr)}  # type: ignore[attr-defined]
    if type(value) in (bytes, bytearray):
        return {"$bytes": base64.b64encode(value).decode()}  # type: ignore[arg-type]
    if isinstance(value, Mapping):
        if all(type(key) is str and not key.startswith("$") for key in value):
            return {key: _to_json(name, item) for key, item in value.items()}
        return {"$dict": [[_to_json(name, key), _to_json(name, item)] for key, item in value.items()]}
    if isinstance(value, Tensor) and value.layout == torch.strided and value.dtype in DTYPES.values():
        content = base64.b64encode(as_bytes(value).numpy().tobytes()).decode()
        return {"$tensor": [str(value.dtype).removeprefix("torch."), list(value.shape), content]}
    raise ContainerError(
        f"{name} is or contains a {type(value).__name__}, but a file holds dense tensors, numbers, text, and lists, "
        "tuples, sets and dicts of them; save the model before it is quantized or packed, or convert the value."
    )


def _from_json(value: Any) -> Any:
    if isinstance(value, list):
        return [_from_json(item) for item in value]
    if not isinstance(value, dict):
        return value
    match value:
        case {"$float": "nan" | "inf" | "-inf" as number, **others} if not others:
            return float(number)
        case {"$tuple": list(items), **others} if not others:
            return tuple(_from_json(items))
        case {"$set": list(items), **others} if not others:
            return set(_from_json(items))
        case {"$dict": list(items), **others} if not others:
            return {_from_json(key): _from_json(item) for key, item in items}
        case {"$bytes": str(text), **others} if not others:
            return base64.b64decode(text, validate=True)
        case {"$tensor": [str(dtype), list(shape), str(text)], **others} if not others and dtype in DTYPES:
            content = bytearray(base64.b64decode(text, validate=True))
            if not all(type(size) is int and size >= 0 for size in shape):
                raise ValueError(f"a tensor of the shape {shape}")
            empty = torch.empty(0, dtype=torch.uint8)
            entries = torch.frombuffer(content, dtype=torch.uint8) if content else empty
            if dtype == "bool" and max(content, default=0) > 1:
                raise ValueError("a boolean value that is neither 0 nor 1")
            return entries.view(DTYPES[dtype]).reshape(shape)
    if any(key.startswith("$") for key in value):
        raise ValueError(f"an object of the keys {sorted(value)}")
    return {key: _from_json(item) for key, item in value.items()}
