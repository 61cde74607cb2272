"""Normalisers of SiMPO's weights: the nu with which a group's weights max(g((q - nu) / lambda), ell) have mean 1.

Everything is in units of the temperature and measured from the group's largest score, z = (q - max q) / lambda <= 0,
so that lambda = 1 in the paper's equations (arXiv 2603.10250, eqs 22-29) and no large numbers cancel. The square one
with a floor and the one of a general power are our derivations.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class ScaledGroups:
    """Scores of groups in units of the temperature.

    Attributes:
        z: [..., N] float64 (q - max q) / lambda, 0 where not valid.
        valid: [..., N] bool.
        count: [..., 1] float64, number of valid entries.
        dtype: of the weights to return.
    """

    z: Tensor
    valid: Tensor
    count: Tensor
    dtype: torch.dtype

    @classmethod
    def of(cls, score: Tensor, temperature: float | Tensor, valid: Tensor | None) -> ScaledGroups:
        """Scale [..., N] scores; ValueError if a valid one is not finite or the temperature is not above 0."""
        positive = torch.as_tensor(temperature).detach()
        if not torch.all((positive > 0) & positive.isfinite()):
            raise ValueError(f"temperature={temperature} is not valid; it must be a finite number above 0.")
        valid = torch.ones_like(score, dtype=torch.bool) if valid is None else valid.expand(score.shape)
        if not torch.isfinite(score.detach()[valid]).all():
            raise ValueError("a valid score is not finite; mark scores that could not be computed as not valid.")
        count = valid.sum(-1, keepdim=True).double()
        # Entries that do not count may be NaN: none may reach a sum, nor a gradient.
        known = torch.where(valid, score, 0.0).double()
        top = known.detach().masked_fill(~valid & (count > 0), -math.inf).amax(-1, keepdim=True)
        z = torch.where(valid, (known - top) / temperature, 0.0)
        return cls(z, valid, count, torch.promote_types(score.dtype, torch.float32))

    def descending(self) -> tuple[Tensor, Tensor]:
        """The z from the largest to the smallest with invalid entries last and zero, and the ranks 1..N."""
        z = self.z.masked_fill(~self.valid, -math.inf).sort(-1, descending=True).values
        rank = torch.arange(1, z.shape[-1] + 1, dtype=z.dtype, device=z.device)
        return torch.where(rank <= self.count, z, 0.0), rank

    def softmax(self, logits: Tensor) -> Tensor:
        """Softmax over the valid entries; finite where there are none."""
        return logits.masked_fill(~self.valid & (self.count > 0), -math.inf).softmax(-1)

    def mean(self, value: Tensor) -> Tensor:
        """[..., 1] mean over the valid entries, 0 where there are none."""
        return torch.where(self.valid, value, 0.0).sum(-1, keepdim=True) / self.count.clamp(min=1)

    def weights(self, value: Tensor) -> Tensor:
        """The values as weights: zero where not valid, in the caller's dtype."""
        return torch.where(self.valid, value, 0.0).to(self.dtype)


def signed_power(z: Tensor, power: float) -> Tensor:
    """Generator g(z) = sign(z) |z|^p, with a finite gradient at 0."""
    return z.sign() * z.abs().clamp(min=1e-30).pow(power)


def linear_normaliser(groups: ScaledGroups, floor: float) -> Tensor:
    """[..., 1] nu of g(z) = z: (S_k - N + (N - k) ell) / k with k samples above the floor (eqs 22-25).

    With z sorted from the largest and S_k the sum of the first k, sample k is above the floor iff
    S_k - k z_k < N (1 - ell).
    """
    z, rank = groups.descending()
    total = z.cumsum(-1)
    active = (total - rank * z < groups.count * (1 - floor)) & (rank <= groups.count)
    k = active.sum(-1, keepdim=True).clamp(min=1)
    return (total.gather(-1, k - 1) - groups.count + (groups.count - k) * floor) / k


def square_normaliser(groups: ScaledGroups, floor: float) -> Tensor:
    """[..., 1] nu of g(z) = sign(z) z^2, the root of a quadratic in the samples' known branches.

    Without a floor below zero, nu = (S1 - sqrt(S1^2 - k (S2 - N))) / k of the k samples with
    S2_k - 2 z_k S1_k + k z_k^2 < N, where S1 and S2 sum the first k z and z^2 (eqs 26-29).
    """
    if floor < 0:
        return _signed_square_normaliser(groups, floor)
    z, rank = groups.descending()
    total, squares = z.cumsum(-1), z.square().cumsum(-1)
    energy_at_boundary = squares - 2 * z * total + rank * z.square()
    active = (energy_at_boundary < groups.count) & (rank <= groups.count)
    k = active.sum(-1, keepdim=True).clamp(min=1)
    total, squares = total.gather(-1, k - 1), squares.gather(-1, k - 1)
    return (total - (total.square() - k * (squares - groups.count)).clamp(min=1e-300).sqrt()) / k


def power_normaliser(groups: ScaledGroups, power: float, floor: float) -> Tensor:
    """[..., 1] nu of g(z) = sign(z) |z|^p, bisected: the mean weight decreases with nu.

    One step of Newton's method follows, through which flows the gradient of the implicit function nu(z).
    """

    def mean_weight(nu: Tensor) -> Tensor:
        return groups.mean(signed_power(groups.z - nu, power).clamp(min=floor))

    with torch.no_grad():
        nu = _bisect(groups, mean_weight, power, floor)
        above = signed_power(groups.z - nu, power) > floor
        steepness = power * (groups.z - nu).abs().clamp(min=1e-30).pow(power - 1)
        slope = groups.mean(torch.where(above, steepness, 0.0))
    # A group without valid samples has no slope, and no weight to normalise.
    return nu + torch.where(groups.count > 0, (mean_weight(nu) - 1) / slope.clamp(min=1e-300), 0.0)


def _bisect(groups: ScaledGroups, mean_weight: Callable[[Tensor], Tensor], power: float, floor: float) -> Tensor:
    """[..., 1] nu with mean weight 1, to the last bits of float64."""
    # The weight of the largest score, at z = 0, is at least 1 and at most N - (N - 1) ell.
    most = (groups.count - (groups.count - 1) * floor).clamp(min=1).pow(1 / power)
    lower, upper = -most, torch.full_like(most, -1.0)
    for _ in range(64):
        middle = (lower + upper) / 2
        above = mean_weight(middle) > 1
        lower, upper = torch.where(above, middle, lower), torch.where(above, upper, middle)
    return (lower + upper) / 2


def _signed_square_normaliser(groups: ScaledGroups, floor: float) -> Tensor:
    """[..., 1] nu of g(z) = sign(z) z^2 with a floor below zero.

    A sample changes its branch where nu passes z (its weight turns negative) and z + sqrt(-ell) (it reaches the
    floor). Between two neighbours of these 2 N points the mean weight is a quadratic in nu:

        sum_{above} (z - nu)^2 - sum_{below} (z - nu)^2 + ell n_{floored} = N
    """
    with torch.no_grad():
        lower, upper = _branch(groups, floor)
        above = groups.valid & (groups.z >= upper)
        floored = groups.valid & (groups.z + math.sqrt(-floor) <= lower)
        sign = above.double() - (groups.valid & ~above & ~floored).double()
        mass = groups.count - floor * floored.double().sum(-1, keepdim=True)
    # Measured from the upper end b is a sum of positive terms, and the root loses no digits.
    distance = groups.z - upper
    a = sign.sum(-1, keepdim=True)
    b = (sign * distance).sum(-1, keepdim=True)
    c = (sign * distance.square()).sum(-1, keepdim=True) - mass
    root = (b.square() - a * c).clamp(min=1e-300).sqrt()
    return upper + c / (b + root)


def _branch(groups: ScaledGroups, floor: float) -> tuple[Tensor, Tensor]:
    """[..., 1] branch points next to nu: below it, or -inf, and above it.

    The mean weight is evaluated at all 2 N points: quadratic in the size of a group, which is small.
    """
    point = torch.cat([groups.z, groups.z + math.sqrt(-floor)], -1)
    weight = signed_power(groups.z.unsqueeze(-2) - point.unsqueeze(-1), 2.0).clamp(min=floor)
    mean = torch.where(groups.valid.unsqueeze(-2), weight, 0.0).sum(-1) / groups.count.clamp(min=1)
    upper = point.masked_fill(mean > 1, math.inf).amin(-1, keepdim=True)
    lower = point.masked_fill(point >= upper, -math.inf).amax(-1, keepdim=True)
    return lower, upper
