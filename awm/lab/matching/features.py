"""A velocity model that is linear in its parameters, so that gradients are outer products and SGD is exact."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

NUM_FEATURES = 512
FREQUENCY_STD = 1.5


class CosineFeatures:
    """S independent sets of random cosine features phi(x, t) = sqrt(2 / F) cos(w (x, t) + b).

    With w ~ N(0, FREQUENCY_STD^2) and b uniform they approximate a Gaussian kernel (random Fourier features, Rahimi
    and Recht, 2007), and ||phi||^2 is close to 1. A velocity field is v(x, t) = phi(x, t) theta.

    Args:
        dim: d, features of the state.
        generators: S generators.
        num_features: F.
    """

    def __init__(self, dim: int, generators: Sequence[torch.Generator], *, num_features: int = NUM_FEATURES) -> None:
        self.num_features = num_features
        self.frequency = torch.stack(
            [FREQUENCY_STD * torch.randn(dim + 1, num_features, generator=g) for g in generators]
        )
        self.phase = torch.stack([2 * math.pi * torch.rand(1, num_features, generator=g) for g in generators])

    def __call__(self, x_t: Tensor, t: Tensor) -> Tensor:
        """States [S, B, d] and times [S, B] to features [S, B, F]."""
        inputs = torch.cat([x_t, t.unsqueeze(-1)], dim=-1)
        return math.sqrt(2 / self.num_features) * torch.baddbmm(self.phase, inputs, self.frequency).cos_()
