"""The control variate of reverse flow matching on images: a field of mean zero at x_t, made of gradients.

The target is p ~ p_old exp(r / T), and its gradient g is known where p_old's score is, which the network gives at a
slightly noised x_n = (1 - t_n) x_0 + t_n e. So x_t is made from x_n, not from x_0 directly:

    x_t = a x_n + b e',   a = (1 - t) / (1 - t_n),   b^2 = t^2 - a^2 t_n^2 = t^2 q

which is noised data as ever, with eps = sqrt(1 - q) e + sqrt(q) e'. Then u = t (g(x_n) + (a / b) e') is t times the
posterior's score of x_n given x_t, so that E[u | x_t] = 0 exactly as far as g is the gradient at level t_n. (Score at
an x_n with noise of its own, independent of x_t, has not mean zero: it misses what data near a manifold do off it.)
With Cov(v, u) = (1 - t_n^2 j) / (1 - t_n) per dimension and E|u|^2 / d = a^2 / q + t^2 j, j = E_p |g|^2 / d, the
variance of v - Lambda u is least at

    Lambda(t) = max(0, 1 - t_n^2 j) / (1 - t_n) * q / (a^2 + t^2 q j)

and j = 0 gives the gradient estimator, in which e' cancels. t_n -> 0 are the coefficients of
``awm.reverse_matching.coefficients``. Our derivation, after arXiv 2601.08136 (abstract read) and 2402.08667.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from awm.flow.path import expand_time, interpolate, score_from_velocity
from awm.flow.rng import SampleNoise
from awm.interfaces import Policy, WeightSet
from awm.reverse_matching import cap_norm
from awm.types import Experience, GroupMates, TargetGradient

# The gradient estimator divides by (1 - t)^2; at t = 1 it means nothing and only has to stay finite.
SIGNAL_FLOOR = 1e-3


@torch.no_grad()
def policy_score(
    policy: Policy,
    experience: Experience,
    noise: SampleNoise,
    *,
    time: float,
    weights: WeightSet,
    guidance_scale: float,
    batch_size: int,
) -> tuple[Tensor, Tensor]:
    """Score of the policy at x_n = (1 - t_n) x_0 + t_n e, one forward a sample, and e; both [B, C, H, W].

    Args:
        policy: model and weight sets.
        experience: B samples.
        noise: their generators.
        time: t_n.
        weights: those that sampled.
        guidance_scale: classifier-free guidance.
        batch_size: rows of a forward.
    """
    e = noise.randn(experience.x_0.shape[1:])
    parts = []
    with policy.using(weights):
        for rows in torch.split(torch.arange(len(experience)), batch_size):
            batch = experience.take(rows)
            t = batch.x_0.new_full((len(rows),), time)
            x_n = interpolate(batch.x_0, e[rows.to(e.device)], t)
            condition = batch.condition.take(batch.prompt_index)
            velocity = policy.model.velocity(x_n, t, condition, guidance_scale)
            parts.append(score_from_velocity(x_n, velocity.float(), t))
    return torch.cat(parts), e


def fisher_information(gradient: Tensor, weight: Tensor, valid: Tensor, gather: Callable[[Tensor], Tensor]) -> float:
    """Fisher information j = E_p |g|^2 / d: the mean of weight_i mean(g_i^2) over all ranks' valid samples.

    Args:
        gradient: [B, C, H, W] g of this rank's samples.
        weight: [B], mean 1 over the epoch.
        valid: [B] bool.
        gather: see ``awm.interfaces.PreparesEpoch``.
    """
    return _mean(weight * gradient.square().flatten(1).mean(1), valid, gather)


def data_variance(experience: Experience, mates: GroupMates, gather: Callable[[Tensor], Tensor]) -> float:
    """Variance of the latents of one prompt per dimension, over an epoch and all ranks; 1 if no prompt has two."""
    square, known = torch.zeros_like(experience.x_0[:, 0, 0, 0]), torch.zeros_like(experience.valid)
    for number in torch.unique(experience.group):
        members = mates.x_0[(mates.group == number).to(mates.x_0.device)]
        if len(members) > 1:
            rows = (experience.group == number).to(square.device)
            deviation = experience.x_0[rows] - members.mean(0)
            square[rows] = deviation.square().flatten(1).mean(1) * (len(members) / (len(members) - 1))
            known[rows] = True
    variance = _mean(square, known & experience.valid, gather)
    return variance if variance > 0 else 1.0


def _mean(value: Tensor, valid: Tensor, gather: Callable[[Tensor], Tensor]) -> float:
    """Mean of [B] values over all ranks' valid samples, the same to the last bit however many ranks there are."""
    everything, counts = gather(value.double()), gather(valid)
    return float(everything[counts].mean()) if counts.any() else 0.0


def reward_share(policy_fisher: float, time: float) -> float:
    """What a reward's gradient at x_0 is worth at x_n: max(0, 1 - t_n^2 j) / (1 - t_n), j of the policy's score at x_n.

    E[W | x_n] has the gradient J^T grad log W / (1 - t_n), with J the Jacobian of x_n -> E[(1 - t_n) x_0 | x_n], whose
    mean eigenvalue is 1 - t_n^2 j: near 1 where the data are wider than t_n, near 0 where they are narrower.
    """
    return max(0.0, 1 - time**2 * policy_fisher) / (1 - time)


def fresh_share(t: Tensor, time: float) -> Tensor:
    """q, the share of the variance of eps that is not x_n's noise; 0 at t <= t_n, where x_t cannot come from x_n."""
    return (1 - ((1 - t) * time / ((1 - time) * t)).square()).clamp(min=0)


def correlated_noise(fresh: Tensor, noise: Tensor, t: Tensor, time: float) -> Tensor:
    """Noise eps = sqrt(1 - q) e + sqrt(q) e', standard normal; fresh e' itself at t <= t_n.

    Args:
        fresh: [T, B, C, H, W] e'.
        noise: [B, C, H, W] e of x_n.
        t: [T, B].
        time: t_n.
    """
    q = expand_time(fresh_share(t, time), fresh)
    return torch.where(q > 0, (1 - q).sqrt() * noise + q.sqrt() * fresh, fresh)


def stein_correction(fresh: Tensor, gradient: TargetGradient, t: Tensor, *, time: float, combined: bool) -> Tensor:
    """Lambda(t) u, [T, B, C, H, W]; zero at t <= t_n.

    Args:
        fresh: [T, B, C, H, W] e'.
        gradient: g at x_n.
        t: [T, B].
        time: t_n.
        combined: Lambda of least variance; False: that of the gradient estimator, which explodes as t goes to 1.
    """
    clock = expand_time(t, fresh)
    q = expand_time(fresh_share(t, time), fresh)
    signal = (1 - clock) / (1 - time)
    fisher = gradient.fisher if combined else 0.0
    trust = max(0.0, 1 - time**2 * fisher) / (1 - time)
    scale = (signal if combined else signal.clamp(min=SIGNAL_FLOOR)).square() + clock.square() * q * fisher
    return trust / scale.clamp(min=1e-12) * (q * clock * gradient.value + signal * q.sqrt() * fresh)


def capped(correction: Tensor, cap: float) -> tuple[Tensor, Tensor]:
    """Correction with its root mean square cut to ``cap`` (0: never), and the [T, B] mask of those that were cut."""
    if not cap:
        return correction, torch.zeros(correction.shape[:2], dtype=torch.bool, device=correction.device)
    cut, clipped = cap_norm(correction.flatten(2), cap)
    return cut.reshape(correction.shape), clipped
