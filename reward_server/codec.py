"""Plain values to bytes and back: msgpack or JSON, sized, and never a type that could run code."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from math import isfinite
from typing import Any

import msgpack

MSGPACK = "application/msgpack"
JSON = "application/json"
MAX_TEXT = 1 << 20  # characters of one string
MAX_ENTRIES = 1 << 16  # of one list or dictionary
MAX_CONTAINERS = 1 << 17  # lists and dictionaries of one body: each takes 50 times the memory it took on the wire
MAX_PROBLEM = 500  # characters of an error: it may quote what was sent
MAX_DEPTH = 32  # of metadata


class WireError(ValueError):
    """A body that does not follow the format.

    Attributes:
        field: where, such as ``items[3].image.shape``.
        index: position of the offending item, if it is one item's fault.
    """

    def __init__(self, field: str, problem: str, index: int | None = None) -> None:
        super().__init__(f"{field}: {problem[:MAX_PROBLEM]}")
        self.field = field
        self.index = index


def dump(message: Mapping[str, Any], media_type: str) -> bytes:
    """Bytes of a message; WireError if it holds anything but plain values."""
    try:
        if media_type == JSON:
            return json.dumps(message, allow_nan=False).encode()
        packed: bytes = msgpack.packb(message)
        return packed
    except (TypeError, ValueError, OverflowError) as error:
        raise WireError("body", f"cannot be sent: {error}; prompts and metadata may hold plain values only") from None


def load(body: bytes, media_type: str, max_bytes: int) -> Any:
    """Plain values of a body; WireError if it is broken, too large, too deep, or of more than plain values."""
    if len(body) > max_bytes:
        raise WireError("body", f"holds {len(body)} bytes; at most {max_bytes} are allowed")
    try:
        if media_type == JSON:
            if body.count(b"[") + body.count(b"{") > MAX_CONTAINERS:
                raise ValueError(f"more than {MAX_CONTAINERS} lists and dictionaries")
            return json.loads(body, parse_constant=_no_constants)
        count = _Counter()
        return msgpack.unpackb(
            body,
            ext_hook=_no_extensions,
            list_hook=count,
            object_hook=count,
            max_bin_len=max_bytes,
            max_str_len=MAX_TEXT,
            max_array_len=MAX_ENTRIES,
            max_map_len=MAX_ENTRIES,
            max_ext_len=0,
        )
    except (ValueError, RecursionError, msgpack.UnpackException) as error:
        # RecursionError and StackError: nested beyond reason.
        raise WireError("body", f"is not valid {media_type}: {error or type(error).__name__}") from None


def get(message: Any, key: str, kind: type, where: str = "") -> Any:
    """``message[key]``, which must be exactly of this type (so that True is no int)."""
    path = f"{where}.{key}" if where else key
    if not isinstance(message, dict):
        raise WireError(where, f"is a {type(message).__name__}; expected a dictionary")
    if key not in message:
        raise WireError(path, "is missing")
    if type(message[key]) is not kind:
        raise WireError(path, f"is a {type(message[key]).__name__}; expected {kind.__name__}")
    return message[key]


def plain(value: Any, where: str, depth: int = 0) -> None:
    """Raise WireError unless JSON can hold ``value``: text, numbers, booleans, None, lists and dictionaries."""
    if value is None or isinstance(value, str | bool | int):
        return
    if isinstance(value, float):
        finite(value, where)
    elif depth == MAX_DEPTH:
        raise WireError(where, f"is nested more than {MAX_DEPTH} deep")
    elif isinstance(value, list):
        for entry in value:
            plain(entry, where, depth + 1)
    elif isinstance(value, dict):
        for key, entry in value.items():
            if not isinstance(key, str):
                raise WireError(where, f"has the key {key!r}; expected strings as keys")
            plain(entry, where, depth + 1)
    else:
        raise WireError(where, f"holds a value of type {type(value).__name__}; expected what JSON can hold")


def finite(value: Any, where: str) -> float:
    """``value`` as a float, if it is a finite number."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not isfinite(value):
        raise WireError(where, f"is {value!r}; expected a finite number")
    return float(value)


class _Counter:
    """Refuses bodies of millions of empty lists."""

    def __init__(self) -> None:
        self._left = MAX_CONTAINERS

    def __call__(self, container: Any) -> Any:
        self._left -= 1
        if self._left < 0:
            raise ValueError(f"more than {MAX_CONTAINERS} lists and dictionaries")
        return container


def _no_extensions(code: int, data: bytes) -> Sequence[Any]:
    raise ValueError(f"extension type {code} is not allowed")


def _no_constants(name: str) -> float:
    raise ValueError(f"{name} is not a number")
