"""How a process ends that cannot go on: its error first, once, with its rank; never waiting for the other ranks."""

from __future__ import annotations

import os
import signal
import sys
import traceback
from typing import NoReturn

import torch.distributed as dist

from awm.rewards.errors import RewardError
from awm.training.checkpoint import CheckpointError
from awm.training.liveness import Liveness, first_line
from awm.training.stopping import SIGNALS, StopRequest
from awm.training.update import NonFiniteLossError

TOLD = (RewardError, CheckpointError, NonFiniteLossError, OSError)
MISTAKES = (ValueError, *TOLD)  # of a user, while the run is put together; later a ValueError is a defect
# What gloo, NCCL and the store say when the process at the other end is gone. torch has no type for all of them.
PEER_IS_GONE = ("connection closed by peer", "connection reset by peer", "broken pipe", "remote process", "socket")


def end(error: Exception, liveness: Liveness | None, stop: StopRequest) -> NoReturn:
    """Report ``error`` on standard error and to the other ranks, and end this process with a status that is not 0.

    A user's mistake is one message, however many ranks make it; a collective that broke because another process
    died is one line that names it; anything else is a traceback, and one line on the ranks that fail alike. Objects
    are not cleaned up: communicators may wait forever for ranks that are gone.
    """
    _ignore_signals()
    if stop.exiting:
        leave(stop.exit_code, liveness)
    rank = liveness.rank if liveness else int(os.environ.get("RANK", 0))
    if liveness and is_lost_contact(error):
        if liveness.lost_contact():
            liveness.explain("lost contact with another rank")
            leave(1)
        if stop.requested.is_set():  # while the model was loaded, another rank left first
            leave(stop.exit_code, liveness)
    if isinstance(error, MISTAKES if stop.at_once else TOLD):
        leave(report(error, liveness))
    text = f"{type(error).__name__}: {error}"
    if liveness:
        liveness.fail(text)
    if liveness and liveness.already_said(text, alike=True):
        _say(f"rank {rank} failed, too: {first_line(text)}")
    else:
        _say(f"rank {rank} failed:\n{''.join(traceback.format_exception(type(error), error, error.__traceback__))}")
    leave(1)


def report(error: Exception, liveness: Liveness | None, more: str = "") -> int:
    """Print an error message that other ranks may have, too; they print it only if it is another.

    Returns:
        1, the exit status.
    """
    _ignore_signals()
    text = f"{type(error).__name__}: {error}{more}"
    if liveness:
        liveness.fail(text)
    if not (liveness and liveness.already_said(text)):
        where = f"rank {liveness.rank}: " if liveness and liveness.rank else ""
        _say(f"awm-train: {where}{text}")
    return 1


def leave(status: object, liveness: Liveness | None = None) -> NoReturn:
    """End this process now, with 1 for a status that is no number.

    Threads that wait for a slow server, or communicators for dead ranks, do not keep it. A launcher answers the death
    of one rank with SIGTERM for others: that is no good end, and 0 becomes 1.
    """
    code = status if isinstance(status, int) else 1
    if liveness:
        if code == 0 and liveness.lost_contact(patience_s=0):
            liveness.explain()
            code = 1
        liveness.close()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def is_lost_contact(error: BaseException) -> bool:
    """Whether a collective operation failed because the other end is gone."""
    if not isinstance(error, RuntimeError):
        return False
    text = str(error).lower()
    return isinstance(error, dist.DistError) or any(words in text for words in PEER_IS_GONE)


def _ignore_signals() -> None:
    """The end is seconds away, and a launcher that sees the first rank go terminates the others."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
