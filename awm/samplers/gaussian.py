"""What all samplers with Gaussian steps share: they walk the grid, and remember what a likelihood needs."""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Collection
from itertools import pairwise
from typing import ClassVar

import torch
from torch import Tensor

from awm.flow.path import at_least_float32, batch_time
from awm.flow.times import check_grid
from awm.interfaces import Randn, VelocityField
from awm.samplers.transition import ode_step, transition_log_prob, transition_mean
from awm.samplers.window import Window
from awm.types import Trajectory, Transition


class GaussianSampler(ABC):
    """A sampler whose steps are those of the ODE, but for some that add noise: subclasses say which noise.

    As constructed, its window is that of seed 0's first epoch; ``for_epoch`` gives the others.

    Args:
        grid: n + 1 times from noise to data, ``awm.flow.times.shifted_grid(n)`` for SD3.
        noise_level: how much noise a stochastic step adds, in the subclass's units; 0 makes all steps the ODE's.
        sde_frac: share of the steps, from the noise end, that are stochastic.
        window: instead of ``sde_frac``, a schedule of windows of stochastic steps, see ``awm.samplers.window``; empty
            for none.
        window_size: steps in a window.
        window_range: (first, end) of the steps a window may cover; None: all but the last, whose noise would stay in
            the image.
        window_interval: epochs between the moves of a window.
        window_stride: steps it moves by.

    Raises:
        ValueError: noise level, share or window out of range.
    """

    most_noise: ClassVar[float] = math.inf

    def __init__(
        self,
        *,
        grid: tuple[float, ...],
        noise_level: float = 0.7,
        sde_frac: float = 1.0,
        window: str = "",
        window_size: int = 2,
        window_range: tuple[int, int] | None = None,
        window_interval: int = 25,
        window_stride: int = 1,
    ) -> None:
        self.grid = check_grid(grid)
        self.noise_level = noise_level
        self._check_options(sde_frac)
        num_steps = len(self.grid) - 1
        self.window: Window | None = None
        noisy = range(math.ceil(num_steps * sde_frac))
        if window:
            span = window_range or (0, num_steps - 1)
            if not 0 <= span[0] < span[1] <= num_steps:
                raise ValueError(f"window_range is (first, end) within (0, {num_steps}) for this grid, not {span}.")
            self.window = Window(window, window_size, span, window_interval, window_stride)
            noisy = self.window.steps(seed=0, epoch=0)
        self.steps = self._steps(noisy)

    @abstractmethod
    def stochastic_step(self, index: int) -> Transition:
        """Step ``index`` of the grid with this sampler's noise."""

    def for_epoch(self, seed: int, epoch: int) -> GaussianSampler:
        """The sampler with the window of ``epoch``; itself if it has none. See ``awm.interfaces.VariesByEpoch``."""
        if self.window is None:
            return self
        other = copy.copy(self)
        other.steps = self._steps(self.window.steps(seed, epoch))
        return other

    def __call__(self, velocity: VelocityField, x_1: Tensor, randn: Randn, *, keep_states: bool = False) -> Trajectory:
        """Integrate from x_1 [B, C, H, W]; one noise draw per stochastic step."""
        x = at_least_float32(x_1)
        states, velocities, log_prob = [x], [], []
        for step in self.steps:
            v = velocity(x, batch_time(step.t, x))
            following = transition_mean(x, v, step)
            if step.std > 0:
                following = following + step.std * randn()
            if keep_states:
                states.append(following)
                velocities.append(at_least_float32(v))
                # Of the state as it is stored, which is what an objective will ask about.
                log_prob.append(transition_log_prob(following, x, v, step))
            x = following
        if not keep_states:
            return Trajectory(x, self.grid, steps=self.steps)
        return Trajectory(
            x,
            self.grid,
            states=torch.stack(states),
            log_prob=torch.stack(log_prob),
            velocities=torch.stack(velocities),
            steps=self.steps,
        )

    def _steps(self, noisy: Collection[int]) -> tuple[Transition, ...]:
        return tuple(
            self.stochastic_step(i) if i in noisy and self.noise_level > 0 else ode_step(t, s)
            for i, (t, s) in enumerate(pairwise(self.grid))
        )

    def _check_options(self, sde_frac: float) -> None:
        if not 0 <= self.noise_level <= self.most_noise or not 0 <= sde_frac <= 1:
            most = "" if math.isinf(self.most_noise) else f" and at most {self.most_noise:g}"
            raise ValueError(
                f"{type(self).__name__} needs noise_level >= 0{most} and sde_frac in [0, 1], not noise_level="
                f"{self.noise_level} and sde_frac={sde_frac}."
            )
