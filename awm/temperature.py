"""The temperature at which weights move a policy by a given amount.

A weighting's temperature has no scale of its own: what it does to the policy is KL(p || uniform) of the weights p
over a group, or its complement, their entropy. SiMPO tunes it during training by the dual of MPO (arXiv
1806.06920; SiMPO, arXiv 2603.10250, appendix G), whose fixed point is

    H(p) = log N - eps,        p proportional to max(W / N, 1e-6)

Here that equation is solved for a whole batch at once, our replacement for the paper's slow gradient descent.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from awm.weightings import MASSLESS, Weighting, kl_from_uniform


@dataclass(frozen=True, slots=True)
class Temperature:
    """One temperature for all groups.

    Attributes:
        value: lambda, in units of the scores.
        kl: mean over groups of KL(p || uniform) that it gives, nats.
        at_minimum: the target KL is out of reach, as where k of N equal rewards cap it at log(N / k); value is
            the smallest allowed.
        at_maximum: even the largest temperature moves more than the target.
    """

    value: float
    kl: float
    at_minimum: bool
    at_maximum: bool


def solve_temperature(
    score: Tensor,
    weighting: Weighting,
    *,
    kl: float | None = None,
    entropy: float | None = None,
    minimum: float,
    maximum: float = 1e6,
    valid: Tensor | None = None,
) -> Temperature:
    """The one temperature with which the mean over groups of KL(p || uniform), or of the entropy, hits the target.

    Args:
        score: [..., N], groups along the last axis.
        weighting: what turns scores into weights.
        kl: target, nats; log N is the most a group of N can reach.
        entropy: target instead of ``kl``, nats; for a group of N it is kl = log N - entropy.
        minimum: smallest temperature; needed, since a group whose best scores tie may never reach the target.
        maximum: largest temperature.
        valid: [..., N] bool, which scores count. Groups whose scores are all equal have no choice and do not count.

    Raises:
        ValueError: not exactly one target is given, it is negative, the limits are not 0 < minimum < maximum, or the
            weighting can have no target, see ``bisect_temperature``.
    """
    valid = torch.ones_like(score, dtype=torch.bool) if valid is None else valid
    rows, mask = score.reshape(-1, score.shape[-1]), valid.reshape(-1, score.shape[-1])
    target = _target_kl(kl, entropy, mask.sum(-1) * _has_choice(rows, mask))
    value = bisect_temperature(rows, weighting, kl=target, minimum=minimum, maximum=maximum, valid=mask)
    return Temperature(
        value=value.item(),
        kl=mean_kl(rows, weighting, value, valid=mask).item(),
        at_minimum=value.item() <= minimum,
        at_maximum=value.item() >= maximum,
    )


@torch.no_grad()
def bisect_temperature(
    score: Tensor,
    weighting: Weighting,
    *,
    kl: float | Tensor,
    minimum: float,
    maximum: float = 1e6,
    valid: Tensor | None = None,
) -> Tensor:
    """As ``solve_temperature`` for independent sets of groups at once, such as the seeds of an experiment.

    Args:
        score: [..., G, N]; the G groups of a set share a temperature.
        weighting: what turns scores into weights.
        kl: target, nats, a number or [...].
        minimum: smallest temperature.
        maximum: largest temperature.
        valid: [..., G, N] bool.

    Returns:
        [..., 1, 1] float64 temperatures, exactly ``minimum`` or ``maximum`` where the target is out of reach.

    Raises:
        ValueError: wrong limits, or a weighting without mass: the shape of wd1's positive part, all that p sees of
            it, hardly changes while its size falls to nothing, so no divergence belongs to one temperature.
    """
    if weighting.name in MASSLESS:
        raise ValueError(f"the weights of {weighting.name!r} have mean 0 and thus no target; give it a temperature.")
    if not 0 < minimum < maximum < math.inf:
        raise ValueError(f"minimum={minimum:g} and maximum={maximum:g} must satisfy 0 < minimum < maximum.")
    valid = torch.ones_like(score, dtype=torch.bool) if valid is None else valid
    shape = (*score.shape[:-2], 1, 1)
    target = torch.as_tensor(kl, dtype=torch.float64, device=score.device).expand(shape[:-2]).reshape(shape)

    def moves_more(temperature: Tensor) -> Tensor:
        return mean_kl(score, weighting, temperature, valid=valid) > target

    ends = [torch.full(shape, end, dtype=torch.float64, device=score.device) for end in (minimum, maximum)]
    reached, exceeded = (moves_more(end) for end in ends)
    low, high = (end.log() for end in ends)
    for _ in range(60):
        middle = (low + high) / 2
        more = moves_more(middle.exp())
        low, high = torch.where(more, middle, low), torch.where(more, high, middle)
    solved = ((low + high) / 2).exp()
    return torch.where(exceeded, ends[1], torch.where(reached, solved, ends[0]))


def mean_kl(score: Tensor, weighting: Weighting, temperature: float | Tensor, *, valid: Tensor | None = None) -> Tensor:
    """Mean over groups of KL(p || uniform), how far a temperature moves a policy.

    Args:
        score: [..., G, N].
        weighting: what turns scores into weights.
        temperature: a number, or a tensor that broadcasts to [..., G, 1].
        valid: [..., G, N] bool. Groups whose valid scores are all equal have no choice and do not count.

    Returns:
        [..., 1, 1] nats; 0 if no group counts.
    """
    valid = torch.ones_like(score, dtype=torch.bool) if valid is None else valid
    kl = kl_from_uniform(weighting(score.double(), temperature, valid=valid), valid=valid)
    counts = _has_choice(score, valid)
    mean = torch.where(counts, kl, 0.0).sum(-1) / counts.sum(-1).clamp(min=1)
    return mean[..., None, None]


def mpo_dual(score: Tensor, temperature: Tensor, *, kl: float, valid: Tensor | None = None) -> Tensor:
    """MPO's dual h(lambda) = lambda eps + lambda log mean exp(q / lambda), which exp's temperature minimises (eq 30).

    Its derivative is eps - log N + H(p) with p = softmax(q / lambda) (lemma G.1), zero where KL(p || uniform) = eps.

    Args:
        score: [..., N].
        temperature: lambda, broadcasts to [..., 1].
        kl: eps, nats.
        valid: [..., N] bool; every group needs at least one.

    Returns:
        [...] float64.
    """
    valid = torch.ones_like(score, dtype=torch.bool) if valid is None else valid
    temperature = temperature.double()
    logits = (torch.where(valid, score, 0.0) / temperature).masked_fill(~valid, -math.inf)
    log_mean = logits.logsumexp(-1, keepdim=True) - valid.sum(-1, keepdim=True).double().log()
    return (temperature * (kl + log_mean)).squeeze(-1)


def _has_choice(score: Tensor, valid: Tensor) -> Tensor:
    """[..., G] whether valid scores of a group differ; if not, its weights are one at any temperature."""
    low, high = (score.masked_fill(~valid, end) for end in (math.inf, -math.inf))
    return low.amin(-1) < high.amax(-1)


def _target_kl(kl: float | None, entropy: float | None, count: Tensor) -> float:
    """The target as a mean KL over the groups that count, [G] valid samples each; 0 for those that do not."""
    given = {name: value for name, value in (("kl", kl), ("entropy", entropy)) if value is not None}
    if len(given) != 1:
        raise ValueError(f"give one target, kl or entropy; got {', '.join(given) or 'neither'}.")
    ((name, target),) = given.items()
    if not 0 <= target < math.inf:
        raise ValueError(f"{name}={target:g} is not valid; the target must be a finite number of nats, at least 0.")
    if name == "kl":
        return target
    several = count[count > 1].double()
    return several.log().mean().item() - target if several.numel() else 0.0
