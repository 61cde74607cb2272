"""How much of the zero-mean Stein field to take away: the coefficient Lambda of the estimator family.

With v = a x_0 + b eps and u = alpha eps + sigma g, every Lambda that does not depend on the candidates leaves the mean
of sum_i w_i (v_i - Lambda u_i) as it is (Langevin-Stein identity; arXiv 2601.08136 builds its family on it).
Lambda = 0 is the noise expectation, kappa / alpha^2 the gradient expectation. Since Cov(v, u) = kappa I and
E[u u^T] = alpha^2 I + sigma^2 J with J = E[-grad^2 log p], the least variance is at

    Lambda* = kappa / (alpha^2 + sigma^2 j),   j = tr J / d

(target score matching, arXiv 2402.08667; the same optimum in control variate score matching, arXiv 2512.20003). The
forms here are our derivation, save the two sample-covariance forms, which follow the paper's public code.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from awm.reverse_matching.path import PathPoint

# The gradient expectation divides by alpha^2; below this alpha it is meaningless and only has to stay finite.
_FLOOR = 1e-3
_RIDGE, _CLIP = 1e-4, 2.0


@dataclass(frozen=True, slots=True)
class WeightedCandidates:
    """Candidates with their normalised weights, and the field u = alpha eps + sigma g at each.

    Attributes:
        weight: [B, N], sum 1 over N.
        x_0: [B, N, d] data.
        eps: [B, N, d] noise.
        gradient: [B, N, d] g.
        stein: [B, N, d] u.
    """

    weight: Tensor
    x_0: Tensor
    eps: Tensor
    gradient: Tensor
    stein: Tensor

    def mean(self, x: Tensor) -> Tensor:
        """[B, d] weighted mean of [B, N, d]."""
        return (self.weight[..., None] * x).sum(1)

    def centred(self, x: Tensor) -> Tensor:
        """[B, N, d] minus its weighted mean."""
        return x - self.mean(x)[:, None]


def gradient_coefficient(point: PathPoint) -> Tensor:
    """Lambda = kappa / alpha^2, which leaves only the gradient: 1 / (1 - t)^2 on the straight path."""
    return point.coupling / point.alpha.clamp_min(_FLOOR).square()


def combined_coefficient(point: PathPoint, fisher: float | Tensor) -> Tensor:
    """Lambda = kappa / (alpha^2 + sigma^2 j) with j = E_p |g|^2 / d, the minimum of the variance averaged over x_t.

    E[J(x_t)] over x_t ~ p_t is the Fisher information E_p[g g^T] at every t, so one number serves the whole path.

    Args:
        point: [B, 1] coefficients of the path.
        fisher: j > 0, a scalar or anything that broadcasts against [B, d] (one for each dimension, for instance).
    """
    return point.coupling / (point.alpha.square() + point.sigma.square() * fisher)


def blend_coefficient(
    point: PathPoint, fisher: float | Tensor, found: WeightedCandidates, *, trust: float = 32.0
) -> Tensor:
    """The combined coefficient with a local curvature, believed as far as the effective sample size allows.

        sigma^2 j  ->  max(0, o sigma sum_i w_i <g_i, u_i> / d + (1 - o) sigma^2 j),   o = (ESS - 1) / (ESS - 1 + trust)

    E<g, u> = sigma tr J at each x_t, without second derivatives. The candidates fit their own coefficient, which
    adds a bias of order 1 / N. Our reconstruction: on mixtures it gains up to a third of the squared error with many
    effective samples, and loses where modes are Gaussian and apart, for there the constant is exact already.

    Args:
        point: [B, 1] coefficients of the path.
        fisher: j, see ``combined_coefficient``.
        found: weighted candidates.
        trust: effective samples - 1 at which both curvatures count the same.
    """
    excess = 1 / found.weight.square().sum(1, keepdim=True).clamp_min(1e-12) - 1
    share = excess / (excess + trust)
    local = point.sigma * found.mean(found.gradient * found.stein).mean(1, keepdim=True)
    prior = point.sigma.square() * fisher
    curvature = (share * local + (1 - share) * prior).clamp_min(0)
    return point.coupling / (point.alpha.square() + curvature)


def sample_coefficient(point: PathPoint, found: WeightedCandidates) -> Tensor:
    """Covariance of the weighted samples over their variance, one number for each x_t. For comparison.

        eta = -sum w^2 <eps - ebar, s - sbar> / (sum w^2 |s - sbar|^2 + 1e-4),   s = -u / alpha
        Lambda = eta kappa / alpha^2

    clipped to |eta| <= 2. It adapts to each x_t, which can halve the squared error with some tens of effective samples
    or near the data, but it estimates a covariance that is known: with few it is worse than the constant coefficient.
    """
    alpha = point.alpha.clamp_min(_FLOOR)
    noise, score = found.centred(found.eps), found.centred(-found.stein / alpha[..., None])
    square = found.weight.square()[..., None]
    covariance, variance = (square * noise * score).sum((1, 2)), (square * score.square()).sum((1, 2))
    eta = (-covariance / (variance + _RIDGE)).clamp(-_CLIP, _CLIP)
    return eta[:, None] * point.coupling / alpha.square()


def sample_coefficient_per_dimension(point: PathPoint, found: WeightedCandidates) -> Tensor:
    """The same for each dimension and in the data form, as the paper's public code computes it. For comparison.

        xi = -sum w^2 (x_0 - mean)(S - mean) / (sum w^2 (S - mean)^2 + 1e-4),   S = u / sigma
        Lambda = xi kappa / sigma^2

    clipped to |xi| <= 2; xi = sigma^2 eta / alpha^2.
    """
    sigma = point.sigma.clamp_min(_FLOOR)
    data, score = found.centred(found.x_0), found.centred(found.stein / sigma[..., None])
    square = found.weight.square()[..., None]
    covariance, variance = (square * data * score).sum(1), (square * score.square()).sum(1)
    return (-covariance / (variance + _RIDGE)).clamp(-_CLIP, _CLIP) * point.coupling / sigma.square()
