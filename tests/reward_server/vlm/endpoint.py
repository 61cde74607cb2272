"""An OpenAI-compatible endpoint on a free port that answers as the test says, in the format vLLM uses."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from math import log
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

MODEL = "judge-7b"


@dataclass(frozen=True)
class Reply:
    """What goes over the wire; no body at all closes the connection instead."""

    body: bytes | None
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    after_s: float = 0.0


@dataclass
class Endpoint:
    """The server's state, for tests to read and to change."""

    url: str
    answer: Callable[[Mapping[str, Any]], Reply]
    models: Reply
    bodies: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)
    model_calls: int = 0
    under_way: int = 0
    most_under_way: int = 0
    ports: set[int] = field(default_factory=set)


def completion(text: str, first: Mapping[str, float] | None = None, finish_reason: str = "stop") -> Reply:
    """A chat completion; ``first`` gives probabilities of candidates for the first token, the sampled one first."""
    choice: dict[str, Any] = {
        "index": 0,
        "message": {"role": "assistant", "content": text},
        "finish_reason": finish_reason,
        "logprobs": None,
    }
    if first is not None:
        entries = [
            {"token": token, "logprob": log(p) if p else -9999.0, "bytes": list(token.encode())}
            for token, p in first.items()
        ]
        choice["logprobs"] = {"content": [{**entries[0], "top_logprobs": entries}]}
    return as_json({"id": "chatcmpl-1", "object": "chat.completion", "model": MODEL, "choices": [choice]})


def as_json(value: object, status: int = 200, **headers: str) -> Reply:
    """A JSON reply; underscores in header names become hyphens."""
    named = {name.replace("_", "-"): text for name, text in headers.items()}
    return Reply(json.dumps(value).encode(), status, named)


def yes(probability: float = 0.9) -> Reply:
    """A judge that says yes with this probability, and no with the rest."""
    return completion("Yes", {"Yes": probability, "No": 1 - probability})


def question_of(body: Mapping[str, Any]) -> str:
    """The text of a request's user message."""
    return str(body["messages"][-1]["content"][1]["text"])


def image_of(body: Mapping[str, Any]) -> tuple[str, NDArray[np.uint8]]:
    """MIME type and pixels of a request's image."""
    head, _, data = body["messages"][-1]["content"][0]["image_url"]["url"].partition(";base64,")
    with Image.open(io.BytesIO(base64.b64decode(data, validate=True))) as image:
        return head.removeprefix("data:"), np.asarray(image)


@contextmanager
def serve(answer: Callable[[Mapping[str, Any]], Reply] = lambda body: yes(), port: int = 0) -> Iterator[Endpoint]:
    """An endpoint that serves ``judge-7b`` and asks ``answer`` for every reply."""
    models = as_json({"object": "list", "data": [{"id": MODEL, "root": "org/judge"}, {"id": "lora-1"}]})
    server = _Server(("127.0.0.1", port), _Handler)
    server.endpoint = Endpoint(f"http://127.0.0.1:{server.server_address[1]}/v1", answer, models)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server.endpoint
    finally:
        server.shutdown()
        server.server_close()
        for connection in server.connections:  # kept open by clients; a process that ends closes them too
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        thread.join(5)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False  # a handler may be hanging on purpose
    endpoint: Endpoint

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.connections: list[socket.socket] = []


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server
    lock = threading.Lock()

    def setup(self) -> None:
        self.server.connections.append(self.request)
        super().setup()

    def do_GET(self) -> None:
        self.server.endpoint.model_calls += 1
        found = self.path == "/v1/models"
        self._send(self.server.endpoint.models if found else as_json({"detail": "Not Found"}, 404))

    def do_POST(self) -> None:
        endpoint = self.server.endpoint
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.lock:
            endpoint.bodies.append(body)
            endpoint.keys.append(self.headers.get("Authorization"))
            endpoint.ports.add(self.client_address[1])
            endpoint.under_way += 1
            endpoint.most_under_way = max(endpoint.most_under_way, endpoint.under_way)
        reply = endpoint.answer(body) if self.path == "/v1/chat/completions" else Reply(b"", 404)
        time.sleep(reply.after_s)
        with self.lock:
            endpoint.under_way -= 1
        self._send(reply)

    def _send(self, reply: Reply) -> None:
        if reply.body is None:
            self.close_connection = True
            return
        self.send_response(reply.status)
        for name, value in {"Content-Type": "application/json", **reply.headers}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(reply.body)))
        self.end_headers()
        self.wfile.write(reply.body)

    def log_message(self, *args: object) -> None:
        pass

    def handle(self) -> None:
        with contextlib.suppress(ConnectionError):  # the client gave up, which is what the test wanted
            super().handle()
