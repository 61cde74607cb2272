"""The HTTP face of the scoring service.

``POST /v1/score`` scores; ``/livez`` says that the process answers, ``/readyz`` that it can score, ``/info`` what
and with which versions, ``/metrics`` how it fares, ``/openapi.json`` all this in detail. Errors are JSON:
``{"error": {"code", "message", ...}}``. The status says who is at fault: 4xx the request (sending it again is
useless), 503 the load (send it again after Retry-After). What is wrong with one image is no HTTP error: it stands in
that item's result.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import time
from collections.abc import Iterator
from math import isfinite
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse, PlainTextResponse

from reward_server import __version__, telemetry
from reward_server.codec import JSON, MSGPACK, WireError
from reward_server.openapi import error_schema, score_schema
from reward_server.service import BusyError, Service
from reward_server.wire import ScoreResponse, decode_request, encode_response

BODIES_IN_MEMORY = 8  # of the largest allowed size, or more of smaller ones
RETRY_AFTER_S = 1


class HTTPError(Exception):
    """An error reply in the making."""

    def __init__(self, status: int, code: str, message: str, **details: Any) -> None:
        super().__init__(message)
        self.status = status
        self.content = {"error": {"code": code, "message": message, **details}}
        self.headers: dict[str, str] = {}


def create_app(service: Service, token: str | None = None) -> FastAPI:
    """The application.

    Args:
        service: loaded by the caller, before or while the application runs.
        token: if given, /v1/score, /info and /metrics ask for ``Authorization: Bearer <token>``.
    """
    app = FastAPI(title="AWM reward server", version=__version__, docs_url=None, redoc_url=None)
    schema = score_schema(list(service.settings.scorers), service.settings.limits.max_items)
    intake = Intake(service.settings.limits.max_body_bytes)

    @app.exception_handler(HTTPError)
    async def reply(request: Request, error: HTTPError) -> Response:
        return JSONResponse(error.content, error.status, error.headers)

    @app.exception_handler(Exception)
    async def defect(request: Request, error: Exception) -> Response:
        # A 500 in our own words, unlike that of a proxy in front of us, says: do not try again.
        content = {"error": {"code": "internal", "message": f"{type(error).__name__}: {error}"}}
        return JSONResponse(content, 500)

    @app.get("/livez", summary="The process answers.")
    async def livez() -> dict[str, bool]:
        return {"live": True}

    @app.get("/readyz", summary="Every reward has a warm worker.", responses={503: {"description": "not yet"}})
    async def readyz() -> Response:
        reason = service.not_ready_because()
        return JSONResponse({"ready": True} if reason is None else {"ready": False, "reason": reason}, _status(reason))

    @app.get("/info", summary="Rewards, versions, limits.", responses=error_schema("401", "503"))
    async def info(request: Request) -> dict[str, Any]:
        authorise(request, token)
        if not service.loaded:
            raise busy("not_ready", f"{service.not_ready_because()}; wait for /readyz")
        return service.info()

    @app.get("/metrics", summary="For Prometheus.", response_class=PlainTextResponse, responses=error_schema("401"))
    async def metrics(request: Request) -> Response:
        authorise(request, token)
        return Response(service.metrics(), media_type=telemetry.CONTENT_TYPE)

    @app.post("/v1/score", summary="Score images.", openapi_extra=schema)
    async def score(request: Request) -> Response:
        started, status = time.monotonic(), 500
        try:
            authorise(request, token)
            media_type, deadline_s = content_type(request), deadline(request, service.settings.deadline_s)
            with intake.room(request):
                body = await intake.read(request)
                response = await score_body(service, body, media_type, deadline_s)
            status = 200
            return Response(encode_response(response, media_type), media_type=media_type)
        except HTTPError as error:
            status = error.status
            raise
        finally:
            service.telemetry.request(status, time.monotonic() - started)

    return app


async def score_body(service: Service, body: bytes, media_type: str, deadline_s: float) -> ScoreResponse:
    """Reply to one decoded body; raises HTTPError."""
    started = time.monotonic()
    try:
        # Megabytes of msgpack or base64 would hold up everybody else on the event loop.
        asked = await run_in_threadpool(decode_request, body, media_type, service.settings.limits)
    except WireError as error:
        raise HTTPError(422, "malformed", str(error), field=error.field, index=error.index) from None
    if unknown := service.unknown_rewards(asked):
        known = list(service.settings.scorers)
        message = f"this server has no reward {', '.join(map(repr, unknown))}; it has {', '.join(known)}"
        raise HTTPError(422, "unknown_reward", message, field="rewards", known=known)
    try:
        ticket = service.submit(asked, deadline_s)
    except BusyError as error:
        raise busy(error.code, str(error)) from None
    await asyncio.wait([asyncio.wrap_future(ticket.done)], timeout=min(deadline_s, service.settings.deadline_s))
    timing = {"score_s": time.monotonic() - started}
    fingerprints = {name: service.fingerprint(name) for name in asked.rewards}
    return ScoreResponse(ticket.results(), asked.request_id, fingerprints, timing)


class Intake:
    """Reads bodies, at most so many bytes each and so many at a time.

    Args:
        max_body_bytes: size of one body.
    """

    def __init__(self, max_body_bytes: int) -> None:
        self._max_body = max_body_bytes
        self._free = BODIES_IN_MEMORY * max_body_bytes

    @contextlib.contextmanager
    def room(self, request: Request) -> Iterator[None]:
        """Reserve memory for a request while it is being handled."""
        size = self._announced_size(request)
        if size > self._free:
            raise busy("overloaded", "too many large requests at once")
        self._free -= size  # only the event loop's thread comes here
        try:
            yield
        finally:
            self._free += size

    async def read(self, request: Request) -> bytes:
        """The whole body."""
        body = bytearray()
        async for chunk in request.stream():
            body += chunk
            if len(body) > self._max_body:
                raise self._too_large(len(body))
        return bytes(body)

    def _announced_size(self, request: Request) -> int:
        size = request.headers.get("content-length", "")
        if not size.isdecimal():
            return self._max_body  # chunked: assume the worst
        if int(size) > self._max_body:
            raise self._too_large(int(size))
        return int(size)

    def _too_large(self, size: int) -> HTTPError:
        message = (
            f"a body of {size} bytes or more; at most {self._max_body} are allowed, so send fewer images at a time"
        )
        return HTTPError(413, "too_large", message)


def _status(reason: str | None) -> int:
    return 200 if reason is None else 503


def authorise(request: Request, token: str | None) -> None:
    """Raise 401 unless the request carries the token, or none is needed."""
    expected, given = f"Bearer {token}".encode(), request.headers.get("authorization", "").encode()
    if token and not hmac.compare_digest(expected, given):
        error = HTTPError(401, "unauthorized", "missing or wrong token; send 'Authorization: Bearer <token>'")
        error.headers["WWW-Authenticate"] = "Bearer"
        raise error


def content_type(request: Request) -> str:
    """The body's media type, one of the two that are understood."""
    given = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if given not in (MSGPACK, JSON):
        raise HTTPError(415, "unsupported_media_type", f"content-type is {given!r}; send {MSGPACK} or {JSON}")
    return given


def deadline(request: Request, default_s: float) -> float:
    """Seconds the client is going to wait, from X-Deadline-S."""
    given = request.headers.get("x-deadline-s")
    if given is None:
        return default_s
    try:
        seconds = float(given)
    except ValueError:
        seconds = -1.0
    if not isfinite(seconds) or seconds <= 0:
        raise HTTPError(422, "malformed", f"X-Deadline-S is {given!r}; expected seconds, above 0", field="X-Deadline-S")
    return seconds


def busy(code: str, message: str) -> HTTPError:
    """503 that says when to come back."""
    reply = HTTPError(503, code, message)
    reply.headers["Retry-After"] = str(RETRY_AFTER_S)
    return reply
