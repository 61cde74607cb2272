"""Outcomes as the plain values that travel, between worker and server and between server and trainer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from reward_server.scorers.base import ItemError, Outcome, Scores

MAX_MESSAGE = 2000  # characters


def pack_outcome(outcome: Outcome) -> dict[str, Any]:
    """Plain form: ``{"score", "metrics", "error"}``, of which score or error is None."""
    if isinstance(outcome, Scores):
        # numpy's numbers are not JSON's.
        metrics = {name: float(value) for name, value in outcome.metrics.items()}
        return {"score": float(outcome.score), "metrics": metrics, "error": None}
    # Any text can travel, whatever a scorer quotes; nobody needs megabytes of it.
    message = str(outcome.message)[:MAX_MESSAGE].encode("utf-8", "backslashreplace").decode()
    error = {"code": str(outcome.code), "message": message, "retryable": bool(outcome.retryable)}
    return {"score": None, "metrics": {}, "error": error}


def unpack_outcome(value: Mapping[str, Any]) -> Outcome:
    """Inverse of ``pack_outcome``."""
    if value["error"] is not None:
        return ItemError(**value["error"])
    return Scores(value["score"], value["metrics"])
