"""A micro-batch of stored steps: which are chosen, how they are packed, and what is said if there are none."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from awm.objectives.transitions import StepChoice
from awm.samplers.ddim import DDIM
from awm.samplers.flow_sde import FlowSDE
from awm.samplers.sa_solver import SASolver
from tests.helpers import make_experience
from tests.objectives.rollouts import GRID, SAMPLERS, fresh, moved, rolled_out

KEY: dict[str, Any] = {"seed": 0, "epoch": 3, "inner_epoch": 0}


def times(fraction: float, sampler: Any = None, count: int | None = None, **key: int) -> list[float]:
    chosen = StepChoice(fraction, count)(rolled_out(fresh(), sampler), **{**KEY, **key})
    assert chosen.rows.t.shape == (len(chosen.steps), 5)
    assert chosen.rows.t[:, 0].tolist() == pytest.approx([step.t for step in chosen.steps])
    return [step.t for step in chosen.steps]


def test_the_published_fraction_drops_the_last_step() -> None:
    assert times(0.99) == list(GRID[:9])
    assert times(1.0) == list(GRID[:10])
    assert times(0.5) == list(GRID[:5])


@pytest.mark.parametrize("name", ["cps", "ddpm"])
def test_a_step_without_noise_is_never_chosen(name: str) -> None:
    assert times(1.0, SAMPLERS[name](grid=GRID)) == list(GRID[:9])


def test_only_the_window_is_trained() -> None:
    sampler = FlowSDE(grid=GRID, window="sliding", window_size=3, window_interval=1).for_epoch(0, 2)
    assert times(1.0, sampler) == list(GRID[2:5])
    assert times(0.4, sampler) == list(GRID[2:4])


def test_a_subset_is_keyed_ordered_and_the_same_for_all_samples() -> None:
    seen = set()
    for epoch in range(60):
        drawn = times(0.99, count=6, epoch=epoch)
        assert len(set(drawn)) == 6 and drawn == sorted(drawn, reverse=True)
        seen |= set(drawn)
    assert seen == set(GRID[:9])
    assert times(0.99, count=4) == times(0.99, count=4)
    first = [times(0.99, count=4, epoch=epoch) for epoch in range(3)]
    for key in ({"seed": 1}, {"inner_epoch": 1}):
        assert first != [times(0.99, count=4, epoch=epoch, **key) for epoch in range(3)]
    batch = rolled_out(fresh())
    parts = [StepChoice(0.99, 4)(batch.take(torch.tensor(rows)), **KEY).steps for rows in ([0, 1], [4])]
    assert parts[0] == parts[1]


def test_a_larger_number_than_there_are_steps_is_all_of_them() -> None:
    assert times(0.99, count=9) == times(0.99, count=50) == list(GRID[:9])


def test_packing_is_time_major() -> None:
    batch = rolled_out(fresh())
    chosen = StepChoice(0.99)(batch, **KEY)
    stored = batch.trajectory
    assert stored is not None and stored.states is not None
    assert torch.equal(chosen.rows.x_t, stored.states[:9]) and torch.equal(chosen.x_s, stored.states[1:10])
    assert stored.log_prob is not None and torch.equal(chosen.log_prob_old, stored.log_prob[:9])
    assert stored.velocities is not None and chosen.velocity_old is not None
    assert torch.equal(chosen.velocity_old, stored.velocities[:9])
    condition = batch.condition.pooled[batch.prompt_index]
    assert torch.equal(chosen.rows.condition.pooled, condition.repeat(9, 1))


@pytest.mark.parametrize("name", SAMPLERS)
def test_likelihood_of_the_policy_that_sampled_is_the_stored_one(name: str) -> None:
    policy = fresh()
    batch = rolled_out(policy, SAMPLERS[name](grid=GRID, noise_level=0.6))
    chosen = StepChoice(1.0)(batch, **KEY)
    assert chosen.velocity_old is not None
    torch.testing.assert_close(chosen.log_prob(chosen.velocity_old), chosen.log_prob_old, rtol=0, atol=0)
    torch.testing.assert_close(chosen.rows.velocity(policy, 1.0), chosen.velocity_old, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", SAMPLERS)
def test_kl_of_a_policy_to_itself_is_zero_and_to_others_positive(name: str) -> None:
    policy = moved("reference")
    chosen = StepChoice(1.0)(rolled_out(policy, SAMPLERS[name](grid=GRID, noise_level=0.6)), **KEY)
    v, other = chosen.rows.velocity(policy, 1.0), chosen.rows.frozen_velocity(policy, "reference", 1.0)
    assert (chosen.kl(v, v) == 0).all() and (chosen.kl(v, other) > 0).all()
    lengths = torch.tensor([step.t - step.s for step in chosen.steps], dtype=torch.float64).unsqueeze(1)
    scaled = chosen.kl(v, other, time_scaled=True)
    torch.testing.assert_close(scaled / chosen.kl(v, other), lengths.expand_as(scaled), rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    "sampler",
    [
        DDIM(grid=GRID),
        SASolver(grid=(0.999, *GRID[1:])),
        FlowSDE(grid=GRID, noise_level=0.0),
        FlowSDE(grid=GRID, sde_frac=0.0),
    ],
)
def test_a_rollout_without_noise_or_likelihood_says_which_sampler_to_take(sampler: Any) -> None:
    batch = rolled_out(fresh(), sampler)
    with pytest.raises(ValueError, match=r"sample\.sampler=flow_sde .* with sample\.noise_level above 0"):
        StepChoice(0.9)(batch, **KEY)


def test_an_experience_without_trajectory_says_the_same() -> None:
    with pytest.raises(ValueError, match=r"sample\.sampler=flow_sde"):
        StepChoice(0.9)(make_experience(), **KEY)
    batch = rolled_out(fresh())
    assert batch.trajectory is not None
    with pytest.raises(ValueError, match=r"sample\.sampler=flow_sde"):
        StepChoice(0.9)(replace(batch, trajectory=replace(batch.trajectory, states=None)), **KEY)


def test_a_window_beyond_the_fraction_says_so() -> None:
    sampler = FlowSDE(grid=GRID, window="random", window_range=(7, 9))
    with pytest.raises(ValueError, match=r"none in the first 0\.5 of the grid; raise train\.timestep_fraction"):
        StepChoice(0.5)(rolled_out(fresh(), sampler), **KEY)


@pytest.mark.parametrize(("fraction", "count"), [(0.0, None), (1.5, None), (0.9, 0)])
def test_bad_options_fail_at_construction(fraction: float, count: int | None) -> None:
    with pytest.raises(ValueError, match="timestep_fraction lies in"):
        StepChoice(fraction, count)
