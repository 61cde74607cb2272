"""Rewards of forward speed, from flat to steep, for asking which weighting suits which landscape.

With y = clip(speed / 10 m/s, 0, 1):   sqrt y^0.5,   linear y,   square y^2,   exp (e^{3 y} - 1) / (e^3 - 1)

See SiMPO, appendix F.2: the paper names the four functions and the 10 m/s; the formulas here are our
reconstruction, scaled so that all of them map 0 to 0 and 10 m/s to 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable

FULL_SPEED = 10.0
"""Metres per second at which every landscape pays 1."""

LANDSCAPES: dict[str, Callable[[float], float]] = {
    "sqrt": math.sqrt,
    "linear": float,
    "square": lambda y: y * y,
    "exp": lambda y: math.expm1(3 * y) / math.expm1(3),
}


def speed_reward(speed: float, landscape: str) -> float:
    """Reward in [0, 1] of a forward speed in metres per second."""
    return LANDSCAPES[landscape](min(max(speed / FULL_SPEED, 0.0), 1.0))
