"""Targets for image models whose reward has a gradient: the law p ~ p_old exp(r / T), from rollouts of p_old.

A rollout x_0 and its noised x_t are one exact draw of the old posterior, so one candidate is enough and the reward
enters through the weight of the sample, exp(r / T) or one of SiMPO's. Both targets are our derivation (Stein's lemma
with the reward's gradient); s is the standard deviation of the latents and V_t = (1 - t)^2 s^2 + t^2 that of x_t, so
that xi = s^2 t^2 / V_t is the posterior variance of Gaussian data. All is finite on 0 <= t <= 1.
"""

from __future__ import annotations

from torch import Tensor

from awm.flow.path import expand_time


def gaussian_share(t: Tensor, data_std: float) -> Tensor:
    """eta_g(t) = (1 - t)^2 s^2 / V_t: how far a Gaussian prior on the data trusts the gradient; 1 at t = 0, 0 at 1."""
    signal = ((1 - t) * data_std).square()
    return signal / (signal + t.square())


def image_target_exact(
    u: Tensor,
    t: Tensor,
    eps: Tensor,
    gradient: Tensor,
    score_old: Tensor,
    temperature: float,
    *,
    data_std: float = 1.0,
) -> Tensor:
    """y_i = u_i - (xi / t) S*_i,  S*_i = score_old(x_0) + grad r(x_0) / T + ((1 - t) / t) eps.

    Regressed with weight exp(r_i / T) this has the minimiser of plain weighted matching for every xi, since the
    weighted mean of S* at x_t is zero; the variance is smaller, most near the data. In the finite form,
    (xi / t) S* = (s^2 / V_t) (t (score_old + grad r / T) + (1 - t) eps).

    Args:
        u: [T, B, C, H, W] (or [B, ...]) velocity of the path, eps - x_0.
        t: [T, B] (or [B]) times.
        eps: noise, shaped like ``u``.
        gradient: grad r(x_0), [B, C, H, W]: one backward for each image, reused at all times.
        score_old: score of the policy that sampled, at x_0 itself, [B, C, H, W]; without it the target is biased by
            s^2 t / V_t times its mean. A network knows the score only at noised data, and noise of its own at x_0
            breaks the identity: make x_t from the point where the score is known (``awm.objectives.rfm_gradient``).
        temperature: T > 0, of the weight exp(r / T).
        data_std: s. The width of one mode, not of all data: too wide, and the variance grows for t above about .4.

    Returns:
        Regression target shaped like ``u``.
    """
    time = expand_time(t, u)
    scale = data_std**2 / (((1 - time) * data_std).square() + time.square())
    return u - scale * (time * (score_old + gradient / temperature) + (1 - time) * eps)


def image_target_gaussian(
    u: Tensor,
    t: Tensor,
    velocity_old: Tensor,
    gradient: Tensor,
    temperature: float,
    *,
    data_std: float = 1.0,
    eta: float | Tensor | None = None,
) -> Tensor:
    """y_i = (1 - eta) u_i + eta [v_old(x_t) - (C_t / t) grad r(x_0) / T],  C_t = xi: no score at x_0 needed.

    eta = 0 is reward-weighted matching; eta = 1 distils guidance by the reward's gradient. Exact where the old
    posterior is Gaussian, else biased, and more so as t grows: use eta_g (the default), or 1 below t = .25 and 0 above.

    Args:
        u: [T, B, C, H, W] (or [B, ...]) velocity of the path, eps - x_0.
        t: [T, B] (or [B]) times.
        velocity_old: v_old(x_t, t) of the policy that sampled, shaped like ``u``.
        gradient: grad r(x_0), [B, C, H, W].
        temperature: T > 0, of the weight exp(r / T).
        data_std: s.
        eta: a number, or a tensor shaped like ``t``; None: ``gaussian_share``.

    Returns:
        Regression target shaped like ``u``.
    """
    time = expand_time(t, u)
    if eta is None:
        eta = gaussian_share(t, data_std)
    share = expand_time(eta, u) if isinstance(eta, Tensor) else eta
    scale = data_std**2 * time / (((1 - time) * data_std).square() + time.square())
    return (1 - share) * u + share * (velocity_old - scale * gradient / temperature)
