"""DanceGRPO's sampler: hand-computed values, the score form, and the law of Gaussian data."""

import math

import pytest
import torch

from awm.flow.path import score_from_velocity
from awm.flow.times import shifted_grid
from awm.samplers.dance_sde import DanceSDE
from awm.samplers.flow_sde import FlowSDE
from awm.samplers.transition import transition_mean
from tests.helpers import affine_coefficients, gaussian_velocity


def test_hand_computed_step() -> None:
    step = DanceSDE(grid=(0.5, 0.4, 0.0), noise_level=0.3).steps[0]
    assert step.std == pytest.approx(0.0948683, abs=5e-8)
    assert transition_mean(torch.tensor(1.0).double(), torch.tensor(2.0).double(), step).item() == pytest.approx(0.782)
    assert -step.velocity_weight == pytest.approx(0.1 * (1 + 0.3**2 * 0.5 / (2 * 0.5)), rel=1e-12)


def test_mean_is_the_euler_step_of_the_reverse_sde() -> None:
    """x_t + dt (v - eta^2 / 2 score): the drift of dx = (v - eta^2 score / 2) dt + eta dw, run backward."""
    x_t, v = torch.randn(2, 3, 2, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for step in DanceSDE(grid=shifted_grid(14), noise_level=0.3).steps:
        t = torch.full((3,), step.t, dtype=torch.float64)
        expected = x_t + (step.s - step.t) * (v - 0.3**2 / 2 * score_from_velocity(x_t, v, t))
        torch.testing.assert_close(transition_mean(x_t, v, step), expected, rtol=1e-12, atol=1e-12)


def test_noise_does_not_fade_toward_the_data() -> None:
    grid = (*(1 - i / 10 for i in range(10)), 0.0)
    dance, flow = ([step.std for step in kind(grid=grid, noise_level=0.3).steps] for kind in (DanceSDE, FlowSDE))
    assert dance == pytest.approx([0.3 * math.sqrt(0.1)] * 10, rel=1e-9)
    assert flow[1] > dance[1] and flow[-1] < dance[-1]


@pytest.mark.parametrize("eta", [0.3, 0.7])
def test_gaussian_data_are_reproduced_as_steps_shrink(eta: float) -> None:
    errors = []
    for n in (50, 200, 800):
        grid = (*(1 - i / n for i in range(n)), 0.0)
        sampler = DanceSDE(grid=grid, noise_level=eta)
        constant, *rest = affine_coefficients(sampler, gaussian_velocity(2.0, 0.5), n)[-1].tolist()
        assert constant == pytest.approx(2.0, abs=1e-9)
        errors.append(abs(math.hypot(*rest) - 0.5))
    assert errors[0] > 3 * errors[1] > 9 * errors[2] and errors[2] < 1e-3
