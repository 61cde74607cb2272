"""One process writes to a run folder at a time: two would mix their metrics and remove each other's checkpoints."""

from __future__ import annotations

import fcntl
import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from awm.training.distributed import Distributed

NAME = ".lock"
# An orphan of a killed launcher may still be saving; and a file server keeps the lock of a machine that is gone until
# its lease ends, with NFS 4 after about 90 seconds.
PATIENCE_S = 150.0
POLL_S = 0.5


@contextmanager
def run_lock(run: Path, distributed: Distributed) -> Iterator[None]:
    """Inside the block no other job writes to ``run``.

    The lock ends with the process, however it dies; if its whole machine goes, when the file server notices.

    Args:
        run: the run folder; made if missing.
        distributed: the ranks; the main one holds the lock for all. A collective.

    Raises:
        ValueError: on all ranks, if another process still holds it.
    """
    file, holder = -1, ""
    if distributed.is_main:
        run.mkdir(parents=True, exist_ok=True)
        file = os.open(run / NAME, os.O_RDWR | os.O_CREAT, 0o644)
        holder = _acquire(file, run)
    holder = distributed.broadcast_object(holder)
    try:
        if holder:
            raise ValueError(
                f"{run} is in use by {holder}. Wait for it or stop it (kill -TERM), or choose another "
                f"--config.run_name."
            )
        yield
    finally:
        if file >= 0:
            os.close(file)


def _acquire(file: int, run: Path) -> str:
    """Who has the lock; "" if it is ours now, or this file system has no locks."""
    until, told = time.monotonic() + PATIENCE_S, False
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(file, 200, 0).decode(errors="replace") or "another process"
        except OSError:
            return ""
        else:
            os.ftruncate(file, 0)
            os.pwrite(file, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)
            return ""
        if time.monotonic() > until:
            return holder
        if not told:
            print(f"{run} is in use by {holder}; waiting up to {PATIENCE_S:g} s for it to end.", file=sys.stderr)
            told = True
        time.sleep(POLL_S)
