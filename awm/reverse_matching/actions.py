"""Bounded actions: a log density on all of R^d, and its gradient, for a critic that knows only the box [-1, 1]^d.

Stein's identity needs a density without an edge. Two ways to have one:

    clamp      log p(x) = Q(clamp(x)) / T, whose gradient is zero outside: flat beyond the box, exact inside
    pre-tanh   x is the action before tanh: log p(z) = Q(tanh z) / T + sum log(1 - tanh^2 z)

With a gradient that does not know the clamp, or on the box cut off at its edges, the field's mean is not zero (0.66 and
1.01 in the one-dimensional example of the tests), and the correction is a bias. Both derivations are ours.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import softplus

Critic = Callable[[Tensor], Tensor]


def clamped_log_density(critic: Critic, x_0: Tensor, *, temperature: float) -> tuple[Tensor, Tensor]:
    """Q(clamp(x_0, -1, 1)) / T and its gradient, zero in every dimension that was clamped.

    Args:
        critic: Q of actions [..., d], [...]; any state is bound into it. Candidates must not influence one another.
        x_0: [..., d] candidates, anywhere in R^d.
        temperature: T > 0.

    Returns:
        log p [...] up to a constant, and its gradient [..., d]; neither carries a graph.
    """
    return _value_and_gradient(lambda x: critic(x.clamp(-1, 1)) / temperature, x_0)


def squashed_log_density(critic: Critic, z: Tensor, *, temperature: float) -> tuple[Tensor, Tensor]:
    """Q(tanh z) / T + sum log(1 - tanh^2 z) and its gradient, with z [..., d] the action before tanh.

    The flow or diffusion then lives before tanh; see ``clamped_log_density`` for arguments and result.
    """
    return _value_and_gradient(lambda x: critic(x.tanh()) / temperature + log_tanh_slope(x).sum(-1), z)


def log_tanh_slope(z: Tensor) -> Tensor:
    """log(1 - tanh^2 z) = 2 (log 2 - z - softplus(-2 z)), which does not underflow where tanh saturates."""
    return 2 * (math.log(2) - z - softplus(-2 * z))


def _value_and_gradient(log_density: Critic, x: Tensor) -> tuple[Tensor, Tensor]:
    with torch.enable_grad():
        leaf = x.detach().requires_grad_()
        value = log_density(leaf)
        (gradient,) = torch.autograd.grad(value.sum(), leaf)
    return value.detach(), gradient
