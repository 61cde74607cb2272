"""Rewards computed in the trainer's own process, with the same scorers the server runs.

For tests, benchmarks and small jobs: no server to start, but also no isolation. A scorer with a model belongs
into the server.
"""

from __future__ import annotations

import threading
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from awm.rewards.collect import ErrorLog, check_lengths, representable, split_name, to_pixels, to_rewards
from awm.rewards.errors import RewardError
from awm.types import Rewards
from reward_server.scorers.base import Item, Scorer
from reward_server.scorers.table import build_scorer
from reward_server.worker.scoring import score_items


class ScorerReward:
    """A scorer of the reward server as an in-process reward.

    Args:
        name: name of the reward; "x" takes the scorer's score, "x.y" its metric y.
        scorer: what computes it.
        source: rewards with an equal source share one pass over the images.
    """

    def __init__(self, name: str, scorer: Scorer, source: Hashable) -> None:
        self.name = name
        self.source = source
        self._scorer = scorer
        self._lock = threading.Lock()  # scorers are for one thread at a time
        self._errors = ErrorLog(name)

    def __call__(self, images: Tensor, text: Sequence[str], metadata: Sequence[Mapping[str, Any]]) -> Rewards:
        """Score images [B, 3, H, W] in [0, 1]."""
        check_lengths(images, text, metadata)
        pixels = to_pixels(images)
        items = [Item(image, prompt, about) for image, prompt, about in zip(pixels, text, metadata, strict=True)]
        with self._lock:
            outcomes = representable(score_items(self._scorer, items, self.name))
        self._errors.note(outcomes, text)
        return to_rewards(self.name, "in process", outcomes)

    def check(self) -> None:
        """Score a grey image, to see that the scorer works and has the number asked for."""
        prompt, metadata = self._scorer.example()
        rewards = self(torch.full((1, 3, 64, 64), 0.5), [prompt], [metadata])
        if not rewards.valid.all():
            raise RewardError(self.name, "in process", "cannot score a plain grey image; see the log")


def in_process_reward(name: str) -> ScorerReward:
    """The in-process reward of a name such as "geneval_shapes.strict"; ``awm.rewards.table`` lists them."""
    scorer, _ = split_name(name)
    if scorer == "geneval_shapes":
        return ScorerReward(name, build_scorer("geneval", {"detector": "shapes"}), ("in process", scorer))
    return ScorerReward(name, build_scorer(scorer), ("in process", scorer))
