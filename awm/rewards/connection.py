"""HTTP to one or several equal reward servers: who is asked, what is tried again, and how long.

* Not reachable, still loading its scorers (a restart), or overloaded by its own account: takes time only. The next
  server is asked at once; if there is none, the client waits, no sooner than Retry-After, up to ``server_wait_s``.
* 429, 502-504, and a 5xx that is not in the server's own words but those of a proxy before it: the same, but at most
  ``max_retries`` times.
* Any other error status: the request or the server is wrong; trying again would only hide it.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import httpx

from awm.rewards.errors import RewardError
from awm.rewards.patience import Patience
from awm.rewards.token import clean_token
from reward_server.codec import MSGPACK, WireError
from reward_server.wire import ScoreRequest, ScoreResponse, decode_response, encode_request

CONNECT_TIMEOUT_S = 10.0
STATUS_TIMEOUT_S = 30.0  # of /readyz and /info; a busy machine may be slow even at that
SERVER_SHARE = 0.9  # of the time-out: the server must give up first, so that its answer says why
OVERLOAD = (429, 502, 503, 504)
PASSING = ("not_ready", "overloaded")  # the server's own words for a 503 that only time ends
AVOID_S = 5.0  # seconds in which the others go first after a server did not answer or refused


@dataclass(slots=True)
class _Server:
    url: str
    outstanding: int = 0
    avoid_until: float = 0.0  # value of time.monotonic()


class Connection:
    """A pool of connections to servers that give equal scores. Thread-safe.

    Args:
        name: the reward's name, for errors.
        urls: of the servers; each request goes to the one with the fewest unanswered ones.
        timeout_s: longest wait for one answer.
        token: bearer token; white space around it is dropped.

    Raises:
        ValueError: no URL, one that is none, or a token that cannot be sent.
    """

    def __init__(self, name: str, urls: Sequence[str], timeout_s: float, token: str) -> None:
        if not urls:
            raise ValueError("no reward server is given; set reward_server.urls")
        token = clean_token(token)
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
            except httpx.RequestError as error:
                refusal, rest_s = self.unreachable(server.url, error), 0.0
                refusal.__cause__ = error
                another = self._avoid(server, AVOID_S)
            else:
                if reply.status_code == 200:
                    return self._decode(server.url, reply, request)
                refusal, rest_s = self._refusal(server.url, reply), _retry_after_s(reply)
                patience.retries -= _error_of(reply).get("code") not in PASSING
                another = self._avoid(server, max(AVOID_S, rest_s))
            finally:
                self._give_back(server)
            if patience.retries < 0 or not (patience.lasts() if another else patience.pause(rest_s)):
                raise refusal

    def get(self, url: str, path: str) -> httpx.Response:
        """One attempt at a GET."""
        try:
            return self._client.get(url + path, timeout=STATUS_TIMEOUT_S)
        except httpx.RequestError as error:
            raise self.unreachable(url, error) from error

    def unreachable(self, url: str, error: Exception) -> RewardError:
        """The error for a server that does not answer, and what to type."""
        port = httpx.URL(url).port or 80
        scorer = self.name.partition(".")[0]
        return RewardError(
            self.name,
            url,
            f"no answer ({str(error) or type(error).__name__}). Start the server, for example with "
            f"`awm-reward-server --scorer {scorer} --port {port}`, or correct reward_server.urls (for this "
            f"scorer alone: reward_server.urls_of.{scorer}).",
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

    def _refusal(self, url: str, reply: httpx.Response) -> RewardError:
        """The error to raise if there is no time for another attempt; raised now if that would be useless."""
        error = self.refused(url, reply)
        # Ray Serve, for one, answers 500 for a replica that died: the next one may do.
        from_a_proxy = reply.status_code >= 500 and _error_of(reply).get("code") is None
        if reply.status_code not in OVERLOAD and not from_a_proxy:
            raise error
        return error

    def _take(self) -> _Server:
        with self._lock:
            now = time.monotonic()
            server = min(self._servers, key=lambda s: (now < s.avoid_until, s.outstanding, random.random()))
            server.outstanding += 1
            return server

    def _avoid(self, server: _Server, seconds: float) -> bool:
        """Let the others go first for a while; True if one of them is fit to."""
        with self._lock:  # a server that refuses fast would otherwise always be the one with the least to do
            now = time.monotonic()
            server.avoid_until = now + seconds
            return any(now >= s.avoid_until for s in self._servers)

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
        raise ValueError(
            f"reward_server.urls or reward_server.urls_of holds {url!r}; expected a URL such as http://127.0.0.1:18080"
        )
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
