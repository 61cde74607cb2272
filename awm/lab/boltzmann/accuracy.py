"""Bias and variance of the estimators of the velocity, measured where the velocity is known.

For each noisy point x_t ~ p_t, R independent sets of N candidates give R estimates with errors e_r:

    squared error   mean over r of |e_r|^2
    squared bias    mean over pairs r != s of <e_r, e_s>
    variance        the difference

averaged over points. Pairs of different sets make the squared bias unbiased itself; it can come out below zero where
it is smaller than its noise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from awm.flow.path import interpolate
from awm.flow.rng import sample_generator
from awm.lab.boltzmann.mixture import GaussianMixture
from awm.reverse_matching import (
    Candidates,
    Estimator,
    GaussianProposal,
    mixture_candidates,
    reverse_candidates,
    velocity_target,
)

Proposal = Literal["reverse", "mixture"]
ESTIMATORS: tuple[Estimator, ...] = ("noise", "gradient", "combined", "blend", "sample", "sample_per_dimension")
WIDE = GaussianProposal(0.3, 2.0)


@dataclass(frozen=True, slots=True)
class Accuracy:
    """How far the estimates of one cell are from the truth, averaged over points of p_t.

    Attributes:
        squared_error: mean |v_hat - v*|^2.
        squared_bias: mean |E v_hat - v*|^2.
        ess: mean effective sample size.
    """

    squared_error: float
    squared_bias: float
    ess: float

    @property
    def variance(self) -> float:
        """Mean of |v_hat - E v_hat|^2."""
        return self.squared_error - self.squared_bias


def true_fisher(target: GaussianMixture, *, num: int = 200_000) -> float:
    """Fisher information j = E_p |score|^2 / d from exact samples: 3.67 for the unequal mixture."""
    draws = target.sample(num, sample_generator(0, "boltzmann/fisher", 0, 0))
    return float(target.score(draws).square().mean())


def draw_candidates(proposal: Proposal, x_t: Tensor, t: Tensor, num: int, generator: torch.Generator) -> Candidates:
    """``num`` candidates at each x_t [B, d]; the two kinds of the mixture alternate, so that even slices have both."""
    size, dim = x_t.shape
    noise = torch.randn(size, num, dim, generator=generator, dtype=x_t.dtype)
    if proposal == "reverse":
        return reverse_candidates(x_t, t, noise)
    half = num // 2
    found = mixture_candidates(x_t, t, noise[:, :half], WIDE.sample(noise[:, half:]), WIDE.log_density)
    turn = torch.arange(2 * half).reshape(2, half).T.flatten()
    return Candidates(found.x_0[:, turn], found.eps[:, turn], found.log_weight[:, turn])


def measure(
    target: GaussianMixture,
    *,
    t: float,
    proposal: Proposal,
    sizes: Sequence[int],
    seed: int,
    fisher: float,
    points: int = 400,
    budget: int = 2048,
    estimators: Sequence[Estimator] = ESTIMATORS,
) -> dict[tuple[int, Estimator], Accuracy]:
    """Accuracy of every estimator at one time, for several numbers of candidates cut from the same draws.

    Args:
        target: whose log density is Q, at temperature 1.
        t: time.
        proposal: where candidates come from.
        sizes: numbers of candidates N, even; ``budget`` is a multiple of each and at least twice as large.
        seed: of points and candidates.
        fisher: j of the combined estimator.
        points: noisy points.
        budget: candidates at each point, shared out into budget / N sets.
        estimators: what is compared.
    """
    for size in sizes:
        if size % 2 or budget % size or budget < 2 * size:
            raise ValueError(f"{size} candidates do not fit a budget of {budget}; use an even divisor of at most half.")
    generator = sample_generator(seed, f"boltzmann/{proposal}/{t}", 0, 0)
    time = torch.full((points,), t, dtype=target.means.dtype)
    x_0 = target.sample(points, generator)
    x_t = interpolate(x_0, torch.randn(x_0.shape, generator=generator, dtype=x_0.dtype), time)
    found = draw_candidates(proposal, x_t, time, budget, generator)
    gradient, log_weight = target.score(found.x_0), found.log_weight + target.log_density(found.x_0)
    truth = target.prediction(x_t, time)[:, None]
    cells: dict[tuple[int, Estimator], Accuracy] = {}
    for size in sizes:
        sets = budget // size
        x, eps, g = (part.reshape(points * sets, size, -1) for part in (found.x_0, found.eps, gradient))
        weights, times = log_weight.reshape(points * sets, size), time.repeat_interleave(sets)
        for name in estimators:
            got = velocity_target(x, eps, g, weights, times, estimator=name, fisher=fisher)
            errors = got.velocity.reshape(points, sets, -1) - truth
            cells[size, name] = _accuracy(errors, got.ess)
    return cells


def _accuracy(errors: Tensor, ess: Tensor) -> Accuracy:
    """Of errors [points, sets, d]."""
    sets = errors.shape[1]
    squared = errors.square().sum(-1)
    pairs = (errors.sum(1).square().sum(-1) - squared.sum(1)) / (sets * (sets - 1))
    return Accuracy(float(squared.mean()), float(pairs.mean()), float(ess.mean()))
