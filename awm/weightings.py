"""How a group's scores become the weights of reweighted flow matching.

SiMPO (arXiv 2603.10250) builds its target policy from the one that sampled, as a signed measure
pi* = pi_old W with

    W(x) = max(g((Q(x) - nu) / lambda), ell)        g increasing, ell <= 0 the floor (eqs 6, 9, 11)

and takes the normaliser nu from a group of N samples of one state or prompt: (1/N) sum W = 1. Then the target is
projected on the policies by flow matching with these weights (eq 7). g is exp (KL), the identity (chi^2) or a
power (an alpha divergence with power = 1 / (alpha - 1)); below zero, the paper's "Sqr. Neg." is taken to mean
g(z) = sign(z) |z|^p, our reconstruction.

Groups lie along the last axis, any axes before it are a batch. Everything is differentiable in score and
temperature, for the set of samples above the floor as it is. ``awm.temperature`` chooses the temperature.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from awm.normalisers import ScaledGroups, linear_normaliser, power_normaliser, signed_power, square_normaliser

NAMES = ("exp", "linear", "square", "power", "wd1")
FLOORED = ("linear", "square", "power")
MASSLESS = ("wd1",)  # mean 0, not 1


@dataclass(frozen=True, slots=True)
class Weighting:
    """A weight function with its options.

    Attributes:
        name: one of ``NAMES``; "wd1" takes psi = 1 / temperature.
        floor: ell, the smallest weight, at most 0; exp and wd1 have none.
        power: p of g(z) = sign(z) |z|^p; only "power" has one.
    """

    name: str
    floor: float = 0.0
    power: float = 2.0

    def __post_init__(self) -> None:
        if self.name not in NAMES:
            raise ValueError(f"unknown weighting {self.name!r}; known: {', '.join(NAMES)}.")
        _check_floor(self.floor)
        if self.floor and self.name not in FLOORED:
            reason = "is positive everywhere" if self.name == "exp" else "has negative weights of its own"
            raise ValueError(
                f"floor={self.floor:g} has no meaning for weighting {self.name!r}, which {reason}; leave it at 0 or "
                f"use one of {', '.join(FLOORED)}."
            )
        _check_power(self.power)
        if self.name != "power" and self.power != 2.0:
            raise ValueError(f"power={self.power:g} is an option of weighting 'power', not of {self.name!r}.")

    def __call__(self, score: Tensor, temperature: float | Tensor, *, valid: Tensor | None = None) -> Tensor:
        """Weights [..., N] of scores [..., N]; see the function of that name."""
        if self.name == "exp":
            return exp_weights(score, temperature, valid=valid)
        if self.name == "linear":
            return linear_weights(score, temperature, floor=self.floor, valid=valid)
        if self.name == "square":
            return square_weights(score, temperature, floor=self.floor, valid=valid)
        if self.name == "power":
            return power_weights(score, temperature, power=self.power, floor=self.floor, valid=valid)
        return _signed_softmax(ScaledGroups.of(score, temperature, valid))


def exp_weights(score: Tensor, temperature: float | Tensor, *, valid: Tensor | None = None) -> Tensor:
    """Exponential weights W_i = N softmax(q / lambda)_i, of g(z) = exp(z).

    Args:
        score: [..., N] scores q, finite where valid.
        temperature: lambda > 0, a number or a tensor that broadcasts to [..., 1].
        valid: [..., N] bool; a False entry gets weight 0 and does not count in N. None: all.

    Returns:
        [..., N] weights with mean 1 over the valid entries of each group (all zero in a group without one),
        computed in float64 and returned in the dtype of ``score``, at least float32.
    """
    groups = ScaledGroups.of(score, temperature, valid)
    return groups.weights(groups.count * groups.softmax(groups.z))


def linear_weights(
    score: Tensor, temperature: float | Tensor, *, floor: float = 0.0, valid: Tensor | None = None
) -> Tensor:
    """Linear weights W_i = max((q_i - nu) / lambda, ell), of g(z) = z; nu of eqs 22-25, with a floor eq 11.

    Args:
        score: as in ``exp_weights``, and so are the temperature, what is valid and the result.
        temperature: lambda.
        floor: ell <= 0.
        valid: which entries count.
    """
    _check_floor(floor)
    groups = ScaledGroups.of(score, temperature, valid)
    return groups.weights((groups.z - linear_normaliser(groups, floor)).clamp(min=floor))


def square_weights(
    score: Tensor, temperature: float | Tensor, *, floor: float = 0.0, valid: Tensor | None = None
) -> Tensor:
    """Square weights W_i = max(g((q_i - nu) / lambda), ell), of g(z) = sign(z) z^2; nu of eqs 26-29 for ell = 0.

    The same as ``power_weights`` with power 2, in closed form. Arguments and result as in ``linear_weights``.
    """
    _check_floor(floor)
    groups = ScaledGroups.of(score, temperature, valid)
    return groups.weights(signed_power(groups.z - square_normaliser(groups, floor), 2.0).clamp(min=floor))


def power_weights(
    score: Tensor, temperature: float | Tensor, *, power: float, floor: float = 0.0, valid: Tensor | None = None
) -> Tensor:
    """Power weights W_i = max(g((q_i - nu) / lambda), ell), of g(z) = sign(z) |z|^p.

    Args:
        score: as in ``linear_weights``, and so are the other arguments and the result.
        temperature: lambda.
        power: p > 0; the alpha divergence has p = 1 / (alpha - 1).
        floor: ell <= 0.
        valid: which entries count.
    """
    _check_floor(floor)
    _check_power(power)
    groups = ScaledGroups.of(score, temperature, valid)
    nu = power_normaliser(groups, power, floor)
    return groups.weights(signed_power(groups.z - nu, power).clamp(min=floor))


def wd1_weights(advantage: Tensor, *, psi: float | Tensor = 1.0, valid: Tensor | None = None) -> Tensor:
    """wd1's weights W = N (softmax(psi A) - softmax(-psi A)), increasing in A and with mean ZERO (example 3.4).

    Args:
        advantage: [..., N]; a constant added to a group changes nothing.
        psi: inverse temperature > 0, a number or a tensor that broadcasts to [..., 1].
        valid: as in ``exp_weights``.

    Returns:
        [..., N], dtype as in ``exp_weights``. Without total mass the flow-matching loss has no minimum of its own;
        it needs an anchor, see ``awm.objectives.simpo``.
    """
    if not torch.all(torch.as_tensor(psi).detach() > 0):
        raise ValueError(f"psi={psi} is not valid; it must be a finite number above 0.")
    return _signed_softmax(ScaledGroups.of(advantage, 1.0 / psi, valid))


def weight_entropy(weights: Tensor, *, valid: Tensor | None = None) -> Tensor:
    """Entropy -sum p log p of each group's weights as probabilities, p proportional to max(W / N, 1e-6).

    Args:
        weights: [..., N].
        valid: [..., N] bool, which entries count.

    Returns:
        [...] nats, in [0, log N]; 0 for a group without valid entries.
    """
    valid = torch.ones_like(weights, dtype=torch.bool) if valid is None else valid
    count = valid.sum(-1, keepdim=True).clamp(min=1)
    p = torch.where(valid, (weights / count).clamp(min=1e-6), 0.0)
    p = p / p.sum(-1, keepdim=True).clamp(min=1e-6)
    entropy: Tensor = torch.special.entr(torch.where(valid, p, 1.0)).sum(-1)  # 0 log 0 has no gradient, 1 log 1 has
    return entropy


def kl_from_uniform(weights: Tensor, *, valid: Tensor | None = None) -> Tensor:
    """KL(p || uniform) = log N - H(p) of each group's weights, how far they move a policy; see ``weight_entropy``.

    Returns:
        [...] nats, in [0, log N]; 0 for a group without valid entries.
    """
    valid = torch.ones_like(weights, dtype=torch.bool) if valid is None else valid
    count = valid.sum(-1).clamp(min=1).to(weights.dtype)
    return count.log() - weight_entropy(weights, valid=valid)


def _signed_softmax(groups: ScaledGroups) -> Tensor:
    return groups.weights(groups.count * (groups.softmax(groups.z) - groups.softmax(-groups.z)))


def _check_floor(floor: float) -> None:
    if not -math.inf < floor <= 0:
        raise ValueError(f"floor={floor:g} is not valid; the smallest weight must be a finite number not above 0.")


def _check_power(power: float) -> None:
    if not 0 < power < math.inf:
        raise ValueError(f"power={power:g} is not valid; it must be a finite number above 0.")
