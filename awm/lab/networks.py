"""Small multilayer perceptrons, for one run or for S independent runs at once.

In a ``SeedMLP`` every parameter has a leading axis of S seeds and layers are batched matrix products, so that no
run sees another. Adam is elementwise, so one Adam over stacked parameters is S Adams; only clipping has to be done
per seed (``clip_gradients``), and losses have to be summed, not averaged, over seeds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from awm.flow.path import expand_time
from awm.flow.rng import sample_generator

Activation = Callable[[Tensor], Tensor]


def time_features(t: Tensor, num_frequencies: int) -> Tensor:
    """Sine and cosine of pi 2^k t for k < num_frequencies: [...] times in [0, 1] -> [..., 2 num_frequencies]."""
    frequency = math.pi * 2 ** torch.arange(num_frequencies, dtype=t.dtype, device=t.device)
    angle = t.unsqueeze(-1) * frequency
    return torch.cat([angle.sin(), angle.cos()], dim=-1)


class SeedLinear(nn.Module):
    """S linear layers y = x W + b, each initialised like ``nn.Linear`` from its own generator.

    Args:
        num_inputs: features in.
        num_outputs: features out.
        generators: S generators; their state moves on.
    """

    def __init__(self, num_inputs: int, num_outputs: int, generators: Sequence[torch.Generator]) -> None:
        super().__init__()
        bound = 1 / math.sqrt(num_inputs)

        def uniform(*shape: int) -> nn.Parameter:
            drawn = torch.stack([torch.rand(shape, generator=g) for g in generators])
            return nn.Parameter((2 * drawn - 1) * bound)

        self.weight = uniform(num_inputs, num_outputs)
        self.bias = uniform(1, num_outputs)

    def forward(self, x: Tensor) -> Tensor:
        """[S, B, num_inputs] -> [S, B, num_outputs]."""
        return torch.baddbmm(self.bias, x, self.weight)


class SeedMLP(nn.Module):
    """S independent perceptrons.

    Args:
        sizes: features of input, hidden layers and output, (7, 32, 32, 1).
        generators: S generators the parameters are drawn from, in order of the layers.
        activation: between layers.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        generators: Sequence[torch.Generator],
        *,
        activation: Activation = nn.functional.silu,
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(SeedLinear(inputs, outputs, generators) for inputs, outputs in pairwise(sizes))
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        """[S, B, sizes[0]] -> [S, B, sizes[-1]]."""
        *hidden, last = self.layers
        for layer in hidden:
            x = self.activation(layer(x))
        result: Tensor = last(x)
        return result


class MLP(nn.Module):
    """One perceptron: ``SeedMLP`` with one seed, for inputs without an axis of seeds.

    Args:
        sizes: features of input, hidden layers and output.
        generator: what the parameters are drawn from.
        activation: between layers.
    """

    def __init__(
        self, sizes: Sequence[int], generator: torch.Generator, *, activation: Activation = nn.functional.silu
    ) -> None:
        super().__init__()
        self.net = SeedMLP(sizes, [generator], activation=activation)

    def forward(self, x: Tensor) -> Tensor:
        """[..., sizes[0]] -> [..., sizes[-1]]."""
        result: Tensor = self.net(x.reshape(1, -1, x.shape[-1]))
        return result.reshape(*x.shape[:-1], -1)


class SeedVelocity(nn.Module):
    """S velocity fields v(x_t, t, condition), perceptrons on (x_t, time features, condition).

    Args:
        dim: features of the state.
        generators: S generators the parameters are drawn from.
        width: hidden features.
        depth: hidden layers.
        condition: features of the condition; 0 for none.
        num_frequencies: of ``time_features``; t itself is an input too.
        activation: between layers.
    """

    def __init__(
        self,
        dim: int,
        generators: Sequence[torch.Generator],
        *,
        width: int = 64,
        depth: int = 2,
        condition: int = 0,
        num_frequencies: int = 4,
        activation: Activation = nn.functional.silu,
    ) -> None:
        super().__init__()
        self.num_frequencies = num_frequencies
        sizes = (dim + 1 + 2 * num_frequencies + condition, *[width] * depth, dim)
        self.net = SeedMLP(sizes, generators, activation=activation)

    def forward(self, x_t: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        """Velocity at x_t [S, B, dim], t [S] or [S, B] in [0, 1], condition [S, B, C] or None: [S, B, dim]."""
        time = expand_time(t, x_t[..., 0]).expand(x_t.shape[:-1])
        inputs = [x_t, time.unsqueeze(-1), time_features(time, self.num_frequencies)]
        result: Tensor = self.net(torch.cat(inputs if condition is None else [*inputs, condition], dim=-1))
        return result


class Velocity(nn.Module):
    """One velocity field: ``SeedVelocity`` with one seed, for states [B, dim] and times [B]; same options."""

    def __init__(
        self,
        dim: int,
        generator: torch.Generator,
        *,
        width: int = 64,
        depth: int = 2,
        condition: int = 0,
        num_frequencies: int = 4,
        activation: Activation = nn.functional.silu,
    ) -> None:
        super().__init__()
        self.net = SeedVelocity(
            dim,
            [generator],
            width=width,
            depth=depth,
            condition=condition,
            num_frequencies=num_frequencies,
            activation=activation,
        )

    def forward(self, x_t: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        """Velocity at x_t [B, dim], t [B], condition [B, C] or None: [B, dim]."""
        given = None if condition is None else condition.unsqueeze(0)
        result: Tensor = self.net(x_t.unsqueeze(0), t.unsqueeze(0), given)
        return result.squeeze(0)


def seed_generators(seeds: Sequence[int], stream: str) -> list[torch.Generator]:
    """A generator per seed for one purpose; seed k draws the same numbers whichever seeds run beside it."""
    return [sample_generator(seed, stream, 0, 0) for seed in seeds]


def clip_gradients(parameters: Iterable[nn.Parameter], max_norm: float) -> Tensor:
    """Scale each seed's gradient to a norm of at most ``max_norm``, as S calls of ``clip_grad_norm_`` would.

    Args:
        parameters: of a module whose parameters all have a leading axis of S seeds; changed in place.
        max_norm: bound on the norm over all parameters of one seed.

    Returns:
        [S] norms before clipping.
    """
    gradients = [p.grad for p in parameters if p.grad is not None]
    squared = torch.stack([g.flatten(1).square().sum(1) for g in gradients])
    norm = squared.sum(0).sqrt()
    scale = (max_norm / (norm + 1e-6)).clamp(max=1)
    for gradient in gradients:
        gradient.mul_(expand_time(scale, gradient))
    return norm
