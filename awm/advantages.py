"""Advantages: how much better an image is than the others of its prompt.

A_i = (r_i - mean_{j in g(i)} r_j) / (std + eps), as in GRPO (arXiv 2402.03300) and AWM
(arXiv 2509.25050), clipped and scaled to a fixed range. Statistics are those of one epoch over all ranks.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


def group_advantages(
    reward: Tensor,
    group: Tensor,
    valid: Tensor,
    *,
    global_std: bool,
    per_prompt: bool = True,
    adv_clip_max: float = 5.0,
    advantage_max: float = 1.0,
    eps: float = 1e-4,
) -> Tensor:
    """Scaled advantage clip(A, -c, c) / c * advantage_max, with A from ``standardized_rewards``.

    Args:
        reward: [B] higher is better; ignored where not valid.
        group: [B] int64; images of one prompt share a value.
        valid: [B] bool; False rows count in no mean or std and get advantage 0.
        global_std: divide by the std over all rewards instead of each group's.
        per_prompt: subtract the group's mean; False uses the mean and std of the whole batch.
        adv_clip_max: c, bound on |A| in units of std.
        advantage_max: |advantage| of a clipped sample.
        eps: keeps the division finite when all rewards are equal.

    Returns:
        [B] float32 advantages; exactly zero for a group whose rewards are all equal.
    """
    advantage = standardized_rewards(reward, group, valid, global_std=global_std, per_prompt=per_prompt, eps=eps)
    return (advantage.clamp(-adv_clip_max, adv_clip_max) / adv_clip_max * advantage_max).float()


def standardized_rewards(
    reward: Tensor, group: Tensor, valid: Tensor, *, global_std: bool, per_prompt: bool = True, eps: float = 1e-4
) -> Tensor:
    """A_i = (r_i - mean) / (std + eps), std with ddof = 0; arguments as in ``group_advantages``.

    Returns:
        [B] float64; zero where not valid.
    """
    if not torch.isfinite(reward[valid]).all():
        raise ValueError("a valid reward is not finite; mark rewards that could not be computed as not valid.")
    everything = torch.zeros_like(group)
    group = group if per_prompt else everything
    deviation = _deviation(reward, group, valid)
    spread = _deviation(reward, everything, valid) if global_std else deviation
    over = everything if global_std else group
    std = _group_mean(spread.square(), over, valid).sqrt()
    return torch.where(valid, deviation / (std + eps), 0.0)


def standardized_sum(parts: Mapping[str, Tensor], weights: Mapping[str, float], valid: Tensor) -> Tensor:
    """R_i = sum_k w_k (r_ki - mean_k) / std_k: rewards of different scales, each in units of its own spread.

    Args:
        parts: reward name -> [B].
        weights: reward name -> w_k; names of weight 0 are left out.
        valid: [B] bool; the others count in no mean or std.

    Returns:
        [B] float64, NaN where not valid; a reward that is equal for all images contributes nothing.
    """
    total = torch.zeros_like(valid, dtype=torch.float64)
    for name, weight in weights.items():
        if weight:
            reward = parts[name].double()
            std, mean = torch.std_mean(reward[valid], correction=0)
            total += weight * (reward - mean) / std if std > 0 else 0.0
    return torch.where(valid, total, torch.nan)


def zero_std_ratio(reward: Tensor, group: Tensor, valid: Tensor) -> float:
    """Share of the groups whose valid rewards are all equal: they teach nothing about the reward.

    Args:
        reward: [B] rewards.
        group: [B] int64 group of each.
        valid: [B] bool; groups without a valid reward are not counted.
    """
    _, index = torch.unique(group[valid], return_inverse=True)
    if index.numel() == 0:
        return 0.0
    values = reward[valid].double()
    size = int(index.max()) + 1
    low, high = (
        values.new_zeros(size).scatter_reduce(0, index, values, how, include_self=False) for how in ("amin", "amax")
    )
    return (low == high).double().mean().item()


def _deviation(reward: Tensor, group: Tensor, valid: Tensor) -> Tensor:
    """[B] float64 r_i minus the mean of its group's valid rewards; zero where not valid."""
    # float64 sums of float32 rewards lose nothing, so equal rewards give exact zeros.
    known = torch.where(valid, reward.double(), 0.0)
    return torch.where(valid, known - _group_mean(known, group, valid), 0.0)


def _group_mean(value: Tensor, group: Tensor, valid: Tensor) -> Tensor:
    """[B] mean of ``value`` (zero where not valid) over the valid rows of each row's group."""
    _, index = torch.unique(group, return_inverse=True)
    total = torch.zeros_like(value).scatter_add(0, index, value)
    count = torch.zeros_like(value).scatter_add(0, index, valid.to(value.dtype))
    return (total / count.clamp(min=1))[index]
