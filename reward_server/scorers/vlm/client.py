"""Questions about images to an OpenAI-compatible endpoint: many under way at once, but never more than allowed.

``POST /chat/completions`` with the image as a data URL, the form vLLM, SGLang and the hosted APIs share
(https://docs.vllm.ai/en/latest/serving/openai_compatible_server.html). All requests run on one event loop in one
thread, so that connections stay open from batch to batch.
"""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections.abc import Coroutine, Mapping, Sequence
from typing import Any, TypeVar

import httpx

from reward_server.scorers.base import ItemError
from reward_server.scorers.vlm.replies import Answer, parse_answer, parse_models, says

RETRIED_STATUS = (429, 502, 503, 504)
FIRST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 8.0
START_TIMEOUT_S = 10.0  # for the list of models, which no busy endpoint takes long to give

T = TypeVar("T")
JSON = Mapping[str, Any]


class ChatClient:
    """Talks to one endpoint.

    Args:
        base_url: as in the OpenAI clients, that is with the version: ``http://host:8000/v1``.
        api_key: sent as bearer token and kept out of every message; None sends none.
        concurrency: most requests under way at once.
        trust_env: use the proxies and certificates that environment variables name.
    """

    def __init__(
        self, base_url: str, *, api_key: str | None = None, concurrency: int = 8, trust_env: bool = False
    ) -> None:
        if concurrency < 1:
            raise ValueError(f"concurrency is {concurrency}; at least one request must be allowed at a time.")
        self.base_url = _checked(base_url)
        self._key = api_key
        self._slots = asyncio.Semaphore(concurrency)
        self._http = httpx.AsyncClient(
            headers={"Authorization": f"Bearer {api_key}"} if api_key else {},
            limits=httpx.Limits(max_connections=concurrency),
            timeout=None,  # a request has the time its batch has left, see _once
            trust_env=trust_env,
        )
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="vlm-client", daemon=True)
        self._thread.start()

    def ask(self, bodies: Sequence[JSON], timeout_s: float) -> list[Answer | ItemError]:
        """Answer to each chat completion request, in order, or why there is none, within ``timeout_s`` seconds."""
        deadline = time.monotonic() + timeout_s

        async def all_answers() -> list[Answer | ItemError]:
            return list(await asyncio.gather(*(self._ask(body, deadline) for body in bodies)))

        return self._run(all_answers())

    def served_models(self, wait_s: float = 0.0) -> Mapping[str, str]:
        """Model name -> what the endpoint says it was loaded from (the name again if it does not say).

        Args:
            wait_s: how long to wait, in seconds, for an endpoint that is still starting.

        Raises:
            RuntimeError: nobody answers, or not as an OpenAI-compatible endpoint does.
        """
        deadline = time.monotonic() + max(wait_s, START_TIMEOUT_S)
        reply = self._run(self._request("GET", "/models", None, deadline, retry=wait_s > 0))
        if isinstance(reply, ItemError):
            raise RuntimeError(
                f"{self.base_url}: {self._hide(reply.message)}. Start the endpoint first, for example with `vllm serve "
                "MODEL --port 8000`, and give its address as base_url=http://HOST:8000/v1; raise wait_s for one that "
                "is still loading."
            )
        if reply.status_code in (401, 403):
            raise RuntimeError(
                f"{self.base_url} refuses the key ({reply.status_code}); name the environment variable that holds it "
                "with api_key_env."
            )
        models = parse_models(reply)
        if models is None:
            raise RuntimeError(
                f"{self.base_url}/models answers {self._hide(says(reply))}; is this an OpenAI-compatible endpoint? "
                "Its base_url usually ends in /v1."
            )
        return models

    def close(self) -> None:
        """Close the connections and end the thread."""
        if self._thread.is_alive():
            self._run(self._http.aclose())
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    async def _ask(self, body: JSON, deadline: float) -> Answer | ItemError:
        # Every request before this one ends by the same deadline, so the wait for a slot needs no limit of its own.
        async with self._slots:
            reply = await self._request("POST", "/chat/completions", body, deadline, retry=True)
        answer = reply if isinstance(reply, ItemError) else parse_answer(reply)
        if isinstance(answer, ItemError):
            return ItemError(answer.code, f"{self.base_url}: {self._hide(answer.message)}", answer.retryable)
        return answer

    async def _request(
        self, method: str, path: str, body: JSON | None, deadline: float, *, retry: bool
    ) -> httpx.Response | ItemError:
        """The first reply that is worth reading, or the last failure before the deadline."""
        pause = FIRST_PAUSE_S
        while True:
            reply = await self._once(method, path, body, deadline)
            if isinstance(reply, httpx.Response) and reply.status_code not in RETRIED_STATUS:
                return reply
            failure = reply if isinstance(reply, ItemError) else _busy(reply)
            asked_for = 0.0 if isinstance(reply, ItemError) else _retry_after(reply)
            wait = max(asked_for, pause * random.uniform(0.5, 1.0))  # jitter: the whole batch failed at one moment
            if not retry or failure.code == "timeout" or time.monotonic() + wait >= deadline:
                return failure
            await asyncio.sleep(wait)
            pause = min(2 * pause, LONGEST_PAUSE_S)

    async def _once(self, method: str, path: str, body: JSON | None, deadline: float) -> httpx.Response | ItemError:
        left = deadline - time.monotonic()
        late = ItemError("timeout", "no answer before the deadline", retryable=True)
        if left <= 0:
            return late
        try:
            # Not httpx's own time-outs: they bound each read, and a trickling answer would never end.
            return await asyncio.wait_for(self._http.request(method, self.base_url + path, json=body), left)
        except asyncio.TimeoutError:  # not the built-in TimeoutError before Python 3.11
            return late
        except httpx.RequestError as error:
            return ItemError("unreachable", f"{type(error).__name__}: {error}".rstrip(": "), retryable=True)

    def _hide(self, message: str) -> str:
        return message.replace(self._key, "***") if self._key else message


def _checked(base_url: str) -> str:
    url = httpx.URL(base_url)
    if url.scheme not in ("http", "https") or not url.host:
        raise ValueError(f"base_url is {base_url!r}; expected something like http://localhost:8000/v1.")
    if url.userinfo:
        raise ValueError("base_url holds a password; put it into an environment variable and name that in api_key_env.")
    return base_url.rstrip("/")


def _busy(reply: httpx.Response) -> ItemError:
    return ItemError("overloaded" if reply.status_code == 429 else "unreachable", says(reply), retryable=True)


def _retry_after(reply: httpx.Response) -> float:
    try:
        return max(0.0, float(reply.headers.get("Retry-After", "0")))
    except ValueError:
        return 0.0  # a date: back off as if it were not there
