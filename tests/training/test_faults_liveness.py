"""What the watch over the ranks believes: whom it takes for a rank, and what it hears of one in a collective."""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from awm.training import links, liveness
from awm.training.distributed import Distributed
from awm.training.links import Link, connect, own_addresses, welcome
from awm.training.liveness import Liveness
from awm.training.stopping import StopRequest
from tests.training.ranks import run_ranks

HELLO = {"kind": "hello", "rank": 1, "host": "here", "nonce": "word"}
STRANGERS = (
    b'{"kind": "hello", "nonce": "\xc3\xa9", "rank": 7, "host": "h"}\n',
    b'{"kind": "hello", "nonce": "\\ud800", "rank": 7, "host": "h"}\n',
    b"[" * 900 + b"\n",
    b"[" * 60_000 + b"\n",
    b"GET / HTTP/1.1\r\n\r\n",
)


def watched() -> dict[str, object]:
    """What happens to two ranks that strangers talk to, one of which is sent a signal and then fails at length."""
    ports: list[int] = []

    def listen(*, this_node_only: bool) -> socket.socket:
        listener = links.listen(this_node_only=this_node_only)
        ports.append(listener.getsockname()[1])
        return listener

    liveness.listen = listen
    stop = StopRequest()
    stop.install()
    stop.distributed = distributed = Distributed()
    watch = Liveness(distributed, stop)
    if distributed.is_main:
        for message in STRANGERS:
            with socket.create_connection(("127.0.0.1", ports[0])) as stranger:
                stranger.sendall(message)
                time.sleep(0.1)
        early = stop.requested.is_set()
    distributed.any(False)
    if distributed.is_main:
        heard = not early and stop.requested.wait(20)
    else:  # while it is in the next collective
        threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGTERM)).start()
    distributed.any(False)
    if not distributed.is_main:
        watch.fail("missing keys: " + "\U0001f600" * 100_000)
    lost = watch.lost_contact(20)
    return {"heard": distributed.is_main and heard, "lost": lost}


def test_strangers_do_not_end_the_watch_a_blocked_rank_passes_its_signal_on_and_long_errors_arrive():
    result = run_ranks(2, watched)
    assert result["heard"]
    assert result["lost"].startswith("rank 1 on ") and "missing keys" in result["lost"]


@pytest.fixture
def other_program() -> Iterator[socket.socket]:
    """A listener, on another address, that is no rank."""
    with socket.create_server(("127.0.0.2", 0)) as listener:
        yield listener


def test_only_one_that_answers_with_the_word_is_the_main_rank(other_program: socket.socket):
    port = other_program.getsockname()[1]
    heard: list[list[str]] = []

    def refuse() -> None:
        with other_program.accept()[0] as connection, connection.makefile("rb") as lines:
            first = lines.readline()
            connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            heard.append([json.loads(line)["kind"] for line in (first, lines.readline())])

    with socket.create_server(("127.0.0.1", port)) as main:
        refusing = threading.Thread(target=refuse)
        refusing.start()

        def answer() -> None:
            link = Link(main.accept()[0])
            assert link.receive() == [HELLO]
            link.send(welcome("word"))
            link.send({"kind": "bye"})
            link.close()

        answering = threading.Thread(target=answer)
        answering.start()
        connection = connect(["127.0.0.2", "127.0.0.1"], port, HELLO)
        refusing.join()
        answering.join()
    assert connection is not None and connection.getpeername()[0] == "127.0.0.1"
    assert Link(connection, rank=0).receive() == [{"kind": "bye"}]  # what follows the answer is not lost
    connection.close()
    assert heard == [["hello", "bye"]]


def test_addresses_that_mean_every_machine_itself_are_not_offered_to_others(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MASTER_ADDR", "localhost")
    monkeypatch.setattr(socket, "getfqdn", lambda: "localhost.localdomain")
    monkeypatch.setattr(socket, "gethostname", lambda: "node0")
    assert own_addresses(this_node_only=False) == ["node0"]
