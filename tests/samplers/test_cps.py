"""FlowCPS's sampler: hand-computed values, an unscaled likelihood, and Gaussian data at any number of steps."""

import math

import pytest
import torch
from torch import Tensor

from awm.flow.times import shifted_grid
from awm.samplers.cps import CPS
from awm.samplers.transition import renoising_step, transition_kl, transition_log_prob, transition_mean
from tests.helpers import affine_coefficients, gaussian_velocity

GRID = shifted_grid(14)


def scalar(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64).reshape(1, 1, 1, 1)


def test_hand_computed_step() -> None:
    step = CPS(grid=(0.5, 0.4, 0.0), noise_level=0.5).steps[0]
    assert step.std == pytest.approx(0.2828427, abs=5e-8)
    assert step.velocity_weight == pytest.approx(-0.1585786, abs=5e-8)
    assert transition_mean(scalar(1), scalar(2), step).item() == pytest.approx(0.5656854, abs=5e-8)
    assert transition_log_prob(scalar(0.8), scalar(1), scalar(2), step).item() == pytest.approx(-0.0549033, abs=5e-8)


def test_all_noise_is_new_at_eta_one() -> None:
    for step in CPS(grid=GRID, noise_level=1.0).steps:
        assert step.std == pytest.approx(step.s, rel=1e-12)
        assert (step.x_weight, step.velocity_weight) == pytest.approx((1 - step.s, -step.t * (1 - step.s)), abs=1e-9)


def test_likelihood_and_kl_have_no_scale() -> None:
    generator = torch.Generator().manual_seed(0)
    x_s, x_t, v, other = torch.randn(4, 3, 2, 4, 4, generator=generator, dtype=torch.float64)
    step = CPS(grid=GRID, noise_level=0.8).steps[5]
    assert step.unscaled
    mean, mean_other = (transition_mean(x_t, u, step) for u in (v, other))
    torch.testing.assert_close(transition_log_prob(x_s, x_t, v, step), -(x_s - mean).square().mean((1, 2, 3)))
    torch.testing.assert_close(transition_kl(v, other, step), (mean - mean_other).square().mean((1, 2, 3)))


def test_gradient_stays_bounded_toward_the_data() -> None:
    """dL / dv = 2 A std c n / D, where the scaled likelihood's c / std grows without bound."""
    steps = CPS(grid=shifted_grid(40), noise_level=0.7).steps[1:-1]
    assert max(step.std * -step.velocity_weight for step in steps) < 0.25
    assert -steps[-1].velocity_weight * steps[-1].std < 1e-2 < -steps[-1].velocity_weight / steps[-1].std


def std_of_samples(eta: float, n: int) -> float:
    """Std of what becomes of N(0, 1) along n even steps if the data are N(2, 0.5^2); their mean is exact."""
    grid = (*(1 - i / n for i in range(n)), 0.0)
    constant, *rest = affine_coefficients(CPS(grid=grid, noise_level=eta), gaussian_velocity(2.0, 0.5), n)[-1].tolist()
    assert constant == pytest.approx(2.0, abs=1e-9)
    return math.hypot(*rest)


def test_gaussian_data_are_reproduced_if_each_step_renews_little() -> None:
    errors = [0.5 - std_of_samples(2 / math.sqrt(n), n) for n in (50, 200, 800)]
    assert errors == pytest.approx((0.02733, 0.00703, 0.00177), abs=1e-5)


@pytest.mark.parametrize(("eta", "limit"), [(0.3, 0.4846), (0.7, 0.4242), (1.0, 0.3515)])
def test_at_fixed_eta_samples_are_too_narrow_at_any_number_of_steps(eta: float, limit: float) -> None:
    assert std_of_samples(eta, 800) == pytest.approx(limit, abs=1e-4)
    assert std_of_samples(eta, 200) < std_of_samples(eta, 800) < 0.5 - 0.01


@pytest.mark.parametrize("t", [0.2, 0.5, 0.9])
def test_variance_that_a_short_step_takes(t: float) -> None:
    """(1 - cos)^2 (1 - t)^2 Var(x_0 | x_t), with Var(x_0 | x_t) = std^2 t^2 / V_t for Gaussian data."""
    eta, std = 0.7, 0.5
    variance = (1 - t) ** 2 * std**2 + t**2
    slope = (t - (1 - t) * std**2) / variance  # of the velocity in x_t
    step = renoising_step(t, t - 1e-9, fresh=math.sin(eta * math.pi / 2))
    after = (step.x_weight + step.velocity_weight * slope) ** 2 * variance + step.std**2
    lost = (1 - math.cos(eta * math.pi / 2)) ** 2 * (1 - t) ** 2 * std**2 * t**2 / variance
    assert variance - after == pytest.approx(lost, abs=1e-8)
