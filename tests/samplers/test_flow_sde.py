"""Flow-GRPO's sampler: exact transition densities, and the identities that tie them to matching losses."""

import math

import pytest
import torch
from torch import Tensor

from awm.flow.times import shifted_grid
from awm.samplers.flow_sde import FlowSDE, transitions
from awm.samplers.transition import transition_log_prob, transition_mean

GRID = shifted_grid(14)


def rows(count: int, seed: int = 0) -> list[Tensor]:
    return list(torch.randn(count, 3, 2, 4, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64))


def velocity(x: Tensor, t: Tensor) -> Tensor:
    return torch.tanh(x) * t.reshape(-1, 1, 1, 1)


def test_first_step_takes_its_diffusion_from_the_next_time() -> None:
    step = transitions(GRID, noise_level=0.7)[0]
    std_dev_t = 0.7 * math.sqrt(1 / (1 - GRID[1]))
    dt = GRID[1] - 1
    assert step.std == pytest.approx(std_dev_t * math.sqrt(-dt), rel=1e-12)
    assert step.x_weight == pytest.approx(1 + std_dev_t**2 * dt / 2, rel=1e-12)
    assert step.velocity_weight == pytest.approx(dt, rel=1e-12)


def test_log_prob_is_the_gaussian_density_averaged_over_dimensions() -> None:
    x_s, x_t, v = rows(3)
    step = transitions(GRID, noise_level=0.7)[4]
    normal = torch.distributions.Normal(transition_mean(x_t, v, step), step.std)
    expected = normal.log_prob(x_s).flatten(1).mean(1)
    torch.testing.assert_close(transition_log_prob(x_s, x_t, v, step), expected, rtol=1e-12, atol=1e-12)


def test_trajectory_log_prob_is_that_of_its_own_steps() -> None:
    generator = torch.Generator().manual_seed(1)
    drawn: list[Tensor] = []

    def randn() -> Tensor:
        drawn.append(torch.randn(3, 2, 4, 4, generator=generator, dtype=torch.float64))
        return drawn[-1]

    sampler = FlowSDE(grid=GRID, noise_level=0.7, sde_frac=0.5)
    out = sampler(velocity, rows(1)[0], randn, keep_states=True)
    assert len(drawn) == 7
    assert out.states is not None
    assert out.log_prob is not None
    assert out.log_prob.shape == (14, 3)
    assert (out.log_prob[7:] == 0).all()
    for i, z in enumerate(drawn):
        expected = -z.square().flatten(1).mean(1) / 2 - math.log(sampler.steps[i].std) - math.log(2 * math.pi) / 2
        torch.testing.assert_close(out.log_prob[i], expected)
        time = torch.full((3,), GRID[i], dtype=torch.float64)
        again = transition_log_prob(out.states[i + 1], out.states[i], velocity(out.states[i], time), sampler.steps[i])
        assert torch.equal(again, out.log_prob[i])


def test_gradient_of_log_prob_reaches_the_velocity() -> None:
    x_s, x_t, v = rows(3)
    v.requires_grad_()
    step = transitions(GRID, noise_level=0.7)[4]
    transition_log_prob(x_s, x_t, v, step).sum().backward()
    assert v.grad is not None
    residual = (x_s - transition_mean(x_t, v.detach(), step)) * step.velocity_weight / step.std**2
    torch.testing.assert_close(v.grad, residual / 32)


def test_policy_likelihood_is_matching_with_a_noisier_target() -> None:
    """-||x_s - mean||^2 / (2 std^2) = -(cc^2 D / (2 sg^2)) ||v - y||^2, y = v_old - sg z / (cc sqrt D), exactly."""
    a, t, d = 0.7, 0.5, 0.07
    step = transitions((t, t - d, 0.0), noise_level=a)[0]
    sg, cc = a * math.sqrt(t / (1 - t)), 1 + a**2 / 2
    weight = cc**2 * d / (2 * sg**2)
    assert (weight, sg**2 / (cc**2 * d), cc) == pytest.approx((0.110716, 4.516056, 1.245), abs=5e-7)
    x_t, v_old, v, z = rows(4)
    x_s = transition_mean(x_t, v_old, step) + step.std * z
    y = v_old - sg * z / (cc * math.sqrt(d))
    normaliser = math.log(step.std * math.sqrt(2 * math.pi))
    expected = -weight * (v - y).square().flatten(1).mean(1) - normaliser
    torch.testing.assert_close(transition_log_prob(x_s, x_t, v, step), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("options", [{"noise_level": -1.0}, {"sde_frac": 1.5}])
def test_impossible_options_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="noise_level >= 0 and sde_frac"):
        FlowSDE(grid=GRID, **options)
