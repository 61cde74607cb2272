"""A scorer that stands for a GPU: each batch takes a fixed time during which no CPU is used."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from reward_server.scorers.base import Item, Outcome, Scores


class Sleeper:
    """Score = mean of the image, so that every pixel must have arrived.

    Args:
        seconds: per batch.
    """

    def __init__(self, seconds: float = 0.004) -> None:
        self.seconds = seconds

    def __call__(self, items: Sequence[Item]) -> list[Outcome]:
        """Mean of each image, after a rest."""
        scores = [Scores(float(item.image.mean()) / 255) for item in items]
        time.sleep(self.seconds)
        return list(scores)

    def fingerprint(self) -> Mapping[str, str]:
        """Nothing that scores depend on."""
        return {"version": "1"}

    def example(self) -> tuple[str, Mapping[str, Any]]:
        """Anything will do."""
        return "", {}
