"""Messages between the server and a worker: standard library only, so that a worker's environment needs nothing.

One frame is::

    u32 header length, big-endian | header, JSON | blobs, raw, whose lengths stand in header["blobs"]

JSON and bytes cannot run code, whoever sends them.
"""

from __future__ import annotations

import json
import socket
import struct
import time
from collections.abc import Mapping, Sequence
from typing import Any

_LENGTH = struct.Struct(">I")
MAX_HEADER_BYTES = 1 << 30
BLOBS_PER_CALL = 256  # buffers handed to the kernel at once; the limit of Linux is 1024


class Closed(ConnectionError):
    """The other side is gone."""


def send(connection: socket.socket, header: Mapping[str, Any], blobs: Sequence[bytes] = ()) -> None:
    """Write one frame; raises OSError if the other side is gone, TimeoutError by the socket's time-out."""
    text = json.dumps({**header, "blobs": [len(blob) for blob in blobs]}).encode()
    buffers = [_LENGTH.pack(len(text)), text, *blobs]
    for start in range(0, len(buffers), BLOBS_PER_CALL):
        _send_all(connection, buffers[start : start + BLOBS_PER_CALL])


def receive(connection: socket.socket, deadline: float | None = None) -> tuple[dict[str, Any], list[bytearray]]:
    """Header and blobs of the next frame.

    Args:
        connection: a stream socket.
        deadline: value of time.monotonic() at which the whole frame must be here; None waits for ever.

    Raises:
        Closed: the other side closed the connection, in mid-frame or before.
        TimeoutError: the deadline passed.
    """
    (length,) = _LENGTH.unpack(_read(connection, _LENGTH.size, deadline))
    if length > MAX_HEADER_BYTES:
        raise Closed(f"a header of {length} bytes: the other side does not speak this protocol")
    header = json.loads(_read(connection, length, deadline))
    return header, [_read(connection, size, deadline) for size in header.pop("blobs")]


def _send_all(connection: socket.socket, buffers: list[bytes]) -> None:
    views = [memoryview(buffer) for buffer in buffers if buffer]
    while views:
        sent = connection.sendmsg(views)
        while views and sent >= len(views[0]):
            sent -= len(views.pop(0))
        if views:
            views[0] = views[0][sent:]


def _read(connection: socket.socket, size: int, deadline: float | None) -> bytearray:
    buffer = bytearray(size)
    view, got = memoryview(buffer), 0
    while got < size:
        if deadline is not None:
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError("the answer did not come in time")
            connection.settimeout(left)
        count = connection.recv_into(view[got:])
        if count == 0:
            raise Closed("the other side closed the connection")
        got += count
    return buffer
