"""A flow trained on an unnormalised density alone, with the velocity of one estimator as its regression target.

loss = mean over x_t of c |v_theta(x_t, t) - sg[v_hat]|^2 with c = min(1, ESS / 4), which mutes points that no candidate
explains. The temperature falls from T_0 to 1 over the first third of training: with the final one from the start, one
candidate has all the weight. "samples" is the reference: ordinary flow matching on draws of the target, which the
others do not have.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import fmean
from typing import Literal

import torch
from torch import Tensor

from awm.flow.rng import sample_generator
from awm.lab.boltzmann.batches import Batch, BatchSettings, DensityBatches, sample_batch
from awm.lab.boltzmann.judging import sample_flow
from awm.lab.boltzmann.mixture import GaussianMixture
from awm.lab.networks import Velocity
from awm.objectives.terms import velocity_mse

Method = Literal["noise", "gradient", "combined", "samples"]
METHODS: tuple[Method, ...] = ("noise", "gradient", "combined", "samples")


@dataclass(frozen=True, slots=True)
class FlowSettings:
    """Numbers of one training run; the defaults are those of the experiment.

    Attributes:
        steps: updates.
        learning_rate: of Adam; falls linearly to ``last_learning_rate``.
        last_learning_rate: at the end.
        average_decay: of the averaged weights that sample and are judged.
        refresh: steps between two samplings of the flow's own data.
        own: samples in them.
        sampling_steps: of DDIM, when judged; a third of it for the flow's own data.
        width: hidden features; three hidden layers.
        batch: what a batch is.
    """

    steps: int = 1200
    learning_rate: float = 1e-3
    last_learning_rate: float = 1e-5
    average_decay: float = 0.995
    refresh: int = 50
    own: int = 2048
    sampling_steps: int = 48
    width: int = 128
    batch: BatchSettings = field(default_factory=BatchSettings)


@dataclass(frozen=True, slots=True)
class TrainedFlow:
    """The averaged network, and what its training was like.

    Attributes:
        velocity: v(x_t [B, d], t [B]).
        clipped_share: share of targets that were cut, over all steps; NaN for exact samples.
        ess_share: mean effective sample size over N, over all steps; NaN for exact samples.
    """

    velocity: Velocity
    clipped_share: float
    ess_share: float


def train_flow(target: GaussianMixture, method: Method, settings: FlowSettings, *, seed: int) -> TrainedFlow:
    """Train a velocity network on log p of ``target`` (float32) with one estimator, or on its samples."""
    generator = sample_generator(seed, "boltzmann/flow", 0, 0)
    network = Velocity(target.means.shape[1], generator, width=settings.width, depth=3)
    average = copy.deepcopy(network).requires_grad_(False)
    optimizer = torch.optim.Adam(network.parameters(), lr=settings.learning_rate)
    next_batch = _batches(target, method, settings, average, generator)
    batches = []
    for step in range(settings.steps):
        batch = next_batch(step)
        _set_learning_rate(optimizer, settings, step / settings.steps)
        _update(network, optimizer, batch)
        _move_average(average, network, min(settings.average_decay, (step + 1) / (step + 10)))
        batches.append((batch.clipped_share, batch.ess_share))
    clipped, ess = zip(*batches, strict=True)
    return TrainedFlow(average, fmean(clipped), fmean(ess))


def _batches(
    target: GaussianMixture, method: Method, settings: FlowSettings, average: Velocity, generator: torch.Generator
) -> Callable[[int], Batch]:
    """The batch of each step; the flow's own data are broad at first, then drawn anew from its average."""
    if method == "samples":
        return lambda step: sample_batch(target, settings.batch.size, generator)
    batches = DensityBatches(target, method, settings.batch, generator)
    own: Tensor = settings.batch.broad_std * torch.randn(settings.own, target.means.shape[1], generator=generator)

    def next_batch(step: int) -> Batch:
        nonlocal own
        if step and step % settings.refresh == 0:
            own = sample_flow(average, settings.own, generator, steps=settings.sampling_steps // 3)
        return batches(own, step / settings.steps)

    return next_batch


def _update(network: Velocity, optimizer: torch.optim.Optimizer, batch: Batch) -> None:
    error = velocity_mse(network(batch.x_t, batch.t)[None], batch.target[None])[0]
    optimizer.zero_grad()
    (batch.weight * error).mean().backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
    optimizer.step()


def _set_learning_rate(optimizer: torch.optim.Optimizer, settings: FlowSettings, progress: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = settings.learning_rate + progress * (settings.last_learning_rate - settings.learning_rate)


@torch.no_grad()
def _move_average(average: Velocity, network: Velocity, decay: float) -> None:
    for slow, fast in zip(average.parameters(), network.parameters(), strict=True):
        slow.lerp_(fast, 1 - decay)
