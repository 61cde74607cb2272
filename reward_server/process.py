"""Being a well-behaved process: where to listen, telling others the address, and not outliving the parent."""

from __future__ import annotations

import contextlib
import ctypes
import ipaddress
import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

PARENT_POLL_S = 0.5
M_MMAP_THRESHOLD = -3  # of <malloc.h>
LARGE_BLOCK_BYTES = 256 << 10
EXIT_GRACE_S = 10.0


def bind(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 takes any free one."""
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(128)
    except OSError:
        listener.close()
        raise
    return listener


def url_of(listener: socket.socket) -> str:
    """``http://host:port`` of a bound socket."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a server bound to ``host``."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def write_atomically(path: Path, text: str) -> None:
    """Write a file that a polling reader sees either not at all or complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    unfinished.write_text(text)
    unfinished.replace(path)


def return_freed_memory() -> None:
    """Tell glibc to give large blocks back to the system when they are freed; nothing elsewhere.

    Left to itself it learns from the first freed body that bodies are small, and keeps them in one heap per thread:
    the memory of a server under load then grows to several times what it uses.
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, LARGE_BLOCK_BYTES)


def exit_with_parent() -> None:
    """Watch the parent process in a thread; when it is gone, however it died, end this process too."""
    _watch(os.getppid(), _terminate)


def _watch(parent: int, gone: Callable[[], None]) -> None:
    def poll() -> None:
        # The kernel hands orphans to another process, so that the parent's id changes.
        while os.getppid() == parent:
            time.sleep(PARENT_POLL_S)
        gone()

    threading.Thread(target=poll, name="parent-watch", daemon=True).start()


def _terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(EXIT_GRACE_S)
    os._exit(1)  # the orderly shutdown hangs, and nobody is left to notice
