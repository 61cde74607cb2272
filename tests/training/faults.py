"""What is done to a rank of a test run, at a place in the code rather than at a time on the clock."""

from __future__ import annotations

import ctypes
import importlib
import itertools
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import torch

Hurt = Callable[[], object]
SAMPLING = "awm.training.rollout:Rollout._sample"
UPDATE = "awm.objectives.awm:AWM.__call__"
SAVING = "awm.training.outputs:save_checkpoint"
CHANGES = ("open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "shutil.rmtree")  # audit events
LOADING = "awm.building.trainer:build_policy"


def at(place: str, call: int, rank: int, what: Hurt) -> Hurt:
    """In ``rank``, do ``what`` before the ``call``-th call (from 1) of ``place``, "module:name.name"."""
    return partial(_arm, place, call, rank, what)


def killed() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def killed_while_writing(touch: int) -> None:
    """Die when the file system is next changed for the ``touch``-th time, in whatever way."""
    touches = itertools.count(1)

    def count(event: str, _: tuple[object, ...]) -> None:
        if event in CHANGES and next(touches) == touch:
            killed()

    sys.addaudithook(count)


def signalled(number: int) -> None:
    os.kill(os.getpid(), number)


def signalled_in_c_code(number: int) -> None:
    """As ``signalled``, in a place that turns every exception into its own, as the import of a C module does."""
    try:
        signalled(number)
    except BaseException as error:
        raise ImportError("initialization failed") from error


def everywhere(place: str, what: Hurt) -> Hurt:
    """In all ranks, do ``what`` before the first call of ``place``."""
    return partial(_everywhere, place, what)


def together(*hurts: Hurt) -> Hurt:
    """All of them."""
    return partial(_together, hurts)


def slow(flag: str) -> None:
    """Take long, in Python; a file says that it has begun."""
    Path(flag + os.environ["RANK"]).touch()
    time.sleep(60)


def stuck(flag: str) -> None:
    """Never return to Python, as in a collective with ranks that have left; a file says that it has begun."""
    lock, mutex = ctypes.CDLL(None).pthread_mutex_lock, ctypes.create_string_buffer(64)
    Path(flag + os.environ["RANK"]).touch()
    for _ in range(2):
        lock(mutex)


def failing() -> None:
    raise RuntimeError("boom: the first error")


def out_of_memory() -> None:
    """With numbers that differ among the ranks, as CUDA's do."""
    rank = os.environ["RANK"]
    raise RuntimeError(f"out of memory: 1{rank} MiB on GPU {rank}")


def grace(seconds: float) -> Hurt:
    """Let ranks whose main thread hangs be ended sooner than a user would want."""
    return partial(_set, "awm.training.liveness:GRACE_S", seconds)


def impatient() -> Hurt:
    """Do not wait for a run folder that another job writes to."""
    return partial(_set, "awm.training.run_lock:PATIENCE_S", 0.1)


def diverging(call: int, rank: int) -> Hurt:
    """Make the loss of one micro-batch of ``rank`` NaN."""
    return partial(_diverge, call, rank)


def _everywhere(place: str, what: Hurt) -> None:
    _arm(place, 1, int(os.environ["RANK"]), what)


def _together(hurts: tuple[Hurt, ...]) -> None:
    for hurt in hurts:
        hurt()


def _set(place: str, value: Any) -> None:
    owner, name = _find(place)
    setattr(owner, name, value)


def _arm(place: str, call: int, rank: int, what: Hurt) -> None:
    if os.environ["RANK"] != str(rank):
        return
    owner, name = _find(place)
    original, calls = getattr(owner, name), itertools.count(1)

    def hurting(*args: Any, **kwargs: Any) -> Any:
        if next(calls) == call:
            what()
        return original(*args, **kwargs)

    setattr(owner, name, hurting)


def _diverge(call: int, rank: int) -> None:
    if os.environ["RANK"] != str(rank):
        return
    owner, name = _find(UPDATE)
    original, calls = getattr(owner, name), itertools.count(1)

    def diverging(*args: Any, **kwargs: Any) -> Any:
        output = original(*args, **kwargs)
        return replace(output, loss=output.loss * torch.nan) if next(calls) == call else output

    setattr(owner, name, diverging)


def _find(place: str) -> tuple[Any, str]:
    """The object that holds "module:name.name", and the last name."""
    module, _, path = place.partition(":")
    owner: Any = importlib.import_module(module)
    *parents, name = path.split(".")
    for parent in parents:
        owner = getattr(owner, parent)
    return owner, name


class Silent:
    """A reward server that says it is ready and then never answers; ``asked`` counts the questions."""

    url, asked = "", 0


@contextmanager
def silent_server() -> Iterator[Silent]:
    """One that runs inside the block."""
    held, silent = threading.Event(), Silent()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b'{"rewards": {"geneval": {"metrics": [], "fingerprint": "x"}}}')

        def do_POST(self) -> None:
            silent.asked += 1
            held.wait()

        def log_message(self, *_: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        silent.url = f"http://127.0.0.1:{server.server_port}"
        yield silent
    finally:
        held.set()
        server.shutdown()
        server.server_close()
