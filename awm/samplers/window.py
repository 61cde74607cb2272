"""Which few neighbouring steps of a rollout are stochastic in an epoch, while all others follow the ODE.

Only stochastic steps can be trained by their likelihood, so a window of W of them needs W forwards in training where
the whole rollout would need one for each step. Starts l are counted from the noise end.

    random      l uniform over the places where the window fits        Flow-GRPO-Fast, in Flow-GRPO's code
    sliding     l moves by a stride every so many epochs               MixGRPO, arXiv 2507.21802
    decay       likewise, but stays from interval down to interval // 4 epochs, linearly in l
    exp_decay   likewise, ceil(interval exp(-0.1 max(l - 13, 0))) epochs

A window that has passed the last start begins again at the first. The last windows may be cut short by the end.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from awm.flow.rng import sample_generator

WINDOWS = ("random", "sliding", "decay", "exp_decay")
DECAY_RATE, DECAY_FROM = 0.1, 13  # of exp_decay, as published


@dataclass(frozen=True, slots=True)
class Window:
    """A schedule of windows, a function of (seed, epoch) alone.

    Published schedules draw or move a window for each prompt, or each iteration. Here one rollout is one iteration, and
    a window belongs to a whole epoch: all ranks agree on it without talking, and all samples of a micro-batch have the
    same transitions, so that they share a forward.

    Attributes:
        kind: one of ``WINDOWS``.
        size: W, steps.
        span: (first, end) of the steps a window may cover, half open.
        interval: epochs between moves; at its start, of those that decay.
        stride: steps a window moves by; W for windows side by side.

    Raises:
        ValueError: unknown kind, or numbers that leave no window.
    """

    kind: str
    size: int
    span: tuple[int, int]
    interval: int = 25
    stride: int = 1

    def __post_init__(self) -> None:
        if self.kind not in WINDOWS:
            raise ValueError(f"unknown window {self.kind!r}; known: {', '.join(WINDOWS)}, or an empty string for none.")
        first, end = self.span
        if not 1 <= self.size <= end - first:
            raise ValueError(
                f"a window of {self.size} steps does not fit steps {first} to {end - 1}; take window_size from 1 to "
                f"{max(end - first, 1)}, a wider window_range, or more sampling steps."
            )
        if self.interval < 1 or self.stride < 1:
            raise ValueError(
                f"window_interval and window_stride must be at least 1, not {self.interval} and {self.stride}."
            )

    def steps(self, seed: int, epoch: int) -> range:
        """Indices of the stochastic steps of ``epoch``, counted from 0."""
        start = self.start(seed, epoch)
        return range(start, min(start + self.size, self.span[1]))

    def start(self, seed: int, epoch: int) -> int:
        """The first stochastic step of ``epoch``."""
        if self.kind == "random":
            return random_start(self.span, self.size, seed, epoch)
        stays = {"sliding": self._constant, "decay": self._linear, "exp_decay": self._exponential}[self.kind]
        return sliding_start(self.span, self.stride, stays, epoch)

    def _constant(self, start: int) -> int:
        return self.interval

    def _linear(self, start: int) -> int:
        least, last = max(self.interval // 4, 1), max(self.span[1] - 1, 1)
        return (self.interval * (last - start) + least * start) // last  # in integers: no rounding before the floor

    def _exponential(self, start: int) -> int:
        return math.ceil(self.interval * math.exp(-DECAY_RATE * max(start - DECAY_FROM, 0)))


def random_start(span: tuple[int, int], size: int, seed: int, epoch: int) -> int:
    """Uniform over first, ..., end - size, both included; the same for the same (seed, epoch) on every machine."""
    first, end = span
    generator = sample_generator(seed, "window", epoch, 0)
    return int(torch.randint(first, end - size + 1, (), generator=generator))


def sliding_start(span: tuple[int, int], stride: int, stays: Callable[[int], int], epoch: int) -> int:
    """Start in ``epoch`` of a window that stays ``stays(l)`` epochs at l, then moves, and wraps past the end."""
    starts = range(*span, stride)
    left = epoch % sum(map(stays, starts))
    for start in starts:
        left -= stays(start)
        if left < 0:
            return start
    raise AssertionError("epochs left are fewer than those of a whole cycle")
