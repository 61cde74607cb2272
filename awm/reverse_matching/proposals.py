"""Where the candidates for the data behind a noisy point come from, and what each must be weighed with.

The posterior of the data is p(x_0) N(x_t; alpha x_0, sigma^2 I). Candidates are pairs (x_0, eps) with
alpha x_0 + sigma eps = x_t exactly, so that no later division cancels. ``Candidates.log_weight`` is the proposal's part
of the importance weight; add log p(x_0) = Q / T (+ log q) to it. With l = log N(x_0; x_t / alpha, (sigma / alpha)^2 I):

    reverse Gaussian   eps ~ N(0, I)          0                       good near the data
    known density r    x_0 ~ r                l - log r               good near noise
    mixture            some of each           l - log(c l + (1-c) r)  the balance heuristic; good at every t
    atoms              x_0 ~ p_old, unknown   l                       the target becomes p_old exp(Q / T)

Reverse sampling is arXiv 2601.08136's view; the weights are derived here (the balance heuristic is Veach and Guibas,
1995). A constant for each x_t cancels in every one of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from awm.reverse_matching.path import STRAIGHT, TINY, Path


@dataclass(frozen=True, slots=True)
class Candidates:
    """N pairs of data and noise for each of B noisy points.

    Attributes:
        x_0: [B, N, d] data.
        eps: [B, N, d] noise; alpha x_0 + sigma eps = x_t.
        log_weight: [B, N] the proposal's part of the log importance weight.
    """

    x_0: Tensor
    eps: Tensor
    log_weight: Tensor


@dataclass(frozen=True, slots=True)
class GaussianProposal:
    """N(mean, std^2 I), a proposal with a known density; a std of at least 1.5 times the target's covers its modes.

    Attributes:
        mean: scalar, or a tensor that broadcasts over [B, N, d].
        std: the same; positive.
    """

    mean: float | Tensor
    std: float | Tensor

    def sample(self, noise: Tensor) -> Tensor:
        """Data made of standard noise [B, N, d]."""
        return self.mean + self.std * noise

    def log_density(self, x_0: Tensor) -> Tensor:
        """[B, N] log density of [B, N, d] data."""
        std = torch.as_tensor(self.std, dtype=x_0.dtype, device=x_0.device)
        normalised = (x_0 - self.mean) / std
        return (-0.5 * normalised.square() - std.log() - 0.5 * math.log(2 * math.pi)).sum(-1)


def data_log_likelihood(eps: Tensor, t: Tensor, *, path: Path = STRAIGHT) -> Tensor:
    """Likelihood l = log N(x_0; x_t / alpha, (sigma / alpha)^2 I) of the data, normalised over x_0.

        l = -|eps|^2 / 2 + d log(alpha / sigma) - (d / 2) log 2 pi

    Args:
        eps: [B, N, d] noise of the candidates.
        t: [B] times.
        path: the Gaussian path.

    Returns:
        [B, N]; finite at t = 0 and 1, where alpha or sigma is held at a floor.
    """
    alpha, sigma = (f(t).clamp_min(TINY)[:, None] for f in (path.alpha, path.sigma))
    return -0.5 * eps.square().sum(-1) + eps.shape[-1] * (torch.log(alpha / sigma) - 0.5 * math.log(2 * math.pi))


def reverse_candidates(x_t: Tensor, t: Tensor, eps: Tensor, *, path: Path = STRAIGHT) -> Candidates:
    """Data read back from fresh noise, x_0 = (x_t - sigma eps) / alpha; few of them count as t goes to 1.

    Args:
        x_t: [B, d] noisy points.
        t: [B] times.
        eps: [B, N, d] standard normal.
        path: the Gaussian path.
    """
    _check(x_t, t, eps)
    return Candidates(path.data(x_t[:, None], eps, t[:, None, None]), eps, torch.zeros_like(eps[..., 0]))


def policy_candidates(x_t: Tensor, t: Tensor, x_0: Tensor, log_density: Tensor, *, path: Path = STRAIGHT) -> Candidates:
    """Draws of a policy whose density is known; few of them count as t goes to 0.

    Args:
        x_t: [B, d] noisy points.
        t: [B] times.
        x_0: [B, N, d] draws.
        log_density: [B, N] their log r(x_0).
        path: the Gaussian path.
    """
    _check(x_t, t, x_0)
    eps = path.noise(x_t[:, None], x_0, t[:, None, None])
    return Candidates(x_0, eps, data_log_likelihood(eps, t, path=path) - log_density)


def mixture_candidates(
    x_t: Tensor,
    t: Tensor,
    eps: Tensor,
    x_0: Tensor,
    log_density: Callable[[Tensor], Tensor],
    *,
    path: Path = STRAIGHT,
) -> Candidates:
    """Both of the above in one set, each weighed as a draw of the mixture (balance heuristic). The default choice.

    Args:
        x_t: [B, d] noisy points.
        t: [B] times.
        eps: [B, M, d] standard normal, for the reverse part.
        x_0: [B, N - M, d] draws of the known density.
        log_density: log r of [B, N, d] data, [B, N]; it is asked about both parts.
        path: the Gaussian path.
    """
    reverse = reverse_candidates(x_t, t, eps, path=path)
    policy = path.noise(x_t[:, None], x_0, t[:, None, None])
    data, noise = torch.cat((reverse.x_0, x_0), 1), torch.cat((eps, policy), 1)
    likelihood = data_log_likelihood(noise, t, path=path)
    share = eps.shape[1] / data.shape[1]
    mixture = torch.logaddexp(likelihood + math.log(share), log_density(data) + math.log1p(-share))
    return Candidates(data, noise, likelihood - mixture)


def atom_candidates(
    x_t: Tensor, t: Tensor, x_0: Tensor, *, generator_eps: Tensor | None = None, path: Path = STRAIGHT
) -> Candidates:
    """Draws of a policy without a known density, shared or not; the target is then p_old exp(Q / T).

    Generator rule: if x_t was made of one of the atoms, that atom must stay among the candidates. With it the
    self-normalised mean of exact draws is unbiased for every N (iterated importance resampling); without it, not.

    Args:
        x_t: [B, d] noisy points.
        t: [B] times.
        x_0: [B, N, d] draws; the first of each row is the generator if ``generator_eps`` is given.
        generator_eps: [B, d] the noise that made x_t of the first atom, kept as it is.
        path: the Gaussian path.
    """
    _check(x_t, t, x_0)
    eps = path.noise(x_t[:, None], x_0, t[:, None, None])
    if generator_eps is not None:
        eps = torch.cat((generator_eps[:, None], eps[:, 1:]), 1)
    return Candidates(x_0, eps, data_log_likelihood(eps, t, path=path))


def _check(x_t: Tensor, t: Tensor, candidates: Tensor) -> None:
    if x_t.ndim != 2 or t.shape != x_t.shape[:1] or candidates.shape[::2] != x_t.shape:
        raise ValueError(
            f"expected x_t [B, d], t [B] and candidates [B, N, d]; got {list(x_t.shape)}, {list(t.shape)} and "
            f"{list(candidates.shape)}. Flatten the features into one axis."
        )
