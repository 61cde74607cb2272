"""What GRPO-Guard promises: a log-ratio of mean zero, and a gradient of the same size at every step."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from awm.objectives.flow_grpo import FlowGRPO
from awm.objectives.grpo_guard import GRPOGuard, grpo_guard_loss, guarded_log_ratio
from awm.objectives.transitions import StepChoice
from awm.samplers.flow_sde import FlowSDE
from awm.samplers.transition import transition_log_prob, transition_mean
from awm.types import Experience, LossOutput
from tests.helpers import FakePolicy, make_experience
from tests.objectives.rollouts import DOUBLE, GRID, KEY, SAMPLERS, fresh, gradient, moved, nudge, rolled_out

every_sampler = pytest.mark.parametrize("name", SAMPLERS)


def run(policy: FakePolicy, batch: Experience, *, key: dict[str, Any] | None = None, **options: Any) -> LossOutput:
    return GRPOGuard(**{"beta": 0.0, "clip_range": 1.0, **options})(policy, batch, **{**KEY, **(key or {})})


def scalar(value: float) -> Tensor:
    return torch.tensor(value, dtype=DOUBLE).reshape(1, 1, 1, 1)


def two_terms(x_s: Tensor, x_t: Tensor, v: Tensor, v_old: Tensor, step: Any) -> Tensor:
    """The published form, std (log p - log p_old) + mean delta^2 / (2 std)."""
    new, old = (transition_log_prob(x_s, x_t, u, replace(step, unscaled=False)) for u in (v, v_old))
    delta = transition_mean(x_t, v, step) - transition_mean(x_t, v_old, step)
    return step.std * (new - old) + delta.square().flatten(1).mean(1) / (2 * step.std)


def test_hand_computed_ratio_and_loss() -> None:
    """t = 0.5, t' = 0.4, a = 0.7, x = 1, x' = 0.8; old velocity 2, new velocity 2.1; A = 1 and 1 / h = 10."""
    step = FlowSDE(grid=(0.5, 0.4, 0.0), noise_level=0.7).steps[0]
    log_ratio = guarded_log_ratio(scalar(0.8), scalar(1), scalar(2.1), scalar(2.0), step).unsqueeze(0)
    assert log_ratio.exp().item() == pytest.approx(0.9945033, abs=5e-8)
    lengths = torch.tensor([step.t - step.s], dtype=DOUBLE)
    loss, metrics = grpo_guard_loss(log_ratio, torch.ones(1, dtype=DOUBLE), clip_range=0.1, step_length=lengths)
    assert loss.item() == pytest.approx(-9.945033, abs=5e-7)
    assert metrics["ratio/mean"].item() == pytest.approx(0.9945033, abs=5e-8)
    undivided, _ = grpo_guard_loss(log_ratio, torch.ones(1, dtype=DOUBLE), clip_range=0.1)
    assert undivided.item() == pytest.approx(-0.9945033, abs=5e-8)


@every_sampler
def test_closed_form_is_the_published_one(name: str) -> None:
    generator = torch.Generator().manual_seed(0)
    x_t, v, v_old, z = torch.randn(4, 5, 2, 3, 3, generator=generator, dtype=DOUBLE)
    for step in SAMPLERS[name](grid=GRID, noise_level=0.7).steps[:-1]:
        x_s = transition_mean(x_t, v_old, step) + step.std * z
        expected = two_terms(x_s, x_t, v, v_old, step)
        torch.testing.assert_close(guarded_log_ratio(x_s, x_t, v, v_old, step), expected, rtol=1e-9, atol=1e-11)
        noise = step.velocity_weight * (z * (v - v_old)).flatten(1).mean(1)
        torch.testing.assert_close(guarded_log_ratio(x_s, x_t, v, v_old, step), noise, rtol=1e-9, atol=1e-11)


def test_log_ratio_is_odd_in_the_noise_where_the_likelihoods_is_biased_downward() -> None:
    """Noise n and -n: the guarded log-ratios cancel; those of the likelihood leave -mean delta^2 / std^2."""
    x_t, v, v_old, n = torch.randn(4, 5, 2, 3, 3, generator=torch.Generator().manual_seed(0), dtype=DOUBLE)
    step = FlowSDE(grid=GRID, noise_level=0.7).steps[4]
    mean = transition_mean(x_t, v_old, step)
    states = [mean + step.std * n, mean - step.std * n]
    assert sum(guarded_log_ratio(x, x_t, v, v_old, step) for x in states).abs().max() < 1e-12  # type: ignore[union-attr]
    plain = [transition_log_prob(x, x_t, v, step) - transition_log_prob(x, x_t, v_old, step) for x in states]
    delta = (transition_mean(x_t, v, step) - mean).square().flatten(1).mean(1)
    torch.testing.assert_close(plain[0] + plain[1], -delta / step.std**2)


def test_on_policy_gradient_is_the_same_at_every_time() -> None:
    """dL / dv = A (1 + a^2 / 2) n / D at all t < 1; Flow-GRPO's grows toward the data."""
    a, advantage = 0.7, torch.tensor([1.0, -0.5, 2.0], dtype=DOUBLE)
    x_t, v, n = torch.randn(3, 3, 2, 3, 3, generator=torch.Generator().manual_seed(0), dtype=DOUBLE)
    for step in FlowSDE(grid=GRID, noise_level=a).steps[1:]:
        point = v.clone().requires_grad_()
        x_s = transition_mean(x_t, v, step) + step.std * n
        log_ratio = guarded_log_ratio(x_s, x_t, point, point, step).unsqueeze(0)
        assert (log_ratio == 0).all()
        lengths = torch.tensor([step.t - step.s], dtype=DOUBLE)
        loss, _ = grpo_guard_loss(log_ratio, advantage, clip_range=2e-6, step_length=lengths)
        (slope,) = torch.autograd.grad(loss.sum(), point)
        expected = advantage.reshape(-1, 1, 1, 1) * (1 + a**2 / 2) * n / 18
        torch.testing.assert_close(slope, expected, rtol=1e-9, atol=1e-12)


@every_sampler
def test_on_policy_the_ratio_is_one(name: str) -> None:
    policy = fresh(torch.float32)
    batch = rolled_out(policy, SAMPLERS[name](grid=GRID, noise_level=0.6))
    out = run(policy, batch, clip_range=2e-6, guard_div_dt=False)
    torch.testing.assert_close(out.loss, -batch.advantage)
    assert (out.metrics["ratio/mean"] == 1).all() and (out.metrics["ratio/clip_fraction"] == 0).all()
    assert (out.metrics["ratio/stored_error"] < 1e-6).all()


@every_sampler
def test_the_stored_velocity_is_met_exactly_by_a_batch_of_the_same_rows(name: str) -> None:
    policy = fresh(torch.float32)
    batch = rolled_out(policy, SAMPLERS[name](grid=GRID, noise_level=0.6))
    on, off = (run(policy, batch, key={"on_policy": flag}, sde_steps=1) for flag in (True, False))
    assert torch.equal(on.loss, off.loss) and (on.metrics["ratio/stored_error"] == 0).all()
    assert torch.equal(gradient(policy, on.loss), gradient(policy, off.loss))


def test_off_policy_ratio_is_to_the_stored_velocity() -> None:
    policy = fresh()
    batch = rolled_out(policy)
    nudge(policy)
    out = run(policy, batch, key={"on_policy": False}, clip_range=10.0)
    chosen = StepChoice(0.99)(batch, seed=0, epoch=3, inner_epoch=0)
    assert chosen.velocity_old is not None
    v, expected = chosen.rows.velocity(policy, 1.0), []
    for j, step in enumerate(chosen.steps):
        log_ratio = two_terms(chosen.x_s[j], chosen.rows.x_t[j], v[j], chosen.velocity_old[j], step)
        expected.append(-batch.advantage * log_ratio.exp() / (step.t - step.s))
    torch.testing.assert_close(out.loss, torch.stack(expected).mean(0))
    assert (out.metrics["ratio/mean"] - 1).abs().max() > 1e-4 and "ratio/stored_error" not in out.metrics
    assert torch.equal(out.loss, run(policy, batch, off_policy=True, clip_range=10.0).loss)


def test_a_single_step_is_flow_grpo_in_other_units_while_on_policy() -> None:
    """Where both ratios are one, guarded gradients are Flow-GRPO's times std / h."""
    policy = fresh()
    for index in range(1, 9):
        window = FlowSDE(grid=GRID, window="random", window_size=1, window_range=(index, index + 1))
        batch, step = rolled_out(policy, window), window.steps[index]
        plain = FlowGRPO(beta=0.0, clip_range=1.0)(policy, batch, **KEY)
        guarded = gradient(policy, run(policy, batch).loss)
        factor = step.std / (step.t - step.s)
        torch.testing.assert_close(guarded, factor * gradient(policy, plain.loss), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("advantage", [1.0, -1.0])
def test_clipping_stops_the_gradient_of_what_has_moved_too_far(advantage: float) -> None:
    log_ratio = torch.full((1, 1), 0.3 * advantage, dtype=DOUBLE, requires_grad=True)
    loss, metrics = grpo_guard_loss(log_ratio, torch.tensor([advantage], dtype=DOUBLE), clip_range=0.1)
    assert loss.item() == pytest.approx(-advantage * (1 + 0.1 * advantage))
    assert metrics["ratio/clip_fraction"].item() == 1
    assert torch.autograd.grad(loss.sum(), log_ratio)[0].item() == 0


@pytest.mark.parametrize(("beta", "used"), [(0.0, []), (0.1, ["reference"])])
@pytest.mark.parametrize("on_policy", [True, False])
def test_no_forward_that_is_not_needed(beta: float, used: list[str], on_policy: bool) -> None:
    policy = fresh()
    out = run(policy, rolled_out(policy), beta=beta, key={"on_policy": on_policy})
    assert policy.used == used
    assert policy.model.calls == [(45, False)] * len(used) + [(45, True)]
    assert ("loss/kl_reference" in out.metrics) == bool(used)
    assert not any(value.requires_grad for value in out.metrics.values())


def test_kl_is_that_of_flow_grpo() -> None:
    policy = moved("reference")
    batch = replace(rolled_out(policy), advantage=torch.zeros(5, dtype=DOUBLE))
    for flag in (False, True):
        plain = FlowGRPO(beta=0.1, kl_time_scaled=flag)(policy, batch, **KEY)
        torch.testing.assert_close(run(policy, batch, beta=0.1, kl_time_scaled=flag).loss, plain.loss)
        assert (plain.loss > 0).all()


def test_a_sample_costs_the_same_in_any_micro_batch() -> None:
    policy = moved("reference")
    batch = rolled_out(policy)
    whole, part = run(policy, batch, beta=0.1), run(policy, batch.take(torch.tensor([3])), beta=0.1)
    torch.testing.assert_close(part.loss, whole.loss[[3]])


def test_a_trajectory_without_velocities_or_noise_is_refused() -> None:
    policy = fresh()
    batch = rolled_out(policy)
    assert batch.trajectory is not None
    with pytest.raises(ValueError, match=r"no velocities; use sample\.sampler=flow_sde"):
        run(policy, replace(batch, trajectory=replace(batch.trajectory, velocities=None)))
    with pytest.raises(ValueError, match=r"sample\.noise_level above 0"):
        run(policy, make_experience(dtype=DOUBLE))


@every_sampler
def test_reward_rises_on_the_tiny_problem(name: str) -> None:
    policy = fresh()
    optimizer = torch.optim.Adam(policy.trainable_parameters(), lr=0.05)
    rewards = []
    for epoch in range(25):
        sampler = SAMPLERS[name](grid=GRID, noise_level=0.6)
        batch = rolled_out(policy, sampler, batch=make_experience(batch=32, dtype=DOUBLE), seed=epoch)
        reward = -batch.x_0.mean((1, 2, 3))
        rewards.append(reward.mean().item())
        advantage = (reward - reward.mean()) / reward.std()
        loss = run(policy, replace(batch, advantage=advantage), clip_range=2e-6, key={"epoch": epoch}).loss
        optimizer.zero_grad()
        loss.mean().backward()
        optimizer.step()
    assert sum(rewards[-5:]) / 5 > sum(rewards[:5]) / 5 + 0.05
