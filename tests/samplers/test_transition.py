"""What every Gaussian sampler promises: exact steps, likelihoods of what is stored, and KLs of its steps."""

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from awm.flow.times import shifted_grid
from awm.interfaces import VariesByEpoch
from awm.samplers.cps import CPS
from awm.samplers.dance_sde import DanceSDE
from awm.samplers.ddim import DDIM
from awm.samplers.ddpm import DDPM
from awm.samplers.flow_sde import FlowSDE
from awm.samplers.gaussian import GaussianSampler
from awm.samplers.transition import (
    matching_target,
    ode_step,
    transition_kl,
    transition_log_prob,
    transition_mean,
)
from awm.types import Transition

GRID = shifted_grid(14)
SAMPLERS: dict[str, type[GaussianSampler]] = {"flow_sde": FlowSDE, "dance_sde": DanceSDE, "cps": CPS, "ddpm": DDPM}
every_sampler = pytest.mark.parametrize("kind", SAMPLERS.values(), ids=SAMPLERS)
DOUBLE = torch.float64


def rows(count: int, seed: int = 0) -> list[Tensor]:
    return list(torch.randn(count, 3, 2, 4, 4, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE))


def velocity(x: Tensor, t: Tensor) -> Tensor:
    return torch.tanh(x) * t.reshape(-1, 1, 1, 1)


def walk(sampler: GaussianSampler, seed: int = 1, **options: Any) -> Any:
    generator = torch.Generator().manual_seed(seed)
    return sampler(velocity, rows(1)[0], lambda: torch.randn(3, 2, 4, 4, generator=generator, dtype=DOUBLE), **options)


def scalar(value: float) -> Tensor:
    return torch.tensor(value, dtype=DOUBLE).reshape(1, 1, 1, 1)


def flow_step() -> Transition:
    """t = 0.5 -> 0.4 with a = 0.7, the step of the hand-computed values."""
    return FlowSDE(grid=(0.5, 0.4, 0.0), noise_level=0.7).steps[0]


def test_hand_computed_step_of_flow_sde() -> None:
    step = flow_step()
    assert step.std == pytest.approx(0.2213594, abs=5e-8)
    assert step.velocity_weight == pytest.approx(-0.1245, abs=1e-12)
    mean = transition_mean(scalar(1), scalar(2), step)
    assert mean.item() == pytest.approx(0.7020, abs=1e-12)
    new, old = (transition_log_prob(scalar(0.8), scalar(1), scalar(v), step) for v in (2.1, 2.0))
    assert old.item() == pytest.approx(0.4910290, abs=5e-8)
    assert (new - old).exp().item() == pytest.approx(0.9738659, abs=5e-8)


def test_hand_computed_kl_and_that_of_the_public_code() -> None:
    step = flow_step()
    kl = transition_kl(scalar(2.1), scalar(2.0), step).item()
    assert kl == pytest.approx(0.00158166, abs=5e-9)
    assert (step.t - step.s) * kl == pytest.approx(0.000158166, abs=5e-10)


@pytest.mark.parametrize("noise", [0.3, 0.7, 1.0])
def test_kl_of_flow_sde_in_closed_form(noise: float) -> None:
    """Mean (v - v')^2 times h (1 - t) / (2 t) (1 / a + a / 2)^2, or (h / 2) (1 / sg + sg (1 - t) / (2 t))^2."""
    v, other = rows(2)
    distance = (v - other).square().flatten(1).mean(1)
    for step in FlowSDE(grid=GRID, noise_level=noise).steps[1:]:
        h, sg = step.t - step.s, noise * math.sqrt(step.t / (1 - step.t))
        first = h * (1 - step.t) / (2 * step.t) * (1 / noise + noise / 2) ** 2
        second = h / 2 * (1 / sg + sg * (1 - step.t) / (2 * step.t)) ** 2
        assert first == pytest.approx(second, rel=1e-12)
        torch.testing.assert_close(transition_kl(v, other, step), first * distance, rtol=1e-12, atol=1e-12)


@every_sampler
def test_kl_is_that_of_the_two_normals(kind: type[GaussianSampler]) -> None:
    x_t, v, other = rows(3)
    for step in kind(grid=GRID).steps[:-1]:
        normals = [torch.distributions.Normal(transition_mean(x_t, u, step), step.std) for u in (v, other)]
        expected = torch.distributions.kl_divergence(*normals).flatten(1).mean(1)
        if step.unscaled:
            expected = 2 * step.std**2 * expected
        torch.testing.assert_close(transition_kl(v, other, step), expected, rtol=1e-12, atol=1e-12)


@every_sampler
def test_likelihood_is_a_matching_loss_with_a_noisier_target(kind: type[GaussianSampler]) -> None:
    """log p = -(b^2 / (2 std^2)) mean (v - y)^2 + constant with y = v_old + (std / b) z, to rounding."""
    x_t, v_old, v, z = rows(4)
    for step in kind(grid=GRID, noise_level=0.7).steps[:-1]:
        x_s = transition_mean(x_t, v_old, step) + step.std * z
        y = matching_target(x_s, x_t, step)
        torch.testing.assert_close(y, v_old + step.std / step.velocity_weight * z, rtol=1e-11, atol=1e-11)
        weight = step.velocity_weight**2 * (1.0 if step.unscaled else 1 / (2 * step.std**2))
        constant = 0.0 if step.unscaled else -math.log(step.std * math.sqrt(2 * math.pi))
        expected = constant - weight * (v - y).square().flatten(1).mean(1)
        torch.testing.assert_close(transition_log_prob(x_s, x_t, v, step), expected, rtol=1e-12, atol=1e-12)


@every_sampler
def test_what_is_stored_is_what_was_done(kind: type[GaussianSampler]) -> None:
    sampler = kind(grid=GRID, noise_level=0.6, sde_frac=0.5)
    out = walk(sampler, keep_states=True)
    assert out.steps == sampler.steps and len(out.steps) == 14
    assert out.states.shape == (15, 3, 2, 4, 4) and out.velocities.shape == (14, 3, 2, 4, 4)
    assert [step.std > 0 for step in out.steps] == [True] * 7 + [False] * 7
    for i, step in enumerate(out.steps):
        x_t, x_s, v = out.states[i], out.states[i + 1], out.velocities[i]
        assert (step.t, step.s) == GRID[i : i + 2]
        assert torch.equal(v, velocity(x_t, torch.full((3,), step.t, dtype=DOUBLE)))
        assert torch.equal(out.log_prob[i], transition_log_prob(x_s, x_t, v, step))
    assert (out.log_prob[:7] != 0).all() and (out.log_prob[7:] == 0).all()


@every_sampler
def test_remembering_changes_nothing(kind: type[GaussianSampler]) -> None:
    sampler = kind(grid=GRID, noise_level=0.6)
    kept, plain = walk(sampler, keep_states=True), walk(sampler)
    assert torch.equal(kept.x_0, plain.x_0) and torch.equal(kept.states[-1], kept.x_0)
    assert plain.states is None and plain.velocities is None and plain.log_prob is None


@every_sampler
@pytest.mark.parametrize("options", [{"noise_level": 0.0}, {"sde_frac": 0.0}])
def test_without_noise_every_sampler_is_ddim(kind: type[GaussianSampler], options: dict[str, float]) -> None:
    sampler = kind(grid=GRID, **options)  # type: ignore[arg-type]
    assert sampler.steps == tuple(ode_step(t, s) for t, s in pairwise(GRID))
    assert torch.equal(walk(sampler).x_0, DDIM(grid=GRID)(velocity, rows(1)[0], lambda: torch.zeros(())).x_0)


@every_sampler
def test_vanishing_noise_gives_the_mean_of_the_euler_step(kind: type[GaussianSampler]) -> None:
    x_t, v = rows(2)
    for step in kind(grid=GRID, noise_level=1e-7).steps:
        torch.testing.assert_close(transition_mean(x_t, v, step), x_t + (step.s - step.t) * v, rtol=0, atol=1e-10)
        assert step.std < 1e-5


def test_derivative_of_the_mean_of_flow_sde_does_not_depend_on_t() -> None:
    for step in FlowSDE(grid=GRID, noise_level=0.7).steps[1:]:
        assert step.velocity_weight == pytest.approx(-(step.t - step.s) * (1 + 0.7**2 / 2), rel=1e-12)


@every_sampler
def test_half_precision_states_are_walked_in_float32(kind: type[GaussianSampler]) -> None:
    x_1 = rows(1)[0].half()
    out = kind(grid=GRID)(lambda x, t: x.half(), x_1, lambda: torch.randn(x_1.shape), keep_states=True)
    assert out.states is not None and out.velocities is not None
    assert out.x_0.dtype == out.states.dtype == out.velocities.dtype == torch.float32


@every_sampler
def test_options_out_of_range_say_what_is_valid(kind: type[GaussianSampler]) -> None:
    with pytest.raises(ValueError, match=rf"{kind.__name__} needs noise_level >= 0.* and sde_frac in"):
        kind(grid=GRID, noise_level=-0.1)
    with pytest.raises(ValueError, match=r"sde_frac=1\.5"):
        kind(grid=GRID, sde_frac=1.5)
    assert isinstance(kind(grid=GRID), VariesByEpoch)


@pytest.mark.parametrize("kind", [CPS, DDPM])
def test_shares_of_noise_end_at_one(kind: type[GaussianSampler]) -> None:
    with pytest.raises(ValueError, match="at most 1"):
        kind(grid=GRID, noise_level=1.2)


@pytest.mark.parametrize("kind", [CPS, DDPM])
@pytest.mark.parametrize("eta", [0.2, 0.7, 1.0])
def test_the_level_of_noise_is_that_of_the_path(kind: type[GaussianSampler], eta: float) -> None:
    """Of a state x_t = (1 - t) x_0 + t eps and its true velocity, x_s has (1 - s) x_0 and noise of size s."""
    steps = kind(grid=GRID, noise_level=eta).steps
    for step in steps:
        on_data = step.x_weight * (1 - step.t) - step.velocity_weight
        on_noise = step.x_weight * step.t + step.velocity_weight
        assert on_data == pytest.approx(1 - step.s, abs=1e-12)
        assert on_noise**2 + step.std**2 == pytest.approx(step.s**2, abs=1e-12)
    assert steps[-1].std == 0 and all(step.std > 0 for step in steps[:-1])
