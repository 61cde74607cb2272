"""A reward that takes a declared time, so that the trainer is measured and no scorer."""

from __future__ import annotations

import threading
import time
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from awm.types import Rewards


class StubReward:
    """An image's mean brightness; images of the prompts in ``tied`` all score zero.

    Args:
        milliseconds: for each image, one after the other, as a scorer with a device of its own takes.

    Attributes:
        tied: prompts that teach nothing, for what can be saved on them.
    """

    def __init__(self, milliseconds: float) -> None:
        self.tied: Collection[str] = frozenset()
        self._seconds = milliseconds / 1000
        self._lock = threading.Lock()

    def __call__(self, images: Tensor, text: Sequence[str], metadata: Sequence[Mapping[str, Any]]) -> Rewards:
        """Score images [B, 3, H, W] in [0, 1]."""
        if self._seconds:
            with self._lock:
                time.sleep(self._seconds * len(images))
        teaches = torch.tensor([prompt not in self.tied for prompt in text])
        brightness = torch.where(teaches, images.float().mean(dim=(1, 2, 3)), 0.0)
        return Rewards(brightness, {"stub": brightness}, torch.ones(len(images), dtype=torch.bool))

    def check(self) -> None:
        """It always works."""
