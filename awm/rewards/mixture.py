"""Several rewards as one: total = sum_k weight_k reward_k."""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from awm.interfaces import HasGradient, Reward
from awm.rewards.collect import run_all
from awm.rewards.errors import RewardError
from awm.types import Rewards

log = logging.getLogger(__name__)

T = TypeVar("T")


class MixtureReward:
    """Weighted sum of rewards.

    A sample is valid if every reward with a weight has a value for it. A reward of weight 0 is only logged: it
    is computed, but its failure is a warning and NaN. Rewards that share a ``source`` ("geneval" and
    "geneval.strict" of one server) are computed once, by one with a weight if there is one, for it is more patient;
    different sources run at the same time.

    Args:
        rewards: name -> (reward, weight).
    """

    def __init__(self, rewards: Mapping[str, tuple[Reward, float]]) -> None:
        if not any(weight for _, weight in rewards.values()):
            raise ValueError(
                f"no reward has a weight other than 0 in {dict.fromkeys(rewards, 0)}; there is nothing to learn"
            )
        self._weights = {name: weight for name, (_, weight) in rewards.items()}
        self._rewards = {name: reward for name, (reward, _) in rewards.items()}
        self._groups: dict[Hashable, list[str]] = {}
        for name, reward in self._rewards.items():
            self._groups.setdefault(getattr(reward, "source", name), []).append(name)
        for group in self._groups.values():
            group.sort(key=lambda name: not self._weights[name])  # the first one is called for all
        self._warned: set[str] = set()

    def __call__(self, images: Tensor, text: Sequence[str], metadata: Sequence[Mapping[str, Any]]) -> Rewards:
        """Score images [B, 3, H, W] in [0, 1] with every reward."""

        def score(group: list[str]) -> Rewards | None:
            return self._guarded(group, lambda: self._rewards[group[0]](images, text, metadata))

        results = run_all(score, list(self._groups.values()), num_threads=len(self._groups))
        return self._combine(results, len(images))

    @property
    def fingerprints(self) -> dict[str, str]:
        """Name -> versions of the scorer on a server, of those that have answered."""
        found = {name: str(getattr(reward, "fingerprint", "")) for name, reward in self._rewards.items()}
        return {name: fingerprint for name, fingerprint in found.items() if fingerprint}

    def score(self, images: Tensor, text: Sequence[str]) -> Tensor:
        """The weighted sum [B], differentiable with respect to images [B, 3, H, W] in [0, 1].

        Of rewards with a gradient: ``without_gradient`` has to be empty.
        """
        weighted = [(reward, self._weights[name]) for name, reward in self._rewards.items() if self._weights[name]]
        scores = [w * reward.score(images, text) for reward, w in weighted if isinstance(reward, HasGradient)]
        return torch.stack([score.to(images.device) for score in scores]).sum(0)

    def without_gradient(self) -> list[str]:
        """Names of the rewards with a weight that have no differentiable ``score``."""
        rewards = self._rewards.items()
        return [name for name, reward in rewards if self._weights[name] and not isinstance(reward, HasGradient)]

    def check(self) -> None:
        """Check every reward; only those with a weight may stop the run."""
        for name, reward in self._rewards.items():
            self._guarded([name], reward.check)

    def _guarded(self, group: Sequence[str], call: Callable[[], T]) -> T | None:
        """``call()``, or None and a warning if it fails and no reward of the group has a weight."""
        try:
            return call()
        except Exception as error:
            if any(self._weights[name] for name in group):
                raise
            self._warn(group, error)
            return None

    def _warn(self, names: Sequence[str], error: Exception) -> None:
        level = logging.DEBUG if names[0] in self._warned else logging.WARNING
        self._warned.add(names[0])
        log.log(level, "%s is only monitored (weight 0) and missing from the log: %s", ", ".join(names), error)

    def _combine(self, results: Sequence[Rewards | None], count: int) -> Rewards:
        parts: dict[str, Tensor] = {}
        total, valid = torch.zeros(count), torch.ones(count, dtype=torch.bool)
        for group, result in zip(self._groups.values(), results, strict=True):
            if result is not None:
                parts.update(result.parts)
            for name in group:
                values = self._values(name, result, count)
                parts[name] = values
                if weight := self._weights[name]:
                    total += weight * values
                    valid &= torch.isfinite(values)
        return Rewards(torch.where(valid, total, torch.nan), parts, valid, self._errors(results, count))

    def _errors(self, results: Sequence[Rewards | None], count: int) -> tuple[str, ...]:
        """Per image, why scores are missing, of all sources."""
        told = [
            [f"{group[0]}: could not be computed, the log says why"] * count if result is None else result.errors
            for group, result in zip(self._groups.values(), results, strict=True)
        ]
        rows = zip(*(errors or [""] * count for errors in told), strict=True)
        return tuple("; ".join(filter(None, row)) for row in rows)

    def _values(self, name: str, result: Rewards | None, count: int) -> Tensor:
        """The reward ``name`` itself: NaN if it failed, else its part, or the total of a reward without parts."""
        if result is None:
            return torch.full((count,), torch.nan)
        if name in result.parts:
            return result.parts[name]
        if len(self._groups[getattr(self._rewards[name], "source", name)]) == 1:
            return torch.where(result.valid, result.total, torch.nan)
        if any(torch.isfinite(part).any() for part in result.parts.values()):
            error = RewardError(name, "mixture", f"no such number; choose one of {', '.join(result.parts)}")
            if self._weights[name]:
                raise error
            self._warn([name], error)
        return torch.full((count,), torch.nan)  # if every image failed, nothing says which numbers there could be
