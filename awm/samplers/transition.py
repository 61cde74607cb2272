"""The Gaussian steps of stochastic samplers: mean, likelihood and the distance between two policies' steps.

A step t -> s of any of them is x_s ~ N(a x_t + b v, std^2 I), with numbers a, b and std that depend on the sampler
alone, so that everything an objective asks is the same few lines for all. See Flow-GRPO, arXiv 2505.05470.
"""

from __future__ import annotations

import math

from torch import Tensor

from awm.types import Transition


def ode_step(t: float, s: float) -> Transition:
    """The deterministic step x_s = x_t + (s - t) v, where all samplers here meet."""
    return Transition(t=t, s=s, x_weight=1.0, velocity_weight=s - t, std=0.0)


def renoising_step(t: float, s: float, *, fresh: float, unscaled: bool = False) -> Transition:
    """Predict the data and noise it again to s, with the predicted noise in part replaced by new noise n.

        x_s = (1 - s) (x_t - t v) + s (sqrt(1 - fresh^2) (x_t + (1 - t) v) + fresh n)

    The level of noise is that of the path for any ``fresh``. At s = 0 it is the step of the ODE.

    Args:
        t: time before the step.
        s: time after it.
        fresh: amplitude of the new noise relative to all noise, in [0, 1].
        unscaled: see ``Transition``.
    """
    kept = s * math.sqrt(1 - fresh**2)
    return Transition(
        t=t,
        s=s,
        x_weight=1 - s + kept,
        velocity_weight=(1 - t) * kept - t * (1 - s),
        std=s * fresh,
        unscaled=unscaled,
    )


def transition_mean(x_t: Tensor, velocity: Tensor, step: Transition) -> Tensor:
    """Mean of x_s given x_t, shaped like x_t; differentiable in ``velocity``."""
    return step.x_weight * x_t + step.velocity_weight * velocity


def transition_log_prob(x_s: Tensor, x_t: Tensor, velocity: Tensor, step: Transition) -> Tensor:
    """Log-density of one step, log N(x_s; mean, std^2 I), averaged over dimensions as Flow-GRPO does.

    Of an ``unscaled`` step it is -mean (x_s - mean)^2, what FlowCPS puts in its place.

    Args:
        x_s: [B, C, H, W] the state after the step, a constant to an objective.
        x_t: [B, C, H, W] the state before it.
        velocity: [B, C, H, W] of the policy whose likelihood is asked for; the gradient flows here.
        step: the coefficients, an element of a sampler's ``steps``.

    Returns:
        [B] mean log-density per dimension; zero where the step is deterministic.
    """
    if step.std == 0:
        return x_t.new_zeros(x_t.shape[0])
    residual = x_s - transition_mean(x_t, velocity, step)
    if step.unscaled:
        return -residual.square().flatten(1).mean(1)
    z = residual / step.std
    return -z.square().flatten(1).mean(1) / 2 - math.log(step.std * math.sqrt(2 * math.pi))


def transition_kl(velocity: Tensor, velocity_other: Tensor, step: Transition) -> Tensor:
    """KL(N(mean, std^2 I) || N(mean_other, std^2 I)) = b^2 (v - v_other)^2 / (2 std^2), mean over dimensions.

    With b = d mean / d v. Of an ``unscaled`` step it is mean (mean - mean_other)^2, in the units of its likelihood.

    Args:
        velocity: [B, C, H, W] of one policy at x_t.
        velocity_other: [B, C, H, W] of the other, at the same x_t.
        step: the coefficients; one that is deterministic has no KL.

    Returns:
        [B] nats per dimension.
    """
    scale = step.velocity_weight**2 if step.unscaled else (step.velocity_weight / step.std) ** 2 / 2
    return scale * (velocity - velocity_other).square().flatten(1).mean(1)


def matching_target(x_s: Tensor, x_t: Tensor, step: Transition) -> Tensor:
    """The velocity y = (x_s - a x_t) / b that would have led from x_t to x_s without noise, shaped like x_t.

    In its terms the likelihood is a matching loss, log N = -(b^2 / (2 std^2)) mean (v - y)^2 + constant, with the
    target y = v_old + (std / b) z of the noise z that was drawn: AWM's, arXiv 2509.25050, but for a noisier target.
    That is our reading of DDPO's and Flow-GRPO's likelihood as matching; it is exact.
    """
    return (x_s - step.x_weight * x_t) / step.velocity_weight
