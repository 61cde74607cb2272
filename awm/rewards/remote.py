"""A reward computed by a reward server: images out, numbers in, over HTTP."""

from __future__ import annotations

import ipaddress
import logging
import threading
import time
import uuid
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import httpx
import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from awm.registry import nearest
from awm.rewards.collect import ErrorLog, check_lengths, representable, run_all, split_name, to_pixels, to_rewards
from awm.rewards.connection import Connection
from awm.rewards.errors import RewardError
from awm.rewards.patience import Patience
from awm.types import Rewards
from reward_server.images import encode_image
from reward_server.scorers.base import ItemError, Outcome
from reward_server.wire import ScoreRequest, ScoreResponse, WireItem

log = logging.getLogger(__name__)

REQUESTS_PER_SERVER = 2  # one being scored, one on its way


class RemoteReward:
    """One number of one scorer of a reward server.

    Args:
        urls: one or several servers with equal scorers.
        name: "geneval" takes the scorer's score, "geneval.strict" its metric "strict".
        timeout_s: longest wait for one answer.
        max_retries: further attempts when a proxy before a server fails or a server calls an item's failure temporary.
        token: bearer token, if the server asks for one.
        server_wait_s: how long a call waits for servers that went away (a restart) or are overloaded; 0: it only
            asks each server once. Together with ``timeout_s`` this bounds the call; keep it well below the time-out
            of collective operations.
        max_images: most images in one request.
        max_bytes: most bytes of images in one request, counted unencoded.
        image_format: raw, png, jpeg or webp; None takes raw for servers on this machine and png for others.
        allow_changed_scorer: go on if a server's versions change during the run.
        stop: once set, a call no longer waits for a server that went away, but raises RewardError at once.
    """

    def __init__(
        self,
        urls: Sequence[str],
        name: str,
        *,
        timeout_s: float = 120.0,
        max_retries: int = 8,
        token: str = "",
        server_wait_s: float = 300.0,
        max_images: int = 64,
        max_bytes: int = 32 << 20,
        image_format: str | None = None,
        allow_changed_scorer: bool = False,
        stop: threading.Event | None = None,
    ) -> None:
        self.name = name
        self.scorer, self.metric = split_name(name)
        self.connection = Connection(name, urls, timeout_s, token)
        self.source: Hashable = ("server", tuple(self.connection.urls), self.scorer)
        """Rewards with an equal source share one request."""
        self._max_retries = max_retries
        self._server_wait_s = server_wait_s
        self._max_images = max_images
        self._max_bytes = max_bytes
        self._format = image_format or ("raw" if all(map(_is_local, urls)) else "png")
        self._allow_changed_scorer = allow_changed_scorer
        self._stop = stop or threading.Event()
        self._fingerprint: str | None = None
        self._lock = threading.Lock()
        self._errors = ErrorLog(name)

    def __call__(self, images: Tensor, text: Sequence[str], metadata: Sequence[Mapping[str, Any]]) -> Rewards:
        """Score images [B, 3, H, W] in [0, 1]; an image the server could not score is NaN and not valid."""
        check_lengths(images, text, metadata)
        pixels = to_pixels(images)
        give_up = time.monotonic() + self._server_wait_s + self.connection.timeout_s
        ended = threading.Event()  # the others need not wait for a server when one chunk has failed for good

        def score(chunk: slice) -> list[Outcome]:
            patience = Patience(give_up, self._max_retries, self._server_wait_s, (ended, self._stop))
            return self._score(pixels[chunk], text[chunk], metadata[chunk], patience)

        num_threads = REQUESTS_PER_SERVER * len(self.connection.urls)
        parts = run_all(score, self._chunks(pixels), num_threads, ended)
        outcomes = representable([outcome for part in parts for outcome in part])
        self._errors.note(outcomes, text)
        return to_rewards(self.name, self.connection.urls[0], outcomes)

    @property
    def fingerprint(self) -> str:
        """Versions of the scorer; empty before the first answer."""
        return self._fingerprint or ""

    def check(self) -> None:
        """Raise RewardError unless every server is there and has this reward; wait for one that is loading."""
        for url in self.connection.urls:
            self._wait_until_ready(url)
            reply = self.connection.get(url, "/info")
            if reply.status_code != 200:
                raise self.connection.refused(url, reply)
            self._check_info(url, _described_rewards(self.name, url, reply))

    def _wait_until_ready(self, url: str) -> None:
        patience = Patience(time.monotonic() + self._server_wait_s, self._max_retries, stops=(self._stop,))
        while (reply := self.connection.get(url, "/readyz")).status_code == 503:
            if not patience.pause():
                raise RewardError(
                    self.name,
                    url,
                    f"is not ready after reward_server.server_wait_s={self._server_wait_s:g} s: {reply.text}",
                )
        if reply.status_code != 200:
            raise RewardError(self.name, url, f"answers /readyz with {reply.status_code}; is this a reward server?")

    def _check_info(self, url: str, rewards: Mapping[str, Any]) -> None:
        if self.scorer not in rewards:
            known = sorted(rewards)
            raise RewardError(
                self.name,
                url,
                f"this server has no scorer {self.scorer!r}; it has {', '.join(known)}."
                f"{nearest(self.scorer, known)} Start it with `--scorer {self.scorer}`, correct "
                f"reward_fn, or name the server that has it in reward_server.urls_of.{self.scorer}.",
            )
        metrics = rewards[self.scorer]["metrics"]
        if self.metric and self.metric not in metrics:
            choices = ", ".join([self.scorer, *(f"{self.scorer}.{metric}" for metric in metrics)])
            raise RewardError(
                self.name, url, f"no such number; choose one of {choices}.{nearest(self.metric, metrics)}"
            )
        self._check_fingerprint(url, rewards[self.scorer]["fingerprint"])

    def _check_fingerprint(self, url: str, fingerprint: str) -> None:
        with self._lock:
            known = self._fingerprint or fingerprint
            if self._fingerprint is None or self._allow_changed_scorer:
                self._fingerprint = fingerprint
        if known == fingerprint:
            return
        change = f"its versions changed from {known} to {fingerprint}, so scores before and after are not comparable"
        if not self._allow_changed_scorer:
            raise RewardError(
                self.name, url, f"{change}. Run equal servers, or set reward_server.allow_changed_scorer=True."
            )
        log.warning("reward %s (%s): %s", self.name, url, change)

    def _chunks(self, pixels: NDArray[np.uint8]) -> list[slice]:
        count = len(pixels)
        size = max(1, min(self._max_images, self._max_bytes // max(1, pixels[:1].nbytes)))
        return [slice(start, min(start + size, count)) for start in range(0, count, size)]

    def _score(
        self,
        pixels: NDArray[np.uint8],
        text: Sequence[str],
        metadata: Sequence[Mapping[str, Any]],
        patience: Patience,
    ) -> list[Outcome]:
        """Outcomes of one request's worth of images; items that failed for now are sent again."""
        images = [encode_image(image, self._format) for image in pixels]
        items = [WireItem(i, *rest) for i, rest in enumerate(zip(images, text, metadata, strict=True))]
        outcomes: dict[int, Outcome] = {}
        while True:
            request = ScoreRequest((self.scorer,), tuple(items), uuid.uuid4().hex)
            response = self.connection.score(request, patience)
            outcomes.update(self._unpack(request, response))
            items = [item for item in items if _may_succeed_later(outcomes[item.id])]
            patience.retries -= bool(items)
            if not items or patience.retries < 0 or not patience.pause():
                return [outcomes[i] for i in range(len(pixels))]

    def _unpack(self, request: ScoreRequest, response: ScoreResponse) -> dict[int, Outcome]:
        url = ", ".join(self.connection.urls)
        asked, got = [item.id for item in request.items], [result.id for result in response.results]
        if sorted(asked) != sorted(got):
            raise RewardError(self.name, url, f"asked for {len(asked)} images, got {len(got)} results with other ids")
        if any(self.scorer not in result.rewards for result in response.results):
            raise RewardError(self.name, url, f"a result lacks the reward {self.scorer!r}")
        self._check_fingerprint(url, response.fingerprints.get(self.scorer, ""))
        return {result.id: result.rewards[self.scorer] for result in response.results}


def _described_rewards(name: str, url: str, reply: httpx.Response) -> Mapping[str, Any]:
    """What a server says about its rewards: name -> metrics and fingerprint."""
    try:
        rewards: Mapping[str, Any] = {
            scorer: {"metrics": list(about["metrics"]), "fingerprint": str(about["fingerprint"])}
            for scorer, about in reply.json()["rewards"].items()
        }
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise RewardError(name, url, "answers /info, but not as a reward server does; is it one?") from error
    return rewards


def _may_succeed_later(outcome: Outcome) -> bool:
    return isinstance(outcome, ItemError) and outcome.retryable


def _is_local(url: str) -> bool:
    host = httpx.URL(url).host
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
