"""The stochastic sampler of DanceGRPO: the reverse SDE with noise of constant size, Euler-Maruyama.

With dt = s - t < 0, each step is the Gaussian

    mean = x_t + dt (v + eta^2 / (2 t) (x_t + (1 - t) v)),    std = eta sqrt(-dt)

where -(x_t + (1 - t) v) / t is the score. See DanceGRPO, https://arxiv.org/abs/2505.07818. All eta give the same
marginals as steps shrink. Unlike Flow-GRPO's, the noise does not fade toward the data: the last steps leave some of it.
"""

from __future__ import annotations

import math

from awm.samplers.gaussian import GaussianSampler
from awm.types import Transition


class DanceSDE(GaussianSampler):
    """Euler-Maruyama sampler with constant noise and likelihoods.

    Its arguments are those of ``GaussianSampler``; ``noise_level`` is eta, 0.3 in DanceGRPO.
    """

    def stochastic_step(self, index: int) -> Transition:
        """Step ``index`` of the grid with noise eta."""
        t, s = self.grid[index : index + 2]
        dt, pull = s - t, self.noise_level**2 / (2 * t)
        return Transition(
            t=t,
            s=s,
            x_weight=1 + pull * dt,
            velocity_weight=(1 + pull * (1 - t)) * dt,
            std=self.noise_level * math.sqrt(-dt),
        )
