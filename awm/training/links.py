"""Lines of JSON over TCP between the ranks of a job, and addresses under which one rank reaches another."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
from collections.abc import Sequence
from typing import Any

CONNECT_S = 5.0
ANSWER_S = 10.0
SEND_S = 5.0
LONGEST_LINE = 1 << 17
STRANGERS_LINE = 1 << 10
# A host that vanishes without a word (power, network) is given up after 30 + 6 * 15 = 120 seconds.
KEEPALIVE = {"TCP_KEEPIDLE": 30, "TCP_KEEPINTVL": 15, "TCP_KEEPCNT": 6, "TCP_USER_TIMEOUT": 120_000}
LOOPBACK = ("127", "::1", "localhost")  # up to the first dot

Message = dict[str, Any]


class Link:
    """One connection.

    Attributes:
        rank: who is at the other end; -1 until it has said so.
        host: its machine.
        left: the other end said goodbye, so that its going means nothing.
    """

    def __init__(self, connection: socket.socket, rank: int = -1, host: str = "") -> None:
        self.rank, self.host, self.left = rank, host, False
        self._socket, self._unread, self._lock = connection, b"", threading.Lock()
        connection.settimeout(SEND_S)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in KEEPALIVE.items():
            if hasattr(socket, name):
                connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)

    def fileno(self) -> int:
        """For ``select``."""
        return self._socket.fileno()

    def send(self, message: Message) -> None:
        """Say something; one that cannot hear it any more is noticed when reading."""
        with self._lock, contextlib.suppress(OSError):
            self._socket.sendall(_line(message))

    def receive(self) -> list[Message] | None:
        """What has arrived, when there is something to read; None at the end of the connection."""
        longest = LONGEST_LINE if self.rank >= 0 else STRANGERS_LINE
        try:
            data = self._socket.recv(longest)
        except OSError:
            return None
        lines = (self._unread + data).split(b"\n")
        self._unread = lines.pop()
        if not data or any(len(line) > longest for line in (*lines, self._unread)):
            return None
        try:
            messages = [json.loads(line) for line in lines]
        except (ValueError, RecursionError):
            return None
        return messages if all(isinstance(message, dict) for message in messages) else None

    def close(self) -> None:
        """Hang up."""
        self._socket.close()


def listen(*, this_node_only: bool) -> socket.socket:
    """A listening socket on any free port."""
    if this_node_only:
        return socket.create_server(("127.0.0.1", 0), backlog=4096)
    if socket.has_dualstack_ipv6():
        return socket.create_server(("", 0), family=socket.AF_INET6, dualstack_ipv6=True, backlog=4096)
    return socket.create_server(("", 0), backlog=4096)


def own_addresses(*, this_node_only: bool) -> list[str]:
    """Names and numbers under which other ranks may reach this one, the likeliest first."""
    if this_node_only:
        return ["127.0.0.1"]
    master = os.environ.get("MASTER_ADDR", "")
    known = (_towards(master), socket.getfqdn(), socket.gethostname(), master)
    return list(dict.fromkeys(a for a in known if a and a.split(".")[0] not in LOOPBACK))


def connect(addresses: Sequence[str], port: int, hello: Message) -> socket.socket | None:
    """A connection to the first address where ``hello``, with its "nonce", is answered by ``welcome``.

    Other programs may listen on this port where an address means another machine than meant.
    """
    for address in addresses:
        with contextlib.suppress(OSError):
            connection = socket.create_connection((address, port), timeout=CONNECT_S)
            if _welcomed(connection, hello):
                return connection
            connection.close()
    return None


def welcome(nonce: str) -> Message:
    """What the main rank answers."""
    return {"kind": "welcome", "nonce": nonce}


def _welcomed(connection: socket.socket, hello: Message) -> bool:
    connection.settimeout(ANSWER_S)
    expected, answer = _line(welcome(hello["nonce"])), b""
    with contextlib.suppress(OSError):
        connection.sendall(_line(hello))
        while expected.startswith(answer) and answer != expected and (byte := connection.recv(1)):
            answer += byte  # byte by byte, since what comes after the answer is for later
        if answer != expected:
            connection.sendall(_line(hello | {"kind": "bye"}))  # one that was only slow is not to miss this rank
    return answer == expected


def _line(message: Message) -> bytes:
    return json.dumps(message).encode() + b"\n"


def _towards(host: str) -> str:
    """This machine's own address on the way to ``host``; nothing is sent."""
    with contextlib.suppress(OSError):
        family, kind, _, _, address = socket.getaddrinfo(host, 9, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind) as probe:
            probe.connect(address)
            return str(probe.getsockname()[0])
    return ""
