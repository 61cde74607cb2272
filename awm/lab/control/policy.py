"""A policy that draws actions by integrating a velocity field from noise, for a flow or a diffusion."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from awm.flow.path import (
    data_from_velocity,
    noise_from_velocity,
    velocity_from_data,
    velocity_from_noise,
)
from awm.lab.control.schedule import Schedule, network_input
from awm.lab.networks import Activation, Velocity
from awm.samplers.ddim import DDIM


class GenerativePolicy(nn.Module):
    """Actions a in [-1, 1]^d given a state, the end of a probability-flow ODE on the straight path.

    Args:
        observation_dim: O.
        action_dim: d.
        generator: what the parameters are drawn from.
        schedule: of a flow or a diffusion.
        width: hidden features.
        depth: hidden layers.
        activation: between layers.
        data_bound: the data the policy is trained on lie in [-bound, bound]^d; so does their posterior mean, and
            the sampler keeps its predictions there.
    """

    def __init__(
        self,
        observation_dim: int,
        action_dim: int,
        generator: torch.Generator,
        *,
        schedule: Schedule,
        width: int,
        depth: int,
        activation: Activation = nn.functional.mish,
        data_bound: float = 1.0,
    ) -> None:
        super().__init__()
        self.schedule = schedule
        self.action_dim = action_dim
        self.data_bound = data_bound
        self.net = Velocity(
            action_dim,
            generator,
            width=width,
            depth=depth,
            condition=observation_dim,
            activation=activation,
        )
        self.sampler = DDIM(grid=schedule.grid)

    def prediction(self, x_t: Tensor, t: Tensor, state: Tensor) -> Tensor:
        """What the network says at x_t [M, d], t [M], state [M, O]: velocity (flow) or noise (diffusion), [M, d]."""
        return cast(Tensor, self.net(network_input(x_t, t, self.schedule), t, state))

    def as_prediction(self, x_t: Tensor, velocity: Tensor, t: Tensor) -> Tensor:
        """The prediction that means this velocity [M, d]: itself, or the noise x_t + (1 - t) v."""
        return noise_from_velocity(x_t, velocity, t) if self.schedule.predicts_noise else velocity

    def velocity(self, x_t: Tensor, t: Tensor, state: Tensor) -> Tensor:
        """Velocity at x_t on the straight path, [M, d]; arguments as ``prediction``."""
        prediction = self.prediction(x_t, t, state)
        return velocity_from_noise(x_t, prediction, t) if self.schedule.predicts_noise else prediction

    @torch.no_grad()
    def sample(self, state: Tensor, count: int, generator: torch.Generator) -> Tensor:
        """``count`` actions of each state, all in one forward per step: state [B, O] -> [B, count, d] in [-1, 1]."""
        rows = state.repeat_interleave(count, dim=0)
        eps = torch.randn(len(rows), self.action_dim, generator=generator, device=generator.device)

        def bounded_velocity(x_t: Tensor, t: Tensor) -> Tensor:
            x_0 = data_from_velocity(x_t, self.velocity(x_t, t, rows), t).clamp(-self.data_bound, self.data_bound)
            return velocity_from_data(x_t, x_0, t)

        x_0 = self.sampler(bounded_velocity, self.schedule.first_state(eps), lambda: eps).x_0
        return x_0.clamp(-1, 1).reshape(len(state), count, self.action_dim)
