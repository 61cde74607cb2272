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
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.requests import ClientDisconnect

from reward_server import __version__, telemetry
from reward_server.codec import JSON, MSGPACK, WireError
from reward_server.openapi import error_schema, score_schema
from reward_server.service import BusyError, Service
from reward_server.wire import ScoreRequest, ScoreResponse, decode_request, encode_response

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

    @app.exception_handler(StarletteHTTPException)
    async def unknown(request: Request, error: StarletteHTTPException) -> Response:
        content = {
            "error": {"code": "no_such_operation", "message": f"{request.method} {request.url.path}: {error.detail}"}
        }
        return JSONResponse(content, error.status_code, error.headers)

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
            media_type, until = content_type(request), started + deadline(request, service.settings.deadline_s)
            with intake.room(request):
                asked = await parse(service, await intake.read(request, until), media_type)
                response = await scored(service, asked, until)
            content = encode_response(response, media_type)
            status = 200
            return Response(content, media_type=media_type)
        except HTTPError as error:
            status = error.status
            raise
        except ClientDisconnect:
            status = 499  # as nginx counts them; nobody reads the reply
            return Response(status_code=status)
        finally:
            service.telemetry.request(status, time.monotonic() - started)

    return app


async def parse(service: Service, body: bytes, media_type: str) -> ScoreRequest:
    """The request in a body; raises HTTPError if it is malformed or asks for what is not there."""
    try:
        # Megabytes of msgpack or base64 would hold up everybody else on the event loop.
        asked = await run_in_threadpool(decode_request, body, media_type, service.settings.limits)
    except WireError as error:
        raise HTTPError(422, "malformed", str(error), field=error.field, index=error.index) from None
    if unknown := service.unknown_rewards(asked):
        known = list(service.settings.scorers)
        message = f"this server has no reward {', '.join(map(repr, unknown))}; it has {', '.join(known)}"
        raise HTTPError(422, "unknown_reward", message, field="rewards", known=known)
    return asked


async def scored(service: Service, asked: ScoreRequest, until: float) -> ScoreResponse:
    """Reply to a request, complete or not, once it is ``until`` (of time.monotonic()); raises HTTPError if busy."""
    started = time.monotonic()
    try:
        ticket = service.submit(asked, until - started)
    except BusyError as error:
        raise busy(error.code, str(error)) from None
    await asyncio.wait([asyncio.wrap_future(ticket.done)], timeout=max(0.0, until - started))
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

    async def read(self, request: Request, until: float) -> bytes:
        """The whole body; 503 if it is not here by ``until``, so that who sends nothing does not keep its room."""
        try:
            return await asyncio.wait_for(self._read(request), max(0.0, until - time.monotonic()))
        except asyncio.TimeoutError:
            raise busy("slow_body", "the body was not complete before the deadline") from None

    async def _read(self, request: Request) -> bytes:
        body = bytearray()
        async for chunk in request.stream():
            body += chunk
            if len(body) > self._max_body:
                raise self._too_large(len(body))
        return bytes(body)

    def _announced_size(self, request: Request) -> int:
        size = request.headers.get("content-length", "")
        if not size.isdecimal() or "transfer-encoding" in request.headers:
            return self._max_body  # chunked, whatever length it claims besides: assume the worst
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
    # Header bytes arrive decoded as Latin-1.
    expected, given = f"Bearer {token}".encode(), request.headers.get("authorization", "").encode("latin-1")
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
    """Seconds the client is going to wait, from X-Deadline-S, but no longer than ``default_s``."""
    given = request.headers.get("x-deadline-s")
    if given is None:
        return default_s
    try:
        seconds = float(given)
    except ValueError:
        seconds = -1.0
    if not isfinite(seconds) or seconds <= 0:
        raise HTTPError(422, "malformed", f"X-Deadline-S is {given!r}; expected seconds, above 0", field="X-Deadline-S")
    return min(seconds, default_s)


def busy(code: str, message: str) -> HTTPError:
    """503 that says when to come back."""
    reply = HTTPError(503, code, message)
    reply.headers["Retry-After"] = str(RETRY_AFTER_S)
    return reply
