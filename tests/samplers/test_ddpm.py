"""DDPO's sampler: DDIM with eta in its own variables, carried to the straight path."""

import math
from itertools import pairwise

import pytest
import torch

from awm.flow.times import shifted_grid
from awm.samplers.ddim import DDIM
from awm.samplers.ddpm import DDPM
from awm.samplers.transition import transition_mean
from tests.helpers import affine_coefficients, gaussian_velocity

GRID = shifted_grid(14)


def alpha_bar(t: float) -> float:
    return (1 - t) ** 2 / ((1 - t) ** 2 + t**2)


def path_time(ab: float) -> float:
    """t with alpha_bar(t) = ab."""
    ratio = math.sqrt((1 - ab) / ab)
    return ratio / (1 + ratio)


def ddim_step(y: float, noise: float, ab: float, ab_next: float, eta: float) -> tuple[float, float, float]:
    """Predicted data, mean and std of DDIM's eq. 12 and 16, in the variance-preserving variables."""
    data = (y - math.sqrt(1 - ab) * noise) / math.sqrt(ab)
    variance = eta**2 * (1 - ab_next) / (1 - ab) * (1 - ab / ab_next)
    mean = math.sqrt(ab_next) * data + math.sqrt(1 - ab_next - variance) * noise
    return data, mean, math.sqrt(variance)


def on_the_path(y: float, noise: float, ab: float, ab_next: float, eta: float) -> tuple[float, float]:
    """Mean and std of this sampler's step from the same state and noise prediction, in those variables again."""
    t, s = path_time(ab), path_time(ab_next)
    radius, radius_next = math.hypot(1 - t, t), math.hypot(1 - s, s)
    x = radius * y
    step = DDPM(grid=(t, s, 0.0), noise_level=eta).steps[0]
    velocity = torch.tensor((noise - x) / (1 - t), dtype=torch.float64)
    mean = transition_mean(torch.tensor(x, dtype=torch.float64), velocity, step).item()
    return mean / radius_next, step.std / radius_next


def test_hand_computed_step() -> None:
    data, mean, std = ddim_step(1.0, 0.4, 0.5, 0.7, 1.0)
    assert (data, std, mean) == pytest.approx((1.0142136, 0.4140393, 0.9919794), abs=5e-8)
    assert on_the_path(1.0, 0.4, 0.5, 0.7, 1.0) == pytest.approx((0.9919794, 0.4140393), abs=5e-8)


@pytest.mark.parametrize("eta", [0.3, 1.0])
def test_every_step_is_ddims_in_other_variables(eta: float) -> None:
    for t, s in pairwise(GRID[1:-1]):
        ab, ab_next = alpha_bar(t), alpha_bar(s)
        _, *expected = ddim_step(0.8, -0.3, ab, ab_next, eta)
        assert on_the_path(0.8, -0.3, ab, ab_next, eta) == pytest.approx(expected, rel=1e-9)


def test_first_step_is_the_limit_of_pure_noise() -> None:
    at_one, near_one = (DDPM(grid=(t, 0.9, 0.0), noise_level=0.8).steps[0] for t in (1.0, 1 - 1e-9))
    assert at_one.std == pytest.approx(0.8 * 0.9, rel=1e-12)
    for name in ("x_weight", "velocity_weight", "std"):
        assert getattr(at_one, name) == pytest.approx(getattr(near_one, name), abs=1e-8)


def test_last_step_is_deterministic() -> None:
    step = DDPM(grid=GRID, noise_level=1.0).steps[-1]
    assert (step.std, step.x_weight, step.velocity_weight) == (0.0, 1.0, -step.t)


def test_eta_one_reverses_the_noising_process() -> None:
    """With the true data x_0, x_s given x_t is the posterior of x_s between x_0 and x_t."""
    t, s, x_0, eps = 0.7, 0.4, 0.6, -1.1
    step = DDPM(grid=(t, s, 0.0), noise_level=1.0).steps[0]
    x_t, shrink = (1 - t) * x_0 + t * eps, (1 - t) / (1 - s)
    mean = step.x_weight * x_t + step.velocity_weight * (eps - x_0)
    posterior = (1 - s) * x_0 + shrink * s**2 / t**2 * (x_t - (1 - t) * x_0)
    assert mean == pytest.approx(posterior, abs=1e-12)
    assert step.std**2 == pytest.approx(s**2 * (t**2 - shrink**2 * s**2) / t**2, abs=1e-12)


@pytest.mark.parametrize("eta", [0.3, 1.0])
def test_gaussian_data_are_reproduced_as_steps_shrink(eta: float) -> None:
    errors = []
    for n in (50, 200, 800):
        grid = (*(1 - i / n for i in range(n)), 0.0)
        sampler = DDPM(grid=grid, noise_level=eta)
        constant, *rest = affine_coefficients(sampler, gaussian_velocity(2.0, 0.5), n)[-1].tolist()
        assert constant == pytest.approx(2.0, abs=1e-9)
        errors.append(abs(math.hypot(*rest) - 0.5))
    assert errors[0] > 3 * errors[1] > 9 * errors[2] and errors[2] < 3e-3


def test_little_eta_is_nearly_ddim() -> None:
    law = affine_coefficients(DDPM(grid=GRID, noise_level=1e-6), gaussian_velocity(2.0, 0.5), 14)[-1, :2]
    torch.testing.assert_close(
        law, affine_coefficients(DDIM(grid=GRID), gaussian_velocity(2.0, 0.5), 0)[-1], rtol=0, atol=1e-9
    )
