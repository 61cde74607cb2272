"""Rewards of a one-dimensional bandit whose arms are the numbers in [-1.5, 1.5].

SiMPO's paper (arXiv 2603.10250, section 5.1) shows its landscapes only as pictures; these are our reconstruction.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

LIMIT = 1.5
"""Actions are clipped to [-LIMIT, LIMIT]."""


@dataclass(frozen=True, slots=True)
class Bump:
    """One optimum, height exp(-(a - centre)^2 / (2 width^2))."""

    centre: float
    width: float
    height: float


@dataclass(frozen=True, slots=True)
class Landscape:
    """R(a) = max over bumps, with arms a in [-LIMIT, LIMIT].

    Attributes:
        name: for tables.
        bumps: the optima.
    """

    name: str
    bumps: tuple[Bump, ...]

    def __call__(self, action: Tensor) -> Tensor:
        """Rewards shaped like the actions."""
        values = [b.height * (-(action - b.centre).square() / (2 * b.width**2)).exp() for b in self.bumps]
        return torch.stack(values).amax(0)

    @property
    def best(self) -> float:
        """The largest reward; the centres must be arms."""
        return max(b.height for b in self.bumps)


ESCAPE = Landscape("escape", (Bump(-0.4, 0.3, 0.8), Bump(0.6, 0.15, 1.0)))
ESCAPE_WIDER = Landscape("escape, wider", (Bump(-0.4, 0.3, 0.8), Bump(0.6, 0.2, 1.0)))
BROAD = Landscape("broad", (Bump(-0.6, 0.35, 0.8), Bump(0.6, 0.35, 1.0)))
SHARP = Landscape("sharp", (Bump(-0.6, 0.08, 0.8), Bump(0.6, 0.08, 1.0)))
