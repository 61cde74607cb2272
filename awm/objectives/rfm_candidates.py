"""The inner step of reverse flow matching on images: which of a prompt's images may lie behind a noised one.

x_t was made from image i of its prompt. The others of the prompt are candidates too, with weight

    w_j = softmax_j(log_weight_j + l_j),    l_j = -|x_t - (1 - t) x_0j|^2 / (2 t^2)

and i stays among them: with i drawn by its weight, w is the posterior of i given x_t and the candidates, so that
sum_j w_j (eps_j - x_0j) has the same mean as eps - x_0i and never more variance. In d = 65536 dimensions w is one-hot
on i except at t > .99. See Reverse Flow Matching, arXiv 2601.08136; this use of a prompt's images is our own.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from awm.flow.path import expand_time
from awm.reverse_matching import normalised_weights
from awm.types import GroupMates


def relative_log_likelihood(x_0: Tensor, eps: Tensor, t: Tensor, group: Tensor, mates: GroupMates) -> Tensor:
    """l_j - l_i of every mate j for x_t = (1 - t) x_0i + t eps: -(r / 2) <D, 2 eps + r D>, r = (1 - t) / t.

    D = x_0i - x_0j is taken in float32 for one mate at a time: |a|^2 - 2 ab + |b|^2 would cancel.

    Args:
        x_0: [B, C, H, W] images i.
        eps: [T, B, C, H, W] their noise.
        t: [T, B] times in (0, 1].
        group: [B] prompt of each, on the CPU.
        mates: M images.

    Returns:
        [T, B, M]; -inf where the mate is of another prompt.
    """
    result = eps.new_full((*t.shape, len(mates.group)), -torch.inf)
    ratio = (1 - t) / t
    for rows, j, difference in _pairs(x_0, group, mates):
        step = expand_time(ratio[:, rows], eps) * difference
        result[:, rows, j] = -0.5 * (step * (2 * eps[:, rows] + step)).flatten(2).sum(2)
    return result


def candidate_weights(log_likelihood: Tensor, log_weight: Tensor | float = 0.0) -> Tensor:
    """[T, B, M] softmax over the mates; all zero in a row without any.

    Args:
        log_likelihood: [T, B, M].
        log_weight: [M], or 0 for candidates that count alike.
    """
    if log_likelihood.shape[2] == 0:
        return log_likelihood
    weight, _ = normalised_weights((log_likelihood + log_weight).flatten(0, 1))
    return weight.reshape(log_likelihood.shape)


def effective_size(weight: Tensor) -> Tensor:
    """[T, B] effective number of candidates, 1 / sum w^2; 0 where there are none."""
    squares = weight.square().sum(2)
    return torch.where(squares > 0, 1 / squares.clamp(min=1e-30), 0.0)


def difference_from_mean(x_0: Tensor, group: Tensor, mates: GroupMates, coefficient: Tensor) -> Tensor:
    """sum_j coefficient_j (x_0i - x_0j), [T, B, C, H, W], of coefficients [T, B, M]; the other arguments as above."""
    result = x_0.new_zeros((coefficient.shape[0], *x_0.shape))
    for rows, j, difference in _pairs(x_0, group, mates):
        result[:, rows] += expand_time(coefficient[:, rows, j], result) * difference
    return result


def tempering(log_likelihood: Tensor, steps: int = 40) -> Tensor:
    """Power 0 < b <= 1 of the likelihood at which the effective number of candidates is a quarter of them, [T, B, 1].

    At least two, or there would be nothing to compare; 1 where they are as many without. Tempering averages images,
    which is a bias. Bisected in log b, since b is about 1 / d.

    Args:
        log_likelihood: [T, B, M].
        steps: halvings of the interval [1e-12, 1].
    """
    count = torch.isfinite(log_likelihood).sum(2)
    wanted = (count / 4).maximum(count.clamp(max=2))

    def enough(log_power: Tensor) -> Tensor:
        return effective_size(candidate_weights(log_likelihood * log_power.exp().unsqueeze(2))) >= wanted

    high = torch.zeros_like(wanted)
    low = torch.full_like(wanted, -27.6)
    low = torch.where(enough(high), high, low)
    for _ in range(steps):
        middle = (low + high) / 2
        ample = enough(middle)
        low, high = torch.where(ample, middle, low), torch.where(ample, high, middle)
    return low.exp().unsqueeze(2)


def _pairs(x_0: Tensor, group: Tensor, mates: GroupMates) -> Iterator[tuple[Tensor, int, Tensor]]:
    """For each mate j that has images of its prompt in the batch: their rows, j, and x_0i - x_0j."""
    # One copy to the device for each prompt: each makes the CPU wait for a GPU.
    rows_of = {number: (group == number).nonzero().flatten().to(x_0.device) for number in set(group.tolist())}
    for j, number in enumerate(mates.group.tolist()):
        if number in rows_of:
            yield rows_of[number], j, x_0[rows_of[number]] - mates.x_0[j]
