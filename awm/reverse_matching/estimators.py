"""Reverse flow matching: the regression target at x_t from weighted candidates for the data behind it.

The target of flow (or diffusion) matching is a posterior mean, E[a x_0 + b eps | x_t]. Without samples of the data law
p ~ exp(Q / T), candidates are weighed by importance (``proposals``), and a multiple of the zero-mean field
u = alpha eps + sigma g, g = grad log p, is taken away:

    v_hat = sum_i w_i (v_i - Lambda u_i),   w = softmax(log_weight)

See Reverse Flow Matching, arXiv 2601.08136 (abstract read; formulas derived here and checked against exact answers).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from awm.flow.path import at_least_float32
from awm.reverse_matching.coefficients import (
    WeightedCandidates,
    blend_coefficient,
    combined_coefficient,
    gradient_coefficient,
    sample_coefficient,
    sample_coefficient_per_dimension,
)
from awm.reverse_matching.path import STRAIGHT, Path, PathPoint, Prediction

Estimator = Literal["noise", "gradient", "combined", "blend", "sample", "sample_per_dimension"]


@dataclass(frozen=True, slots=True)
class Estimate:
    """What the candidates say about the target at each x_t.

    Attributes:
        target: [B, d] estimated posterior mean of the prediction; zero where ``valid`` is False.
        ess: [B] effective sample size 1 / sum w^2, in [1, N]; 0 where ``valid`` is False.
        valid: [B] bool; False where no candidate has a finite weight: leave the row out of the loss.
        clipped: [B] bool; the correction was cut to the cap, which is a bias: report its share.
        weight: [B, N] normalised importance weights.
    """

    target: Tensor
    ess: Tensor
    valid: Tensor
    clipped: Tensor
    weight: Tensor

    @property
    def velocity(self) -> Tensor:
        """``target``, by its name for a flow."""
        return self.target


def normalised_weights(log_weight: Tensor, usable: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Softmax over candidates that survives -inf, NaN and +inf, in at least float32.

    Args:
        log_weight: [B, N].
        usable: [B, N] bool; False candidates get weight zero, as do NaN log-weights.

    Returns:
        [B, N] weights that sum to 1, or are all 0 in a row without any usable candidate, and the [B] mask of rows
        that have one.
    """
    log_weight = at_least_float32(log_weight)
    log_weight = torch.nan_to_num(log_weight, nan=-torch.inf, neginf=-torch.inf, posinf=1e30)
    if usable is not None:
        log_weight = log_weight.masked_fill(~usable, -torch.inf)
    peak = log_weight.amax(1, keepdim=True)
    valid = peak > -torch.inf
    weight = (log_weight - torch.where(valid, peak, 0.0)).softmax(1)
    return torch.where(valid, weight, 0.0), valid.squeeze(1)


def cap_norm(x: Tensor, cap: float) -> tuple[Tensor, Tensor]:
    """``x`` [B, d] scaled down to norm cap * sqrt(d) where it is longer, and the [B] mask of rows that were."""
    norm = x.norm(dim=-1, keepdim=True)
    limit = cap * x.shape[-1] ** 0.5
    return x * (limit / norm.clamp_min(1e-30)).clamp(max=1), (norm > limit).squeeze(-1)


@torch.no_grad()
def velocity_target(
    x_0: Tensor,
    eps: Tensor,
    gradient: Tensor | None,
    log_weight: Tensor,
    t: Tensor,
    *,
    estimator: Estimator = "combined",
    fisher: float | Tensor | None = None,
    path: Path = STRAIGHT,
    prediction: Prediction = "velocity",
    cap: float | None = None,
) -> Estimate:
    """Estimate E[a x_0 + b eps | x_t] by sum_i w_i (a x_0i + b eps_i - Lambda u_i), u = alpha eps + sigma g.

        noise     Lambda = 0                              no gradient needed; variance of order 1 at every t
        gradient  Lambda = kappa / alpha^2                explodes as t goes to 1
        combined  Lambda = kappa / (alpha^2 + sigma^2 j)  least variance; exact if the posterior is Gaussian
        blend, sample, sample_per_dimension               see ``awm.reverse_matching.coefficients``

    The gradient must be that of the same log density that ``log_weight`` contains (temperature, clamp and log q
    included), else the field has no zero mean and the correction is a bias. The result carries no gradient.

    Args:
        x_0: [B, N, d] candidate data.
        eps: [B, N, d] their noise, alpha x_0 + sigma eps = x_t.
        gradient: [B, N, d] g = grad log p(x_0); may be None for "noise".
        log_weight: [B, N] log p(x_0) plus the proposal's part (``Candidates.log_weight``); any constant may be added.
        t: [B] times in [0, 1], both ends included.
        estimator: row of the table above.
        fisher: j = E_p |g|^2 / d, from ``FisherInformation``; needed by "combined" and "blend".
        path: Gaussian path; the straight one for flow policies.
        prediction: what the network predicts: "velocity", or "noise" for a diffusion policy, or "data".
        cap: largest root mean square of the correction; cutting is a bias and is reported. None: never.

    Raises:
        ValueError: for shapes that do not fit, or an estimator without what it needs.
    """
    _check(x_0, eps, gradient, log_weight, t, estimator, fisher)
    g = torch.zeros_like(x_0) if gradient is None or estimator == "noise" else gradient
    x_0, eps, g, t = (at_least_float32(x) for x in (x_0, eps, g, t))
    usable = torch.cat((x_0, eps, g), -1).isfinite().all(-1)
    weight, valid = normalised_weights(log_weight, usable)
    # Zero times infinity is not zero: what has no weight must not have a value either.
    x_0, eps, g = (torch.where(usable[..., None], x, 0.0) for x in (x_0, eps, g))

    point = path.at(t[:, None], prediction)
    alpha, sigma, a, b = (c[..., None] for c in (point.alpha, point.sigma, point.a, point.b))
    found = WeightedCandidates(weight, x_0, eps, g, alpha * eps + sigma * g)
    correction = _coefficient(estimator, point, fisher, found) * found.mean(found.stein)
    clipped = torch.zeros_like(valid)
    if cap is not None:
        correction, clipped = cap_norm(correction, cap)
    ess = torch.where(valid, 1 / weight.square().sum(1).clamp_min(1e-30), 0.0)
    return Estimate(found.mean(a * x_0 + b * eps) - correction, ess, valid, clipped, weight)


def _coefficient(
    estimator: Estimator, point: PathPoint, fisher: float | Tensor | None, found: WeightedCandidates
) -> Tensor:
    if estimator == "noise":
        return torch.zeros_like(point.alpha)
    if estimator == "gradient":
        return gradient_coefficient(point)
    if estimator == "sample":
        return sample_coefficient(point, found)
    if estimator == "sample_per_dimension":
        return sample_coefficient_per_dimension(point, found)
    assert fisher is not None
    return blend_coefficient(point, fisher, found) if estimator == "blend" else combined_coefficient(point, fisher)


def _check(
    x_0: Tensor,
    eps: Tensor,
    gradient: Tensor | None,
    log_weight: Tensor,
    t: Tensor,
    estimator: str,
    fisher: float | Tensor | None,
) -> None:
    if estimator not in get_args(Estimator):
        raise ValueError(f"unknown estimator {estimator!r}; known: {', '.join(get_args(Estimator))}.")
    shapes = [x.shape for x in (x_0, eps, *(() if gradient is None else (gradient,)))]
    if x_0.ndim != 3 or len(set(shapes)) != 1 or log_weight.shape != x_0.shape[:2] or t.shape != x_0.shape[:1]:
        raise ValueError(
            f"expected x_0, eps and gradient [B, N, d], log_weight [B, N] and t [B]; got {[list(s) for s in shapes]}, "
            f"{list(log_weight.shape)} and {list(t.shape)}. Flatten the features into one axis."
        )
    if gradient is None and estimator != "noise":
        raise ValueError(f'estimator {estimator!r} needs gradient = grad log p(x_0); without one, use "noise".')
    if fisher is None and estimator in ("combined", "blend"):
        raise ValueError(
            f"estimator {estimator!r} needs fisher, the mean of |grad log p|^2 / d; FisherInformation tracks it."
        )
