"""What any way of running the reward server owes its clients, as one function over a URL."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import numpy as np

from reward_server.codec import MSGPACK
from reward_server.images import WireImage, encode_image
from reward_server.scorers.base import ItemError, Outcome, Scores
from reward_server.wire import ScoreRequest, WireItem, decode_response, encode_request
from tests.reward_server.serving import settings, wait_for

TOKEN = "secret"
STAR = {"tag": "single_object", "include": [{"class": "star", "count": 1}]}
GOOD = Scores(0.2, {"twice": 0.4})
SETTINGS = settings("fake", "geneval", options={"fake": {"seconds": 0.05}}, max_queued=48)
"""Of the server under test."""


def item(number: int = 0, prompt: str = "", metadata: Mapping[str, Any] | None = None) -> WireItem:
    """A grey image that the fake scores 0.2."""
    image = encode_image(np.full((8, 8, 3), 51, dtype=np.uint8), "raw")
    return WireItem(number, image, prompt, metadata or {})


class Contract:
    """The promises, one method each.

    Args:
        url: of a server with ``SETTINGS`` and ``TOKEN``.
    """

    def __init__(self, url: str) -> None:
        self.url = url

    def check(self) -> None:
        """All of them, in order."""
        for name in vars(Contract):
            if name.startswith("promise_"):
                wait_for(lambda: httpx.get(self.url + "/readyz").status_code == 200)
                getattr(self, name)()

    def promise_a_good_batch_is_scored(self) -> None:
        assert self.outcomes(item(3), item(1)) == [GOOD, GOOD]

    def promise_junk_harms_nobody_else(self) -> None:
        junk = WireItem(1, WireImage("png", b"junk"), "", {})
        first, second = self.outcomes(item(0), junk)
        assert first == GOOD and code(second) == ("bad_image", False)

    def promise_bad_metadata_harms_nobody_else(self) -> None:
        items = [item(0, metadata=STAR), item(1, metadata={"tag": "stars"})]
        first, second = self.outcomes(*items, reward="geneval")
        assert isinstance(first, Scores) and code(second) == ("bad_metadata", False)

    def promise_a_crash_harms_nobody_else_and_the_worker_comes_back(self) -> None:
        first, second, third = self.outcomes(item(0), item(1, "crash"), item(2))
        assert first == third == GOOD and code(second) == ("worker_crashed", False)
        wait_for(lambda: httpx.get(self.url + "/readyz").status_code == 200)
        assert self.outcomes(item()) == [GOOD]

    def promise_a_kill_in_mid_batch_is_worth_another_try(self) -> None:
        first, second = self.outcomes(item(0, "kill"), item(1))
        assert code(first) == ("worker_killed", True) and second == GOOD

    def promise_overload_is_said_and_passes(self) -> None:
        items = [item(i) for i in range(16)]
        with ThreadPoolExecutor(24) as pool:
            replies = list(pool.map(lambda _: self.post(*items), range(24)))
        busy = [reply for reply in replies if reply.status_code == 503]
        assert busy and all(reply.json()["error"]["code"] == "overloaded" for reply in busy)
        assert all(int(reply.headers["Retry-After"]) > 0 for reply in busy)
        assert all(reply.status_code in (200, 503) for reply in replies)
        assert self.outcomes(item()) == [GOOD]

    def promise_a_wrong_key_is_refused(self) -> None:
        for path, method in (("/v1/score", "POST"), ("/info", "GET"), ("/metrics", "GET")):
            for headers in ({}, {"Authorization": "Bearer wrong"}):
                assert httpx.request(method, self.url + path, headers=headers).status_code == 401

    def promise_no_items_and_unknown_rewards_are_malformed(self) -> None:
        assert self.post().status_code == 422
        assert self.post(item(), reward="nothing").json()["error"]["known"] == ["fake", "geneval"]

    def promise_the_same_request_twice_has_the_same_answer(self) -> None:
        first, second = (decode_response(self.post(item(), request_id="again").content) for _ in range(2))
        assert first.results == second.results

    def promise_a_deadline_is_kept(self) -> None:
        started = time.monotonic()
        reply = self.post(item(prompt="hang"), **{"X-Deadline-S": "0.5"})
        (result,) = decode_response(reply.content).results
        assert code(result.rewards["fake"]) == ("deadline", True)
        assert time.monotonic() - started < 30

    def outcomes(self, *items: WireItem, reward: str = "fake") -> Sequence[Outcome]:
        """Outcomes in the order of the items."""
        reply = self.post(*items, reward=reward)
        assert reply.status_code == 200, reply.text
        results = decode_response(reply.content).results
        assert [result.id for result in results] == [one.id for one in items]
        return [result.rewards[reward] for result in results]

    def post(self, *items: WireItem, reward: str = "fake", request_id: str = "", **headers: str) -> httpx.Response:
        """One request."""
        headers = {"Content-Type": MSGPACK, "Authorization": f"Bearer {TOKEN}"} | headers
        body = encode_request(ScoreRequest((reward,), items, request_id))
        return httpx.post(self.url + "/v1/score", content=body, headers=headers, timeout=60)


def code(outcome: Outcome) -> tuple[str, bool]:
    """Code of an error, and whether it is worth another try."""
    assert isinstance(outcome, ItemError), outcome
    return outcome.code, outcome.retryable
