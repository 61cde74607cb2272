"""Rollouts of the tiny flow with stored steps, for the objectives that learn from them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from awm.flow.times import shifted_grid
from awm.samplers.cps import CPS
from awm.samplers.dance_sde import DanceSDE
from awm.samplers.ddpm import DDPM
from awm.samplers.flow_sde import FlowSDE
from awm.samplers.gaussian import GaussianSampler
from awm.types import Experience
from tests.helpers import FakePolicy, TinyFlow, make_experience

GRID = shifted_grid(10)
DOUBLE = torch.float64
KEY: dict[str, Any] = {"seed": 0, "epoch": 3, "inner_epoch": 0, "on_policy": True}
SAMPLERS: dict[str, type[GaussianSampler]] = {"flow_sde": FlowSDE, "dance_sde": DanceSDE, "cps": CPS, "ddpm": DDPM}


def fresh(dtype: torch.dtype = DOUBLE) -> FakePolicy:
    return FakePolicy(TinyFlow(dtype=dtype))


def moved(name: str) -> FakePolicy:
    """A policy whose set ``name`` differs from the current weights."""
    policy = fresh()
    policy.sets[name]["weight"] += torch.tensor([0.2, -0.1, 0.3], dtype=DOUBLE)
    return policy


def nudge(policy: FakePolicy, size: float = 0.1) -> FakePolicy:
    """The same policy after its current weights have moved, as by an optimizer step."""
    with torch.no_grad():
        policy.model.weight.add_(size * torch.tensor([1.0, -0.5, 0.7], dtype=policy.model.weight.dtype))
    return policy


@torch.no_grad()
def rolled_out(
    policy: FakePolicy,
    sampler: Any = None,
    *,
    batch: Experience | None = None,
    guidance_scale: float = 1.0,
    seed: int = 1,
) -> Experience:
    """An experience whose x_0 and trajectory the policy's current weights have sampled."""
    sampler = FlowSDE(grid=GRID, noise_level=0.7) if sampler is None else sampler
    batch = make_experience(dtype=policy.model.weight.dtype) if batch is None else batch
    generator = torch.Generator().manual_seed(seed)
    condition = batch.condition.take(batch.prompt_index)

    def randn() -> Tensor:
        return torch.randn(batch.x_0.shape, generator=generator, dtype=batch.x_0.dtype)

    def velocity(x_t: Tensor, t: Tensor) -> Tensor:
        return policy.model.velocity(x_t, t, condition, guidance_scale)

    trajectory = sampler(velocity, randn(), randn, keep_states=True)
    policy.model.calls.clear()
    return replace(batch, x_0=trajectory.x_0, trajectory=trajectory)


def gradient(policy: FakePolicy, loss: Tensor) -> Tensor:
    return torch.autograd.grad(loss.mean(), policy.model.weight)[0]
