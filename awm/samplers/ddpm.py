"""DDIM with eta > 0, the sampler of DDPO, carried over to the straight path.

In the variance-preserving terms of DDIM (https://arxiv.org/abs/2010.02502, eq. 12 and 16), y_t = sqrt(ab) x_0 +
sqrt(1 - ab) eps with the step

    y_s = sqrt(ab') x_0 + sqrt(1 - ab' - var) eps + sqrt(var) n,    var = eta^2 (1 - ab') / (1 - ab) (1 - ab / ab')

and x_t = y_t sqrt((1 - t)^2 + t^2) where sqrt(ab) = (1 - t) / sqrt((1 - t)^2 + t^2). The change of variables leaves

    x_s = (1 - s) (x_t - t v) + sqrt(s^2 - std^2) (x_t + (1 - t) v) + std n
    std = eta s sqrt(1 - q^2),    q = (1 - t) s / ((1 - s) t),  the ratio of the noise-to-signal ratios

which is finite at t = 1 (q = 0) and deterministic at s = 0. eta = 1 is the exact reversal of the noising process, DDPM,
eta = 0 is ``ddim``. The likelihood is that of DDPO, https://arxiv.org/abs/2305.13301; the form in t is derived here.
"""

from __future__ import annotations

import math
from typing import ClassVar

from awm.samplers.gaussian import GaussianSampler
from awm.samplers.transition import renoising_step
from awm.types import Transition


class DDPM(GaussianSampler):
    """Ancestral sampler with likelihoods; its last step is deterministic.

    Its arguments are those of ``GaussianSampler``; ``noise_level`` is eta, 1 in DDPO and at most 1.
    """

    most_noise: ClassVar[float] = 1.0

    def stochastic_step(self, index: int) -> Transition:
        """Step ``index`` of the grid with noise eta."""
        t, s = self.grid[index : index + 2]
        q = (1 - t) * s / ((1 - s) * t)
        return renoising_step(t, s, fresh=self.noise_level * math.sqrt(1 - q**2))
