"""One of several servers refuses: another one serves at once, and only if there is none the client waits."""

from __future__ import annotations

import json
import random
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch

from awm.rewards import connection, patience
from awm.rewards.errors import RewardError
from awm.rewards.patience import Patience
from awm.rewards.remote import RemoteReward
from awm.rewards.table import make_mixture
from reward_server.service import Service
from reward_server.wire import Limits
from tests.reward_server.serving import Gate, serve, settings
from tests.rewards.answers import Liar, ask, entry, images


@pytest.fixture(autouse=True)
def quick_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr(patience, "LONGEST_PAUSE_S", 0.05)


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds of every pause that began; none of them takes place."""
    begun: list[float] = []

    def sleep(self: Patience, until: float) -> bool:
        begun.append(until - time.monotonic())
        return True

    monkeypatch.setattr(Patience, "_sleep", sleep)
    return begun


@pytest.fixture
def first_on_ties(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(random, "random", lambda: 0.0)


@pytest.fixture(scope="module")
def healthy() -> Iterator[str]:
    with serve(Service(settings("fake"))) as url:
        yield url


class Refusing(Liar):
    """Gives prepared answers in turn, the last one again and again."""

    answers: Sequence[tuple[int, str | None, dict[str, str]]]  # status, code of a JSON error, headers
    requests = 0

    def do_POST(self) -> None:
        kind = type(self)
        status, code, headers = self.answers[min(kind.requests, len(self.answers) - 1)]
        kind.requests += 1
        if status == 200:
            super().do_POST()
            return
        self.rfile.read(int(self.headers["Content-Length"]))
        data = json.dumps({"error": {"code": code, "message": f"it is {code}"}}).encode() if code else b"<html>"
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


@contextmanager
def refusing(*answers: tuple[Any, ...]) -> Iterator[tuple[str, type[Refusing]]]:
    """URL and counter of a server that gives these answers: (status, code of a JSON error, headers)."""
    full = [(status, *rest, *(None, {})[len(rest) :]) for status, *rest in answers]
    handler = type("Prepared", (Refusing,), {"answers": full, "results": [entry(0, 0.5)]})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", handler
        server.shutdown()


def test_while_one_server_is_loading_the_other_serves_at_once(
    healthy: str, pauses: list[float], first_on_ties: None
) -> None:
    with serve(Service(settings("fake")), load=False) as loading:
        reward = RemoteReward([loading, healthy], "fake", max_images=1)
        for _ in range(3):
            assert ask(reward, images(*[0.2] * 4)).valid.all()
    assert not pauses


def test_while_one_server_is_overloaded_the_other_serves_at_once(
    healthy: str, pauses: list[float], first_on_ties: None, tmp_path: Path
) -> None:
    gate = Gate(tmp_path)
    full = settings("fake", options={"fake": gate.options}, limits=Limits(max_items=1), max_queued=1)
    with serve(Service(full)) as url:
        blocker = threading.Thread(target=ask, args=(RemoteReward([url], "fake"), images(0.2), ["wait"]))
        blocker.start()
        gate.wait_until_entered()
        try:
            rewards = ask(RemoteReward([url, healthy], "fake", max_retries=0), images(0.6))
        finally:
            gate.open()
            blocker.join()
    torch.testing.assert_close(rewards.total, torch.tensor([0.6]))
    assert not pauses


@pytest.mark.parametrize("answer", [(429,), (502,), (500,)])
def test_another_server_replaces_one_behind_a_failing_proxy(
    healthy: str, pauses: list[float], first_on_ties: None, answer: tuple[int]
) -> None:
    with refusing(answer) as (url, asked):
        reward = RemoteReward([url, healthy], "fake")
        for _ in range(5):
            assert ask(reward, images(0.2)).valid.all()
    assert asked.requests == 1 and not pauses  # from then on it is avoided


def test_a_server_that_does_not_answer_is_replaced_at_once(
    healthy: str, pauses: list[float], first_on_ties: None
) -> None:
    assert ask(RemoteReward(["http://127.0.0.1:9", healthy], "fake"), images(0.2)).valid.all()
    assert not pauses


def test_without_another_server_the_client_waits_and_holds_no_place(monkeypatch: pytest.MonkeyPatch) -> None:
    outstanding: list[int] = []
    with refusing((503, "not_ready", {"Retry-After": "7"})) as (url, _):
        reward = RemoteReward([url, url], "fake")

        def pause(self: Patience, at_least_s: float) -> bool:
            outstanding.append(sum(server.outstanding for server in reward.connection._servers))
            assert at_least_s == 7.0
            return False

        monkeypatch.setattr(Patience, "pause", pause)
        with pytest.raises(RewardError, match="it is not_ready"):
            ask(reward, images(0.2))
    assert outstanding == [0]


@pytest.mark.parametrize(("headers", "seconds"), [({}, 5.0), ({"Retry-After": "2"}, 5.0), ({"Retry-After": "60"}, 60)])
def test_a_refusing_server_is_avoided_as_long_as_it_asks_for(headers: dict[str, str], seconds: float) -> None:
    with refusing((503, "overloaded", headers)) as (url, _):
        reward = RemoteReward([url], "fake", server_wait_s=0.0)
        before = time.monotonic()
        with pytest.raises(RewardError, match="it is overloaded"):
            ask(reward, images(0.2))
        assert before <= reward.connection._servers[0].avoid_until - seconds <= time.monotonic()


def test_equally_busy_servers_are_taken_at_random() -> None:
    links = connection.Connection("fake", ["http://127.0.0.1:1", "http://127.0.0.1:2"], 1.0, "")
    urls = set()
    for _ in range(40):
        server = links._take()
        urls.add(server.url)
        links._give_back(server)
    assert len(urls) == 2


@pytest.mark.parametrize("code", ["overloaded", "not_ready"])
def test_the_server_s_own_503_takes_time_but_no_retries(code: str) -> None:
    with refusing(*[(503, code)] * 5, (200,)) as (url, _):
        assert ask(RemoteReward([url], "fake", max_retries=0), images(0.2)).total.tolist() == [0.5]


@pytest.mark.parametrize("status", [429, 503])
def test_a_proxy_s_refusals_use_up_the_retries(status: int) -> None:
    with refusing(*[(status,)] * 3, (200,)) as (url, asked):
        with pytest.raises(RewardError, match=f"HTTP {status}"):
            ask(RemoteReward([url], "fake", max_retries=2), images(0.2))
        assert asked.requests == 3


def test_a_watched_reward_waits_for_nobody(pauses: list[float]) -> None:
    with refusing((503, "overloaded")) as (url, asked):
        mixture = make_mixture({"jpeg_compressibility": 1.0, "fake": 0.0}, [url])
        rewards = ask(mixture, images(0.2))
    assert rewards.valid.all() and rewards.parts["fake"].isnan().all()
    assert asked.requests == 1 and not pauses


def test_one_chunk_s_failure_ends_the_waiting_of_the_others() -> None:
    started = time.monotonic()
    answers = [(503, "not_ready"), (503, "not_ready"), (500, "internal"), (503, "not_ready")]
    with refusing(*answers) as (url, _), pytest.raises(RewardError, match="HTTP 500: it is internal"):
        ask(RemoteReward([url], "fake", max_images=1, server_wait_s=40.0), images(*[0.2] * 6))
    assert time.monotonic() - started < 20  # instead of 40


def test_an_answer_that_cannot_be_unpacked_is_a_reward_error() -> None:
    class Garbled(Liar):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            data = b"no gzip at all"
            self.send_response(200)
            self.send_header("Content-Encoding", "gzip")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST

    with ThreadingHTTPServer(("127.0.0.1", 0), Garbled) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        reward = RemoteReward([f"http://127.0.0.1:{server.server_port}"], "fake", server_wait_s=0.0)
        for call in (reward.check, lambda: ask(reward, images(0.2))):
            with pytest.raises(RewardError, match="no answer"):
                call()
        server.shutdown()
