"""Coefficients-preserving sampling: predict the data, noise it again, a fixed share of the noise being new.

    mean = (1 - s) (x_t - t v) + s cos(eta pi / 2) (x_t + (1 - t) v),    std = s sin(eta pi / 2)

so that (s cos)^2 + std^2 = s^2: the level of noise is the path's at any number of steps, where an Euler-Maruyama step
of an SDE leaves too much. The likelihood is taken as -mean (x_s - mean)^2, whose gradient stays bounded as s -> 0. See
FlowCPS, https://arxiv.org/abs/2509.05952.

It is the level of noise that is kept, not the law of the data (derived here): replacing noise that was predicted by
noise that is new takes (1 - cos)^2 (1 - t)^2 Var(x_0 | x_t) from the variance of x_s at each step, also if it is short.
For Gaussian data of std 0.5, eta = 0.7 tends to 0.424 as steps shrink; with eta as 1 / sqrt(number of steps), to 0.5.
"""

from __future__ import annotations

import math
from typing import ClassVar

from awm.samplers.gaussian import GaussianSampler
from awm.samplers.transition import renoising_step
from awm.types import Transition


class CPS(GaussianSampler):
    """Sampler that preserves the level of noise; its last step is deterministic.

    Its arguments are those of ``GaussianSampler``; ``noise_level`` is eta, 0.7 and up in FlowCPS. It is at most 1, all
    noise new: cos enters only by its size, so that beyond 1 it would be the kernel of 2 - eta.
    """

    most_noise: ClassVar[float] = 1.0

    def stochastic_step(self, index: int) -> Transition:
        """Step ``index`` of the grid with noise eta."""
        t, s = self.grid[index : index + 2]
        return renoising_step(t, s, fresh=math.sin(self.noise_level * math.pi / 2), unscaled=True)
