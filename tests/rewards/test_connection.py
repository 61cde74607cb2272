"""How long the client waits for a server, and who may end that."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
import torch

from awm.rewards.errors import RewardError
from awm.rewards.remote import RemoteReward

NOBODY = "http://127.0.0.1:9"


def test_a_stop_wakes_a_call_that_waits_for_a_missing_server() -> None:
    stop = threading.Event()
    threading.Timer(0.3, stop.set).start()
    started = time.monotonic()
    with pytest.raises(RewardError, match="Start the server"):
        RemoteReward([NOBODY], "geneval", stop=stop)(torch.zeros(2, 3, 8, 8), ["", ""], [{}, {}])
    assert time.monotonic() - started < 30  # instead of seven minutes


@contextmanager
def answering(pages: dict[str, Any]) -> Iterator[str]:
    """A server that answers GET with these pages."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = pages[self.path]
            data = body if isinstance(body, bytes) else json.dumps(body).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize("page", [b"<html>welcome</html>", [], {}, {"rewards": None}, {"rewards": {"geneval": {}}}])
def test_another_kind_of_server_is_recognised(page: Any) -> None:
    with answering({"/readyz": {}, "/info": page}) as url, pytest.raises(RewardError, match="not as a reward server"):
        RemoteReward([url], "geneval").check()


def test_a_server_that_has_the_reward_passes() -> None:
    about = {"metrics": ["strict"], "fingerprint": "1"}
    with answering({"/readyz": {}, "/info": {"rewards": {"geneval": about}}}) as url:
        RemoteReward([url], "geneval.strict").check()
