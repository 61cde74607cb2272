"""The diffusion policy's path: the cosine schedule seen from the straight path."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from awm.flow.path import interpolate, noise_from_velocity
from awm.lab.control.policy import GenerativePolicy
from awm.lab.control.schedule import (
    Schedule,
    cosine_alpha_bars,
    diffusion_schedule,
    flow_schedule,
    input_scale,
    network_input,
)
from awm.reverse_matching import cosine_path
from awm.samplers.ddim import DDIM


def test_cosine_levels_by_hand() -> None:
    levels = cosine_alpha_bars(20)
    first = math.cos(0.008 / 1.008 * math.pi / 2) ** 2
    assert levels[9] == pytest.approx(math.cos(0.508 / 1.008 * math.pi / 2) ** 2 / first, rel=1e-9)
    # The last beta would be 1; it is held at 0.999.
    assert levels[19] == pytest.approx(levels[18] * 0.001, rel=1e-9)


def test_levels_agree_with_the_continuous_path_of_reverse_matching() -> None:
    path, schedule = cosine_path(), diffusion_schedule(20)
    t = torch.tensor(schedule.grid[1:-1], dtype=torch.float64)
    expected = torch.arange(19, 0, -1, dtype=torch.float64) / 20
    torch.testing.assert_close(path.time_from_straight(t), expected)


def test_the_map_between_the_paths_is_exact() -> None:
    alpha = torch.tensor([1.0, 0.9, 0.5, 0.1], dtype=torch.float64)
    sigma = (1 - alpha.square()).sqrt()
    t = sigma / (alpha + sigma)
    torch.testing.assert_close(input_scale(t), alpha + sigma)
    x_0, eps = torch.randn(2, 4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    vp = alpha[:, None] * x_0 + sigma[:, None] * eps
    torch.testing.assert_close(network_input(interpolate(x_0, eps, t), t, diffusion_schedule(20)), vp)


def test_ddim_of_the_diffusion_is_ddim_of_the_mapped_times() -> None:
    """DDIM written in alpha and sigma against the straight path's sampler, for a nonlinear noise prediction."""
    levels = [*reversed(cosine_alpha_bars(12)), 1.0]
    x_start = torch.randn(5, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))

    def noise(x_vp: Tensor, level: float) -> Tensor:
        return torch.tanh(x_vp) * math.sqrt(1 - level) + 0.1 * x_vp

    x = x_start
    for now, after in pairwise(levels):
        eps = noise(x, now)
        x_0 = (x - math.sqrt(1 - now) * eps) / math.sqrt(now)
        x = math.sqrt(after) * x_0 + math.sqrt(1 - after) * eps

    schedule = diffusion_schedule(12)
    level_of = dict(zip(schedule.grid, levels, strict=True))

    def velocity(x_t: Tensor, t: Tensor) -> Tensor:
        level = level_of[float(t[0])]
        return (noise(network_input(x_t, t, schedule), level) - x_t) / (1 - t[:, None])

    result = DDIM(grid=schedule.grid)(velocity, schedule.first_state(x_start), lambda: x_start).x_0
    torch.testing.assert_close(result, x, rtol=1e-7, atol=1e-7)


def test_training_times_are_the_levels_of_a_diffusion_and_all_times_of_a_flow() -> None:
    uniforms = torch.rand(4000, generator=torch.Generator().manual_seed(0))
    diffusion, flow = diffusion_schedule(5), flow_schedule(5)
    drawn, counts = diffusion.training_times(uniforms).unique(return_counts=True)
    torch.testing.assert_close(drawn, torch.tensor(sorted(diffusion.grid[:-1])))
    assert (counts - 800).abs().max() < 4 * math.sqrt(4000 * 0.2 * 0.8)
    t = flow.training_times(uniforms)
    assert 0 < t.min() < 0.01 and 0.99 < t.max() <= 1 and abs(t.mean() - 0.5) < 0.02
    assert flow.training_times(torch.zeros(1)).item() == 1.0


@pytest.mark.parametrize("schedule", [flow_schedule(4), diffusion_schedule(4)], ids=["flow", "diffusion"])
def test_prediction_and_velocity_say_the_same(schedule: Schedule) -> None:
    policy = GenerativePolicy(3, 2, torch.Generator().manual_seed(0), schedule=schedule, width=8, depth=2)
    x_t, state, t = torch.randn(6, 2), torch.randn(6, 3), torch.full((6,), 0.4)
    velocity, prediction = policy.velocity(x_t, t, state), policy.prediction(x_t, t, state)
    torch.testing.assert_close(policy.as_prediction(x_t, velocity, t), prediction)
    if schedule.predicts_noise:
        torch.testing.assert_close(noise_from_velocity(x_t, velocity, t), prediction)


@pytest.mark.parametrize("schedule", [flow_schedule(4), diffusion_schedule(4)], ids=["flow", "diffusion"])
def test_samples_lie_in_the_box_and_belong_to_their_state(schedule: Schedule) -> None:
    policy = GenerativePolicy(3, 2, torch.Generator().manual_seed(0), schedule=schedule, width=8, depth=2)
    state = torch.randn(5, 3)
    together = policy.sample(state, 7, torch.Generator().manual_seed(3))
    assert together.shape == (5, 7, 2) and together.abs().max() <= 1
    others = policy.sample(torch.cat([state[:1], torch.randn(4, 3)]), 7, torch.Generator().manual_seed(3))
    torch.testing.assert_close(together[0], others[0])
    assert (together[1:] - others[1:]).abs().max() > 1e-2
