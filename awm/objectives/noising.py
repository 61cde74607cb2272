"""A micro-batch noised at several times, and the velocities that weight sets predict for it.

The T times of B samples are packed into one forward of T B rows, time-major: row j B + i is sample i at its
time j. Every objective that trains on the forward process starts here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from awm.flow.path import interpolate, target_velocity
from awm.flow.rng import SampleNoise
from awm.flow.times import draw_times, validate_times
from awm.interfaces import Policy, WeightSet
from awm.types import Condition, Experience


@dataclass(frozen=True, slots=True)
class NoisedBatch:
    """B samples at T times each.

    Attributes:
        x_t: [T, B, C, H, W] states.
        t: [T, B] times.
        target: [T, B, C, H, W] velocity eps - x_0 of the path.
        condition: of the T B rows.
        kl_times: [K, B] numbers of the times at which the KL terms are evaluated; None: all.
    """

    x_t: Tensor
    t: Tensor
    target: Tensor
    condition: Condition
    kl_times: Tensor | None = None

    def at(self, times: Tensor) -> NoisedBatch:
        """The same samples at those of their times that [K, B] numbers name."""
        rows = times.numel()
        condition = Condition(self.condition.embeds[:rows], self.condition.pooled[:rows])  # the same at every time
        return NoisedBatch(at_times(self.x_t, times), at_times(self.t, times), at_times(self.target, times), condition)

    def velocity(self, policy: Policy, guidance_scale: float) -> Tensor:
        """[T, B, C, H, W] velocity of the active weights, all times in one forward."""
        packed = policy.model.velocity(self.x_t.flatten(0, 1), self.t.flatten(), self.condition, guidance_scale)
        return packed.reshape(self.x_t.shape)

    @torch.no_grad()
    def frozen_velocity(self, policy: Policy, weights: WeightSet, guidance_scale: float) -> Tensor:
        """As ``velocity``, of another weight set and without gradient."""
        with policy.using(weights):
            return self.velocity(policy, guidance_scale)

    def frozen_velocities(
        self, policy: Policy, guidance_scale: float, needed: Mapping[WeightSet, bool]
    ) -> dict[WeightSet, Tensor]:
        """``frozen_velocity`` of the weight sets that are needed, and no forward for the others."""
        names = [name for name, wanted in needed.items() if wanted]
        return {name: self.frozen_velocity(policy, name, guidance_scale) for name in names}


@dataclass(frozen=True, slots=True)
class Noising:
    """How an objective noises a micro-batch.

    Attributes:
        grid: times of the rollout, n + 1, as scheduled.
        num_times: T, times each sample is noised at.
        fraction: share of the grid that times are drawn from, from the noise end.
        kind: distribution of the times, see ``awm.flow.times.draw_times``.
        shift: of the two continuous distributions.
        group_noise: the images of a prompt share their times and noise.
    """

    grid: tuple[float, ...]
    num_times: int = 6
    fraction: float = 0.9
    kind: str = "discrete_wo_init"
    shift: float = 3.0
    group_noise: bool = False

    def __post_init__(self) -> None:
        validate_times(self.kind, num_times=self.num_times, grid=self.grid, fraction=self.fraction)

    def __call__(self, batch: Experience, *, seed: int, epoch: int, inner_epoch: int) -> NoisedBatch:
        """The micro-batch at T times each, with fresh numbers for every pass over the epoch's samples."""
        keys = batch.group if self.group_noise else batch.sample_index
        noise = SampleNoise(seed, f"train/{inner_epoch}", epoch, keys, batch.x_0.device)
        times = partial(draw_times, kind=self.kind, grid=self.grid, fraction=self.fraction, shift=self.shift)
        return noise_batch(batch, noise, num_times=self.num_times, draw_times=times)


def noise_batch(
    batch: Experience, noise: SampleNoise, *, num_times: int, draw_times: Callable[[Tensor], Tensor]
) -> NoisedBatch:
    """Draw each sample's times and noise, and noise its x_0 with them.

    Args:
        batch: B samples.
        noise: their generators, in the same order; times are drawn before noise.
        num_times: T.
        draw_times: uniform numbers [T, B] -> times [T, B], ``awm.flow.times.draw_times`` with its options.
    """
    t = draw_times(noise.rand((num_times,)).T)
    return noised_with(batch, noise.randn((num_times, *batch.x_0.shape[1:])).transpose(0, 1), t)


def at_times(values: Tensor, times: Tensor) -> Tensor:
    """[K, B, ...] of values [T, B, ...] at each sample's times, [K, B] numbers below T."""
    return values[times, torch.arange(times.shape[1], device=times.device)]


def random_times(noise: SampleNoise, num_times: int, count: int) -> Tensor:
    """[count, B] different numbers below ``num_times`` for each sample, every subset with the same probability."""
    return noise.rand((num_times,)).argsort(dim=1)[:, :count].T


def noised_with(batch: Experience, eps: Tensor, t: Tensor) -> NoisedBatch:
    """B samples with noise [T, B, C, H, W] at times [T, B]."""
    return NoisedBatch(
        x_t=interpolate(batch.x_0, eps, t),
        t=t,
        target=target_velocity(batch.x_0, eps),
        condition=batch.condition.take(batch.prompt_index).repeat(len(t)),
    )
