"""HTTP to one or several equal reward servers: who is asked, what is tried again, and how long.

* Not reachable, or still loading its scorers (a restart): waited for, up to ``server_wait_s``.
* Overload (429, 502-504), and a 5xx that is not in the server's own words but those of a proxy before it: tried
  again ``max_retries`` times, no sooner than Retry-After, with jittered back-off.
* Any other error status: the request or the server is wrong; trying again would only hide it.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx

from awm.rewards.errors import RewardError
from reward_server.codec import MSGPACK, WireError
from reward_server.wire import ScoreRequest, ScoreResponse, decode_response, encode_request

CONNECT_TIMEOUT_S = 10.0
STATUS_TIMEOUT_S = 30.0  # of /readyz and /info; a busy machine may be slow even at that
SERVER_SHARE = 0.9  # of the time-out: the server must give up first, so that its answer says why
FIRST_PAUSE_S = 0.25
LONGEST_PAUSE_S = 8.0
OVERLOAD = (429, 502, 503, 504)
AVOID_S = 5.0  # seconds in which the others go first after a server did not answer


@dataclass(slots=True)
class _Server:
    url: str
    outstanding: int = 0
    avoid_until: float = 0.0  # value of time.monotonic()


@dataclass(slots=True)
class Patience:
    """How much waiting one call may still do.

    Attributes:
        give_up: value of time.monotonic() after which nothing is tried again.
        retries: further attempts at an overloaded server.
        stop: once set, nothing is waited for any more.
        pauses: how many there have been.
    """

    give_up: float
    retries: int
    stop: threading.Event = field(default_factory=threading.Event)
    pauses: int = field(default=0)

    def pause(self, at_least_s: float = 0.0) -> bool:
        """Wait, longer each time and never in step with other clients; False if there is no time left, or no wish."""
        longest = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2**self.pauses)
        seconds = at_least_s + random.uniform(0.5, 1.0) * longest
        if time.monotonic() + seconds > self.give_up:
            return False
        self.pauses += 1
        return not self.stop.wait(seconds)


class Connection:
    """A pool of connections to servers that give equal scores. Thread-safe.

    Args:
        name: the reward's name, for errors.
        urls: of the servers; each request goes to the one with the fewest unanswered ones.
        timeout_s: longest wait for one answer.
        token: bearer token.
    """

    def __init__(self, name: str, urls: Sequence[str], timeout_s: float, token: str) -> None:
        if not urls:
            raise ValueError("no reward server is given; set reward_server.urls")
        self.name = name
        self.timeout_s = timeout_s
        self._servers = [_Server(_checked(url)) for url in urls]
        self._lock = threading.Lock()
        self._client = httpx.Client(
            timeout=httpx.Timeout(timeout_s, connect=CONNECT_TIMEOUT_S),
            limits=httpx.Limits(max_connections=None),
            headers={"Authorization": f"Bearer {token}"} if token else {},
            trust_env=False,  # a cluster's HTTP proxy is not meant for its own nodes
        )

    @property
    def urls(self) -> list[str]:
        """The servers."""
        return [server.url for server in self._servers]

    def score(self, request: ScoreRequest, patience: Patience) -> ScoreResponse:
        """Answer to one request; raises RewardError when patience or hope is lost."""
        body = encode_request(request)
        while True:
            server = self._take()
            try:
                reply = self._post(server.url, body, patience)
                if reply.status_code == 200:
                    return self._decode(server.url, reply, request)
                self._after_refusal(server.url, reply, patience)
            except httpx.TransportError as error:
                server.avoid_until = time.monotonic() + AVOID_S
                if not patience.pause():
                    raise self.unreachable(server.url, error) from error
            finally:
                self._give_back(server)

    def get(self, url: str, path: str) -> httpx.Response:
        """One attempt at a GET."""
        try:
            return self._client.get(url + path, timeout=STATUS_TIMEOUT_S)
        except httpx.TransportError as error:
            raise self.unreachable(url, error) from error

    def unreachable(self, url: str, error: Exception) -> RewardError:
        """The error for a server that does not answer, and what to type."""
        port = httpx.URL(url).port or 80
        scorer = self.name.partition(".")[0]
        return RewardError(
            self.name,
            url,
            f"no answer ({str(error) or type(error).__name__}). Start the server, for example with "
            f"`awm-reward-server --scorer {scorer} --port {port}`, or correct reward_server.urls.",
        )

    def refused(self, url: str, reply: httpx.Response) -> RewardError:
        """The error for a reply that says no."""
        problem = _error_of(reply).get("message") or reply.text[:500] or reply.reason_phrase
        hint = " Set AWM_REWARD_TOKEN to the server's token." if reply.status_code == 401 else ""
        return RewardError(self.name, url, f"HTTP {reply.status_code}: {problem}.{hint}")

    def _post(self, url: str, body: bytes, patience: Patience) -> httpx.Response:
        left = max(1.0, min(self.timeout_s, patience.give_up - time.monotonic()))
        headers = {"Content-Type": MSGPACK, "X-Deadline-S": f"{SERVER_SHARE * left:.3f}"}
        return self._client.post(f"{url}/v1/score", content=body, headers=headers)

    def _decode(self, url: str, reply: httpx.Response, request: ScoreRequest) -> ScoreResponse:
        try:
            response = decode_response(reply.content)
        except WireError as error:
            raise RewardError(self.name, url, f"the answer is not a reward server's: {error}") from error
        if response.request_id != request.request_id:
            raise RewardError(self.name, url, "the answer belongs to another request")
        return response

    def _after_refusal(self, url: str, reply: httpx.Response, patience: Patience) -> None:
        """Return when it makes sense to try again, else raise."""
        code = _error_of(reply).get("code")
        # Ray Serve, for one, answers 500 for a replica that died: the next one may do.
        from_a_proxy = reply.status_code >= 500 and code is None
        if reply.status_code not in OVERLOAD and not from_a_proxy:
            raise self.refused(url, reply)
        if code != "not_ready":
            patience.retries -= 1
        if patience.retries < 0 or not patience.pause(_retry_after_s(reply)):
            raise self.refused(url, reply)

    def _take(self) -> _Server:
        with self._lock:
            now = time.monotonic()
            server = min(self._servers, key=lambda s: (now < s.avoid_until, s.outstanding))
            server.outstanding += 1
            return server

    def _give_back(self, server: _Server) -> None:
        with self._lock:
            server.outstanding -= 1


def _checked(url: str) -> str:
    try:
        parsed = httpx.URL(url)
        valid = parsed.scheme in ("http", "https") and bool(parsed.host)
    except httpx.InvalidURL:
        valid = False
    if not valid:
        raise ValueError(f"reward_server.urls holds {url!r}; expected a URL such as http://127.0.0.1:18080")
    return url.rstrip("/")


def _error_of(reply: httpx.Response) -> dict[str, Any]:
    try:
        error = reply.json()["error"]
    except (ValueError, KeyError, TypeError):
        return {}
    return error if isinstance(error, dict) else {}


def _retry_after_s(reply: httpx.Response) -> float:
    given = reply.headers.get("retry-after", "")
    return float(given) if given.isdecimal() else 0.0
