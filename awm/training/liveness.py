"""A process of the job that dies is noticed by all others at once, wherever it ran, whatever they are waiting for.

Every rank keeps a connection to the main one. The kernel closes it when a process dies, however that happens, and the
main rank tells the others. A slow reward server or a long computation is no death; only a machine whose kernel does
not answer for two minutes (``links.KEEPALIVE``) is taken for gone.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
import secrets
import selectors
import signal
import socket
import sys
import threading
import time
from functools import partial

from awm.training.distributed import Distributed
from awm.training.links import Link, Message, connect, listen, own_addresses, welcome
from awm.training.stopping import SAME_REQUEST_S, SIGNALS, StopRequest, signal_numbers

GRACE_S = 15.0  # for a rank's own errors to come out before it is ended
ENDING_S = 45.0  # for one that ends with an error itself, and may be writing its report
PRINT_AFTER_S = 1.0  # the same mistake on all ranks is printed by the mistake itself
AFTER_SIGNAL_S = 1.0  # a death and the launcher's SIGTERM that answers it arrive in any order
POLL_S = 0.5
LONGEST_TEXT = 8000  # characters of an error
VARYING = re.compile(r"0x[0-9a-f]+|[\d.]+( [KMGT]?i?B)?")  # CUDA's errors name the device, the process and sizes
KILLED = "ended without a word: killed (out of memory?), or its machine is gone"


class Liveness:
    """Watches the other ranks, and the launcher, in a thread.

    When a rank has died or failed, the others print which one and why, and exit with status 1 within ``GRACE_S``.
    A signal that reaches one rank is passed on to all, also while that rank is in a collective; a second Ctrl-C ends it
    there, and so does the first when there is nothing to save, after ``GRACE_S``. When torchrun is killed, its ranks
    stop as after SIGTERM.

    Args:
        distributed: the ranks. Construction is a collective.
        stop: which signals were received.

    Attributes:
        lost: which rank is gone and why; "" while all are there.
    """

    def __init__(self, distributed: Distributed, stop: StopRequest) -> None:
        self.rank, self.lost = distributed.rank, ""
        self._stop = stop
        self._heard = threading.Condition()
        self._failures: dict[int, str] = {}
        self._ending = self._relayed = self._printed = False
        self._lost_at = self._signalled_at = self._asked_at = math.inf
        self._relays = 0
        self._launcher = os.getppid() if "TORCHELASTIC_RUN_ID" in os.environ else 0
        self._links: list[Link] = []
        self._selector = selectors.DefaultSelector()
        self._nonce = ""
        if distributed.world_size > 1 or self._launcher:
            numbers = signal_numbers()
            self._selector.register(numbers, selectors.EVENT_READ, partial(self._signals, numbers))
            self._start(distributed)

    def fail(self, text: str) -> None:
        """Tell all ranks that this one ends with an error."""
        self._ending = True
        self._tell(self._message("failed", text=text[:LONGEST_TEXT]))

    def already_said(self, text: str, *, alike: bool = False, patience_s: float = 5.0) -> bool:
        """Whether a rank with a lower number fails with the same words; waits a little for that.

        Args:
            text: of this rank's failure.
            alike: numbers need not be the same.
            patience_s: how long to wait.
        """
        if self.rank == 0 or not self._links:
            return False
        key = _without_numbers if alike else str
        mine = key(text[:LONGEST_TEXT])
        with self._heard:
            return self._heard.wait_for(
                lambda: any(key(t) == mine for r, t in self._failures.items() if r < self.rank), patience_s
            )

    def lost_contact(self, patience_s: float = 5.0) -> str:
        """Which rank is gone, for one that ends; "" if none is, or it left because of a signal.

        Waits a little for that to be known.
        """
        with self._heard:
            self._heard.wait_for(lambda: bool(self.lost) or self._stop.requested.is_set(), patience_s)
            if self._links and self._stop.requested.is_set():
                self._heard.wait_for(lambda: bool(self.lost), AFTER_SIGNAL_S)
            self._ending = True
            return self.lost

    def explain(self, what: str = "ends with the job") -> None:
        """Print, once, what this rank does now that another is lost."""
        with self._heard:
            printed, self._printed = self._printed, True
        if not printed:
            print(f"rank {self.rank}: {what}; {first_line(self.lost)}", file=sys.stderr, flush=True)

    def close(self) -> None:
        """Leave in peace. Call it when no other rank needs this one any more."""
        self._ending = True
        self._relay_signal()
        self._tell(self._message("bye"))

    def _start(self, distributed: Distributed) -> None:
        watcher = threading.Thread(target=self._watch, name="liveness", daemon=True)
        local = int(os.environ.get("LOCAL_WORLD_SIZE", distributed.world_size)) == distributed.world_size
        offer = None
        if distributed.is_main:
            if distributed.world_size > 1:
                offer = self._listen(this_node_only=local)
            watcher.start()  # it answers those who come
        if distributed.world_size > 1:
            self._meet(distributed, offer, this_node_only=local)
        if not distributed.is_main:
            watcher.start()

    def _listen(self, *, this_node_only: bool) -> tuple[list[str], int, str, str]:
        """Where the others find this rank, the word they say, and its machine's name."""
        listener, self._nonce = listen(this_node_only=this_node_only), secrets.token_hex(16)
        self._selector.register(listener, selectors.EVENT_READ, partial(self._accept, listener))
        port = listener.getsockname()[1]
        return own_addresses(this_node_only=this_node_only), port, self._nonce, socket.gethostname()

    def _meet(
        self, distributed: Distributed, offer: tuple[list[str], int, str, str] | None, *, this_node_only: bool
    ) -> None:
        addresses, port, nonce, host = distributed.broadcast_object(offer)
        if not this_node_only:  # a name that has just worked here, and may mean another machine there
            addresses = list(dict.fromkeys((os.environ["MASTER_ADDR"], *addresses)))
        if not distributed.is_main:
            connection = connect(addresses, port, self._message("hello", nonce=nonce))
            if connection is not None:
                self._add(Link(connection, rank=0, host=host))
        missing = distributed.gather_objects([] if distributed.is_main or self._links else [self.rank])
        if missing and distributed.is_main:
            print(
                f"awm-train: ranks {missing} cannot reach rank 0 at {', '.join(addresses)}, port {port} (a firewall?). "
                f"The run goes on; but if a process on their machines dies, the others may notice it only after "
                f"the time-out of their next collective operation.",
                file=sys.stderr,
            )

    def _watch(self) -> None:
        while True:
            self._read()
            self._relay_signal()
            if self._launcher and os.getppid() != self._launcher:
                self._launcher = 0
                print(f"rank {self.rank}: the launcher is gone; stopping.", file=sys.stderr, flush=True)
                self._stop.relay(signal.SIGTERM)
            if self.lost:
                self._end_soon()
            elif self._stop.at_once and time.monotonic() - self._signalled_at > GRACE_S:
                self.close()
                os._exit(self._stop.exit_code)  # the main thread hangs in a collective with those who have left

    def _read(self) -> None:
        for key, _ in self._selector.select(POLL_S):
            key.data()

    def _accept(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            self._add(Link(listener.accept()[0]))

    def _add(self, link: Link) -> None:
        self._links.append(link)
        self._selector.register(link, selectors.EVENT_READ, partial(self._serve, link))

    def _serve(self, link: Link) -> None:
        try:
            messages = link.receive()
            for message in messages or []:
                self._hear(link, message)
        except Exception:  # whatever a stranger says ends its own link and not the watch
            messages = None
        if messages is None:
            self._hung_up(link)

    def _signals(self, numbers: int) -> None:
        for number in os.read(numbers, 100):
            if number not in SIGNALS:
                continue
            if self._relays:  # this thread's own doing
                self._relays -= 1
            else:
                self._signalled(number)

    def _signalled(self, number: int) -> None:
        now = time.monotonic()
        if number == signal.SIGINT and now - self._asked_at > SAME_REQUEST_S:
            time.sleep(POLL_S)  # the handler ends the process, if the main thread is in Python
            os._exit(128 + number)
        self._asked_at = min(self._asked_at, now)
        if not self._relayed:
            self._stop.note(number)
            self._relay_signal(number)

    def _hear(self, link: Link, message: Message) -> None:
        kind = message.get("kind")
        if link.rank < 0:  # a stranger, until it knows the word
            if kind == "hello" and secrets.compare_digest(str(message.get("nonce")).encode(), self._nonce.encode()):
                link.rank, link.host = message["rank"], message["host"]
                link.send(welcome(self._nonce))
            return
        if kind == "bye":
            link.left = True
            return
        if kind == "signal" and self.lost:  # the launcher's answer to the loss
            return
        self._tell(message, but=link)
        if kind == "failed":
            link.left |= message["rank"] == link.rank
            self._lose(message["rank"], message["host"], message["text"])
        elif kind == "signal" and self._stop.received is None and not self._relayed:
            self._relayed, self._signalled_at = True, time.monotonic()
            self._relays += 1
            self._stop.relay(message["number"])
            with self._heard:
                self._heard.notify_all()

    def _hung_up(self, link: Link) -> None:
        self._links.remove(link)
        self._selector.unregister(link)
        link.close()
        if link.rank >= 0 and not link.left:
            self._tell(self._message("failed", text=KILLED) | {"rank": link.rank, "host": link.host})
            self._lose(link.rank, link.host, KILLED)

    def _lose(self, rank: int, host: str, text: str) -> None:
        with self._heard:
            self._failures.setdefault(rank, text)
            if not self.lost:
                self.lost, self._lost_at = f"rank {rank} on {host}: {text}", time.monotonic()
                self._stop.silenced.set()
            self._heard.notify_all()

    def _end_soon(self) -> None:
        waited = time.monotonic() - self._lost_at
        if waited > PRINT_AFTER_S and not self._ending:
            self.explain()
        if waited > (ENDING_S if self._ending else GRACE_S):
            os._exit(1)  # the main thread hangs in a collective with the dead

    def _relay_signal(self, number: int | None = None) -> None:
        number = number or self._stop.received
        if number is not None and not self._relayed:
            self._relayed, self._signalled_at = True, time.monotonic()
            self._tell(self._message("signal", number=number))

    def _message(self, kind: str, **more: str | int) -> Message:
        return {"kind": kind, "rank": self.rank, "host": socket.gethostname(), **more}

    def _tell(self, message: Message, but: Link | None = None) -> None:
        for link in list(self._links):
            if link is not but and link.rank >= 0:
                link.send(message)


def _without_numbers(text: str) -> str:
    return VARYING.sub("#", text)


def first_line(text: str, longest: int = 300) -> str:
    """The beginning of an error."""
    line = text.strip().partition("\n")[0]
    return line if len(line) <= longest else line[:longest] + " ..."
