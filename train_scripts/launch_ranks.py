"""``accelerate launch`` for the ranks of one node, with their exit status and without cutting their farewell short.

    python train_scripts/launch_ranks.py --config_file train_scripts/accelerate/multi_gpu.yaml ... -m awm.train ...

torchrun, which Accelerate runs, answers SIGTERM by killing ranks that are still saving after 30 seconds, and ends with
1 whatever they said. Here SIGTERM and SIGINT reach every rank once, as SIGTERM, and nothing more happens: the ranks
save and end, and this process ends with them. Its status is 0, or that of the rank that failed first (128 + the number
of the signal that killed it). A signal before any rank was started ends it with 0, since nothing is lost, and one
between two starts with 143, since ranks have died.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import subprocess
import sys
import threading
import time
from argparse import Namespace
from collections.abc import Callable
from functools import partial
from types import FrameType

import psutil

STOPPED_BETWEEN_STARTS = 128 + signal.SIGTERM
LOOK_S = 0.2
PR_SET_PDEATHSIG = 1  # of <linux/prctl.h>


def relay_signals() -> None:
    """Pass the first SIGTERM or SIGINT on to the ranks, and to those that torchrun starts again after it.

    A thread does it, because a Python signal handler would wait for torchrun, which can be waiting for other nodes.
    """
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    signal.set_wakeup_fd(writing)  # gets the number of every signal that has a handler in Python
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, take_note)
    threading.Thread(target=_relay, args=(reading,), daemon=True).start()


def take_note(signum: int, frame: FrameType | None) -> None:
    """Signal handler: the thread knows already."""


def _relay(reading: int) -> None:
    started = False
    while not (started or select.select([reading], [], [], LOOK_S)[0]):
        started = bool(psutil.Process().children())
    os.read(reading, 1)
    if not psutil.Process().children():
        os._exit(STOPPED_BETWEEN_STARTS if started else 0)
    told: set[int] = set()
    while True:
        for child in psutil.Process().children():
            if child.pid not in told:
                told.add(child.pid)
                with contextlib.suppress(psutil.NoSuchProcess):
                    child.send_signal(signal.SIGTERM)
        time.sleep(LOOK_S)


def run_afresh(run: Callable[[Namespace], None], arguments: Namespace) -> None:
    """Torchrun whose ranks, when they are started again, meet in a new store.

    By default they meet in the one they had, which still holds the addresses of the ranks that died.
    """
    if arguments.max_restarts:
        os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
        arguments.standalone = arguments.nnodes in ("1", "1:1")  # else launch.sh chose c10d
    run(arguments)


def main() -> None:
    """Entry point."""
    relay_signals()
    # The ranks save and end, too, if launch.sh is killed.
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    # Imported with the handlers in place, because it takes seconds.
    import torch.distributed.run as torchrun
    from accelerate.commands.launch import main as accelerate_launch
    from torch.distributed.elastic.multiprocessing import api
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    assert hasattr(api, "_terminate_process_handler"), "torchrun's signal handler has another name in this torch"
    api._terminate_process_handler = take_note  # torchrun installs what has this name whenever it starts ranks
    torchrun.run = partial(run_afresh, torchrun.run)
    try:
        accelerate_launch()
    except ChildFailedError as error:
        for rank, failure in sorted(error.failures.items()):
            print(f"rank {rank} (process {failure.pid}) ended with {in_words(failure.exitcode)}", file=sys.stderr)
        sys.exit(exit_status(error.get_first_failure()[1].exitcode))
    except subprocess.CalledProcessError as error:  # one process without torchrun
        print(f"the trainer ended with {in_words(error.returncode)}", file=sys.stderr)
        sys.exit(exit_status(error.returncode))


def exit_status(code: int) -> int:
    """As a shell gives it: 128 + signal for a process that a signal killed."""
    return 128 - code if code < 0 else code


def in_words(code: int) -> str:
    """For people."""
    return signal.Signals(-code).name if code < 0 else f"status {code}"


if __name__ == "__main__":
    main()
