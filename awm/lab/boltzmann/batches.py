"""What a flow is matched with: noisy points and a velocity for each, from a density alone or from its samples."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from awm.flow.path import interpolate, target_velocity
from awm.lab.boltzmann.mixture import GaussianMixture
from awm.reverse_matching import (
    Candidates,
    Estimator,
    FisherInformation,
    GaussianProposal,
    cap_norm,
    mixture_candidates,
    velocity_target,
)

FIRST_TIME, LAST_TIME = 0.02, 0.98
BROAD_SHARE = 0.25
"""Of the noisy points, those made of broad data, so that a mode that the flow has lost can come back."""
ENOUGH = 4.0
"""Effective samples from which on a point counts fully."""


@dataclass(frozen=True, slots=True)
class BatchSettings:
    """Numbers that make a batch; the defaults are those of the experiment.

    Attributes:
        size: noisy points.
        num_candidates: N at each point, half reverse, half from the broad Gaussian.
        broad_std: of that Gaussian.
        first_temperature: T_0; falls linearly to 1 over the first third.
        largest_norm: longer targets are cut to it, which is counted.
    """

    size: int = 256
    num_candidates: int = 64
    broad_std: float = 2.5
    first_temperature: float = 4.0
    largest_norm: float = 20.0


@dataclass(frozen=True, slots=True)
class Batch:
    """Noisy points, what the velocity there is matched with, and how much each counts.

    Attributes:
        x_t: [B, d].
        t: [B].
        target: [B, d].
        weight: [B] in [0, 1].
        ess_share: mean effective sample size over N; NaN for exact samples.
        clipped_share: share of targets that were cut; NaN for exact samples.
    """

    x_t: Tensor
    t: Tensor
    target: Tensor
    weight: Tensor
    ess_share: float = float("nan")
    clipped_share: float = float("nan")


class DensityBatches:
    """Batches from log p and its gradient alone, by one estimator of reverse flow matching.

    Args:
        target: whose log density is Q (float32).
        estimator: of the velocity.
        settings: of a batch.
        generator: its state moves on.
    """

    def __init__(
        self, target: GaussianMixture, estimator: Estimator, settings: BatchSettings, generator: torch.Generator
    ) -> None:
        self.target, self.estimator, self.settings, self.generator = target, estimator, settings, generator
        first = 1 / settings.broad_std**2
        self.fisher = FisherInformation(torch.tensor(first), temperature=settings.first_temperature)

    def __call__(self, own: Tensor, progress: float) -> Batch:
        """The batch at ``progress`` in [0, 1) of training.

        Args:
            own: [num, d] samples of the flow as it is, what most points are made of.
            progress: sets the temperature.
        """
        x_t, t = self._points(own)
        temperature = 1 + (self.settings.first_temperature - 1) * max(0.0, 1 - 3 * progress)
        self.fisher = self.fisher.at(temperature)
        found = self._candidates(x_t, t)
        gradient = self.target.score(found.x_0) / temperature
        log_weight = found.log_weight + self.target.log_density(found.x_0) / temperature
        got = velocity_target(
            found.x_0, found.eps, gradient, log_weight, t, estimator=self.estimator, fisher=self.fisher.value
        )
        self.fisher = self.fisher.updated(got.weight, gradient, temperature=temperature, valid=got.valid)
        goal, cut = cap_norm(got.target, self.settings.largest_norm / x_t.shape[1] ** 0.5)
        ess_share = float(got.ess.mean()) / found.x_0.shape[1]
        return Batch(x_t, t, goal, (got.ess / ENOUGH).clamp(max=1), ess_share, float(cut.float().mean()))

    def _points(self, own: Tensor) -> tuple[Tensor, Tensor]:
        size, broad = self.settings.size, int(self.settings.size * BROAD_SHARE)
        index = torch.randint(len(own), (size - broad,), generator=self.generator)
        wide = self.settings.broad_std * torch.randn(broad, own.shape[1], generator=self.generator)
        return _noised(torch.cat((own[index], wide)), self.generator)[::2]

    def _candidates(self, x_t: Tensor, t: Tensor) -> Candidates:
        half, wide = self.settings.num_candidates // 2, GaussianProposal(0.0, self.settings.broad_std)
        noise = torch.randn(2, len(t), half, x_t.shape[1], generator=self.generator)
        return mixture_candidates(x_t, t, noise[0], wide.sample(noise[1]), wide.log_density)


def sample_batch(target: GaussianMixture, size: int, generator: torch.Generator) -> Batch:
    """Ordinary flow matching: noised draws of the target and the velocity of each. The reference."""
    x_0 = target.sample(size, generator)
    x_t, eps, t = _noised(x_0, generator)
    return Batch(x_t, t, target_velocity(x_0, eps), torch.ones_like(t))


def _noised(x_0: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """x_t, eps and t of data [B, d]."""
    t = FIRST_TIME + (LAST_TIME - FIRST_TIME) * torch.rand(len(x_0), generator=generator)
    eps = torch.randn(x_0.shape, generator=generator)
    return interpolate(x_0, eps, t), eps, t
