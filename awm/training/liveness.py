"""A process of the job that dies is noticed by all others at once, wherever it ran, whatever they are waiting for.

Every rank keeps a connection to the main one. The kernel closes it when a process dies, however that happens, and the
main rank tells the others. Nothing is concluded from silence: a slow reward server or a long computation is no death.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import selectors
import signal
import socket
import sys
import threading
import time

from awm.training.distributed import Distributed
from awm.training.links import Link, Message, connect, listen, own_addresses
from awm.training.stopping import StopRequest

GRACE_S = 15.0  # for a rank's own errors to come out before it is ended
ENDING_S = 45.0  # for one that ends with an error itself, and may be writing its report
PRINT_AFTER_S = 1.0  # the same mistake on all ranks is printed by the mistake itself
POLL_S = 0.5
KILLED = "ended without a word: killed (out of memory?), or its machine is gone"


class Liveness:
    """Watches the other ranks, and the launcher, in a thread.

    When a rank has died or failed, the others print which one and why, and exit with status 1 within ``GRACE_S``.
    A signal that reaches one rank is passed on to all. When torchrun is killed, its ranks stop as after SIGTERM.

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
        self._lost_at = 0.0
        self._launcher = os.getppid() if "TORCHELASTIC_RUN_ID" in os.environ else 0
        self._links: list[Link] = []
        self._selector = selectors.DefaultSelector()
        self._nonce = ""
        if distributed.world_size > 1:
            self._meet(distributed)
        if distributed.world_size > 1 or self._launcher:
            threading.Thread(target=self._watch, name="liveness", daemon=True).start()

    def fail(self, text: str) -> None:
        """Tell all ranks that this one ends with an error."""
        self._ending = True
        self._tell(self._message("failed", text=text))

    def already_said(self, text: str, patience_s: float = 3.0) -> bool:
        """Whether a rank with a lower number fails with the same words; waits a little for that."""
        if self.rank == 0 or not self._links:
            return False
        with self._heard:
            return self._heard.wait_for(
                lambda: any(t == text for r, t in self._failures.items() if r < self.rank), patience_s
            )

    def lost_contact(self, patience_s: float = 5.0) -> str:
        """Which rank is gone, for one whose collective has failed; "" if none is, or it left because of a signal.

        Waits a little for that to be known.
        """
        with self._heard:
            self._heard.wait_for(lambda: bool(self.lost) or self._stop.requested.is_set(), patience_s)
            self._printed = self._ending = True
            return self.lost

    def close(self) -> None:
        """Leave in peace. Call it when no other rank needs this one any more."""
        self._ending = True
        self._relay_signal()
        self._tell(self._message("bye"))

    def _meet(self, distributed: Distributed) -> None:
        local = int(os.environ.get("LOCAL_WORLD_SIZE", distributed.world_size)) == distributed.world_size
        offer = None
        if distributed.is_main:
            listener = listen(this_node_only=local)
            self._selector.register(listener, selectors.EVENT_READ)
            port = listener.getsockname()[1]
            offer = own_addresses(this_node_only=local), port, secrets.token_hex(16), socket.gethostname()
        addresses, port, self._nonce, host = distributed.broadcast_object(offer)
        if not distributed.is_main and (connection := connect(addresses, port)) is not None:
            self._add(Link(connection, rank=0, host=host))
            self._links[0].send(self._message("hello", nonce=self._nonce))
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

    def _read(self) -> None:
        for key, _ in self._selector.select(POLL_S):
            source = key.fileobj
            if isinstance(source, Link):
                messages = source.receive()
                for message in messages or []:
                    self._hear(source, message)
                if messages is None:
                    self._hung_up(source)
            elif isinstance(source, socket.socket):
                with contextlib.suppress(OSError):
                    self._add(Link(source.accept()[0]))

    def _add(self, link: Link) -> None:
        self._links.append(link)
        self._selector.register(link, selectors.EVENT_READ)

    def _hear(self, link: Link, message: Message) -> None:
        kind = message.get("kind")
        if link.rank < 0:  # a stranger, until it knows the word
            if kind == "hello" and secrets.compare_digest(str(message.get("nonce")), self._nonce):
                link.rank, link.host = message["rank"], message["host"]
            return
        if kind == "bye":
            link.left = True
            return
        self._tell(message, but=link)
        if kind == "failed":
            link.left |= message["rank"] == link.rank
            self._lose(message["rank"], message["host"], message["text"])
        elif kind == "signal" and self._stop.received is None:
            self._relayed = True
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
        if waited > PRINT_AFTER_S and not (self._printed or self._ending):
            self._printed = True
            print(f"rank {self.rank}: ends with the job; {first_line(self.lost)}", file=sys.stderr, flush=True)
        if waited > (ENDING_S if self._ending else GRACE_S):
            os._exit(1)  # the main thread hangs in a collective with the dead

    def _relay_signal(self) -> None:
        number = self._stop.received
        if number is not None and not self._relayed:
            self._relayed = True
            self._tell(self._message("signal", number=number))

    def _message(self, kind: str, **more: str | int) -> Message:
        return {"kind": kind, "rank": self.rank, "host": socket.gethostname(), **more}

    def _tell(self, message: Message, but: Link | None = None) -> None:
        for link in list(self._links):
            if link is not but and link.rank >= 0:
                link.send(message)


def first_line(text: str, longest: int = 300) -> str:
    """The beginning of an error."""
    line = text.strip().partition("\n")[0]
    return line if len(line) <= longest else line[:longest] + " ..."
