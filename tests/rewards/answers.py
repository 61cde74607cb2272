"""Asking a reward for scores of plain images, and a server that answers with whatever the test prepared."""

from __future__ import annotations

import json
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler
from typing import Any

import msgpack
import torch
from torch import Tensor

from awm.types import Rewards


def images(*levels: float) -> Tensor:
    """One plain image [3, 8, 8] per level in [0, 1]."""
    return torch.tensor(levels)[:, None, None, None].expand(-1, 3, 8, 8)


def ask(reward: Any, batch: Tensor, text: Sequence[str] | None = None) -> Rewards:
    result: Rewards = reward(batch, text or [""] * len(batch), [{}] * len(batch))
    return result


class Liar(BaseHTTPRequestHandler):
    """Answers with whatever the test prepared."""

    results: list[dict[str, Any]] | None = None
    status = 200
    error: str | None = None
    failures = 0  # of the first requests, in the words of a proxy

    def do_POST(self) -> None:
        request = msgpack.unpackb(self.rfile.read(int(self.headers["Content-Length"])))
        body = {
            "version": 1,
            "request_id": request["request_id"],
            "fingerprints": {},
            "timing": {},
            "results": self.results,
        }
        data = b"<html>proxy</html>" if self.results is None else msgpack.packb(body)
        if self.error:
            data = json.dumps({"error": {"code": self.error, "message": "a defect"}}).encode()
        status = self.status
        if type(self).failures > 0:
            type(self).failures -= 1
            status, data = 500, b"<html>proxy</html>"
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        pass


def entry(item_id: int, score: Any) -> dict[str, Any]:
    return {"id": item_id, "rewards": {"fake": {"score": score, "metrics": {}, "error": None}}}
