"""The stochastic sampler of Flow-GRPO, an Euler-Maruyama step of the reverse SDE with a tractable likelihood.

With sg = a sqrt(t / (1 - t)) and dt = s - t < 0, each step is the Gaussian

    mean = x_t (1 + sg^2 dt / (2 t)) + v (1 + sg^2 (1 - t) / (2 t)) dt,    std = sg sqrt(-dt)

See Flow-GRPO, https://arxiv.org/abs/2505.05470. All a give the same marginals as steps shrink;
a = 0 is ``ddim``. In SA-Solver's terms a^2 = 2 tau^2. Since sg^2 (1 - t) / t = a^2, d mean / d v = (1 + a^2 / 2) dt
at all t < 1.
"""

from __future__ import annotations

import math

from awm.samplers.gaussian import GaussianSampler
from awm.types import Transition


class FlowSDE(GaussianSampler):
    """Euler-Maruyama sampler that can return the log-probability of each of its steps.

    Its arguments are those of ``GaussianSampler``; ``noise_level`` is a, 0.7 in Flow-GRPO and MixGRPO.
    """

    def stochastic_step(self, index: int) -> Transition:
        """Step ``index`` of the grid with noise a."""
        t, s = self.grid[index : index + 2]
        # sg is infinite at t = 1, so the first step takes the 1 - t under its root from the next time (as published).
        variance_rate = self.noise_level**2 * t / (1 - (s if t == 1 else t))
        dt = s - t
        return Transition(
            t=t,
            s=s,
            x_weight=1 + variance_rate * dt / (2 * t),
            velocity_weight=(1 + variance_rate * (1 - t) / (2 * t)) * dt,
            std=math.sqrt(-variance_rate * dt),
        )


def transitions(grid: tuple[float, ...], *, noise_level: float, sde_frac: float = 1.0) -> tuple[Transition, ...]:
    """The n steps of a grid; step i is stochastic if i < n sde_frac, an Euler step of the ODE otherwise."""
    return FlowSDE(grid=grid, noise_level=noise_level, sde_frac=sde_frac).steps
