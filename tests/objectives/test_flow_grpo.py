"""What Flow-GRPO promises: the clipped policy gradient of the sampler's own steps, and the exact KL of each."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from awm.objectives.flow_grpo import FlowGRPO, flow_grpo_loss
from awm.objectives.transitions import StepChoice
from awm.samplers.flow_sde import FlowSDE
from awm.samplers.transition import transition_kl, transition_log_prob, transition_mean
from awm.types import Experience, LossOutput
from tests.helpers import FakePolicy, make_experience
from tests.objectives.rollouts import DOUBLE, GRID, KEY, SAMPLERS, fresh, gradient, moved, nudge, rolled_out

every_sampler = pytest.mark.parametrize("name", SAMPLERS)
NOISE = 0.6


def run(policy: FakePolicy, batch: Experience, *, key: dict[str, Any] | None = None, **options: Any) -> LossOutput:
    return FlowGRPO(**{"beta": 0.0, "clip_range": 1.0, **options})(policy, batch, **{**KEY, **(key or {})})


def rollout(policy: FakePolicy, name: str, **options: Any) -> Experience:
    return rolled_out(policy, SAMPLERS[name](grid=GRID, noise_level=NOISE, **options))


def scalar(value: float) -> Tensor:
    return torch.tensor(value, dtype=DOUBLE).reshape(1, 1, 1, 1)


def test_hand_computed_ratio_and_kl() -> None:
    """t = 0.5, t' = 0.4, a = 0.7, x = 1, x' = 0.8; old velocity 2, new velocity 2.1."""
    step = FlowSDE(grid=(0.5, 0.4, 0.0), noise_level=0.7).steps[0]
    new, old = (transition_log_prob(scalar(0.8), scalar(1), scalar(v), step).unsqueeze(0) for v in (2.1, 2.0))
    one = torch.ones(1, dtype=DOUBLE)
    loss, metrics = flow_grpo_loss(new, old, one, clip_range=0.1)
    assert (-loss.item(), metrics["ratio/mean"].item()) == pytest.approx((0.9738659, 0.9738659), abs=5e-8)
    assert flow_grpo_loss(new, old, one, clip_range=0.01)[0].item() == pytest.approx(-0.9738659, abs=5e-8)
    assert flow_grpo_loss(new, old, -one, clip_range=0.01)[0].item() == pytest.approx(0.99)
    kl = transition_kl(scalar(2.1), scalar(2.0), step).item()
    assert (kl, (step.t - step.s) * kl) == pytest.approx((0.00158166, 0.000158166), abs=5e-9)


@every_sampler
def test_on_policy_the_ratio_is_one_and_the_loss_minus_the_advantage(name: str) -> None:
    policy = fresh(torch.float32)
    batch = rollout(policy, name)
    out = run(policy, batch, clip_range=1e-4)
    torch.testing.assert_close(out.loss, -batch.advantage)
    assert (out.metrics["ratio/mean"] == 1).all() and (out.metrics["ratio/clip_fraction"] == 0).all()
    assert (out.metrics["ratio/stored_error"] < 1e-4).all()


@every_sampler
def test_the_stored_likelihood_is_met_exactly_by_a_batch_of_the_same_rows(name: str) -> None:
    policy = fresh(torch.float32)
    batch = rollout(policy, name)
    for epoch in range(5):
        out = run(policy, batch, key={"epoch": epoch}, sde_steps=1)
        assert (out.metrics["ratio/stored_error"] == 0).all()
        off = run(policy, batch, key={"epoch": epoch, "on_policy": False}, sde_steps=1, clip_range=1e-6)
        assert torch.equal(off.loss, out.loss) and (off.metrics["ratio/clip_fraction"] == 0).all()
        assert torch.equal(gradient(policy, off.loss), gradient(policy, out.loss))
        assert "ratio/stored_error" not in off.metrics


@every_sampler
def test_on_policy_gradient_is_matching_with_a_noisier_target(name: str) -> None:
    """A b^2 / (2 std^2) mean (v - y)^2 at the rollout's states, with y the target of ``matching_target``."""
    policy = fresh()
    batch = rollout(policy, name)
    chosen = StepChoice(0.99)(batch, seed=0, epoch=3, inner_epoch=0)
    squared = (chosen.rows.velocity(policy, 1.0) - chosen.rows.target).square().flatten(2).mean(2)
    weights = [step.velocity_weight**2 / (1.0 if step.unscaled else 2 * step.std**2) for step in chosen.steps]
    weighted = (torch.tensor(weights, dtype=DOUBLE).unsqueeze(1) * squared).mean(0)
    expected = gradient(policy, batch.advantage * weighted)
    torch.testing.assert_close(gradient(policy, run(policy, batch).loss), expected, rtol=1e-9, atol=1e-12)


def test_on_policy_gradient_in_closed_form() -> None:
    """dL / dv = A c n / (D std) at each step, with c / std = sqrt(h (1 - t) / t) (1 / a + a / 2); odd in n."""
    a = 0.7
    x_t, v, n = torch.randn(3, 4, 2, 3, 3, generator=torch.Generator().manual_seed(0), dtype=DOUBLE)
    advantage = torch.tensor([1.0, -0.5, 0.0, 2.0], dtype=DOUBLE)
    for step in FlowSDE(grid=GRID, noise_level=a).steps[1:]:
        h = step.t - step.s
        x_s = transition_mean(x_t, v, step) + step.std * n
        point = v.clone().requires_grad_()
        log_prob = transition_log_prob(x_s, x_t, point, step).unsqueeze(0)
        loss, _ = flow_grpo_loss(log_prob, log_prob, advantage, clip_range=1e-4)
        (slope,) = torch.autograd.grad(loss.sum(), point)
        steepness = math.sqrt(h * (1 - step.t) / step.t) * (1 / a + a / 2)
        expected = advantage.reshape(-1, 1, 1, 1) * steepness * n / 18
        torch.testing.assert_close(slope, expected, rtol=1e-9, atol=1e-12)


def test_off_policy_ratio_is_to_the_stored_likelihood() -> None:
    policy = fresh()
    batch = rollout(policy, "flow_sde")
    nudge(policy)
    out = run(policy, batch, key={"on_policy": False}, clip_range=10.0)
    chosen = StepChoice(0.99)(batch, seed=0, epoch=3, inner_epoch=0)
    ratio = (chosen.log_prob(chosen.rows.velocity(policy, 1.0)) - chosen.log_prob_old).exp()
    torch.testing.assert_close(out.loss, (-batch.advantage * ratio).mean(0))
    assert (ratio - 1).abs().max() > 1e-3


@pytest.mark.parametrize(("advantage", "log_ratio", "loss", "slope"), [(1.0, 0.3, -1.1, 0.0), (-1.0, -0.3, 0.9, 0.0)])
def test_clipping_stops_the_gradient_of_what_has_moved_too_far(
    advantage: float, log_ratio: float, loss: float, slope: float
) -> None:
    log_prob = torch.full((1, 1), log_ratio, dtype=DOUBLE, requires_grad=True)
    far, metrics = flow_grpo_loss(
        log_prob, torch.zeros(1, 1, dtype=DOUBLE), torch.tensor([advantage], dtype=DOUBLE), clip_range=0.1
    )
    assert far.item() == pytest.approx(loss) and metrics["ratio/clip_fraction"].item() == 1
    assert torch.autograd.grad(far.sum(), log_prob)[0].item() == slope


def test_what_has_moved_the_wrong_way_is_not_clipped() -> None:
    log_prob = torch.full((1, 1), 0.3, dtype=DOUBLE, requires_grad=True)
    loss, _ = flow_grpo_loss(log_prob, torch.zeros(1, 1), -torch.ones(1, dtype=DOUBLE), clip_range=0.1)
    assert torch.autograd.grad(loss.sum(), log_prob)[0].item() == pytest.approx(math.exp(0.3))


def test_kl_of_the_public_code_is_the_exact_one_times_the_step() -> None:
    policy = moved("reference")
    batch = replace(rollout(policy, "flow_sde"), advantage=torch.zeros(5, dtype=DOUBLE))
    for index in range(9):
        window = FlowSDE(grid=GRID, noise_level=NOISE, window="random", window_size=1, window_range=(index, index + 1))
        batch = replace(rolled_out(policy, window), advantage=torch.zeros(5, dtype=DOUBLE))
        exact, scaled = (run(policy, batch, beta=0.04, kl_time_scaled=flag).loss for flag in (False, True))
        torch.testing.assert_close(scaled / exact, torch.full((5,), GRID[index] - GRID[index + 1], dtype=DOUBLE))


@pytest.mark.parametrize(
    ("beta", "on_policy", "used"), [(0.0, True, []), (0.1, True, ["reference"]), (0.1, False, ["reference"])]
)
def test_no_forward_that_is_not_needed(beta: float, on_policy: bool, used: list[str]) -> None:
    policy = fresh()
    batch = rollout(policy, "flow_sde")
    out = run(policy, batch, beta=beta, key={"on_policy": on_policy})
    assert policy.used == used
    # All 9 steps of 5 samples in one forward; the one with gradient comes last.
    assert policy.model.calls == [(45, False)] * len(used) + [(45, True)]
    assert ("loss/kl_reference" in out.metrics) == ("velocity_norm_ratio" in out.metrics) == bool(used)
    assert not any(value.requires_grad for value in out.metrics.values())


def test_a_window_needs_as_many_rows_as_it_has_steps() -> None:
    policy = fresh()
    run(policy, rollout(policy, "flow_sde", window="random", window_size=2))
    assert policy.model.calls == [(10, True)]


def test_a_zero_advantage_leaves_only_the_kl() -> None:
    policy = moved("reference")
    batch = replace(rollout(policy, "flow_sde"), advantage=torch.zeros(5, dtype=DOUBLE))
    out = run(policy, batch, beta=0.5)
    assert (out.loss > 0).all()
    torch.testing.assert_close(out.loss.detach(), 0.5 * out.metrics["loss/kl_reference"])
    assert (gradient(policy, run(policy, batch).loss) == 0).all()


def test_equal_weights_have_no_kl_and_no_gradient_of_it() -> None:
    policy = fresh()
    batch = rollout(policy, "flow_sde")
    plain, pulled = run(policy, batch), run(policy, batch, beta=0.5)
    assert torch.equal(plain.loss, pulled.loss)
    torch.testing.assert_close(gradient(policy, pulled.loss), gradient(policy, plain.loss))


@every_sampler
def test_a_window_of_all_trained_steps_is_flow_grpo_bit_for_bit(name: str) -> None:
    policy = moved("reference")
    plain, windowed = rollout(policy, name), rollout(policy, name, window="random", window_size=9)
    for options in ({}, {"beta": 0.1}):
        one, other = run(policy, plain, **options), run(policy, windowed, **options)
        assert torch.equal(one.loss, other.loss)
        assert torch.equal(gradient(policy, one.loss), gradient(policy, other.loss))


def test_a_sample_costs_the_same_in_any_micro_batch() -> None:
    policy = moved("reference")
    batch = rollout(policy, "flow_sde")
    whole = run(policy, batch, beta=0.1)
    part = run(policy, batch.take(torch.tensor([3, 0])), beta=0.1)
    torch.testing.assert_close(part.loss, whole.loss[[3, 0]])
    for metric, value in part.metrics.items():
        torch.testing.assert_close(value, whole.metrics[metric][[3, 0]])
    alone = run(policy, batch.take(torch.tensor([4])), beta=0.1)
    torch.testing.assert_close(alone.loss, whole.loss[[4]])


def test_guidance_in_training_must_be_that_of_the_rollout() -> None:
    policy = fresh()
    batch = rolled_out(policy, guidance_scale=4.5)
    right, wrong = (run(policy, batch, guidance_scale=g).metrics["ratio/stored_error"] for g in (4.5, 1.0))
    assert (right < 1e-9).all() and (wrong > 1e-2).all()


def test_an_anchor_that_sampled_is_the_old_policy_from_the_start() -> None:
    policy = fresh()
    batch = rollout(policy, "flow_sde")
    nudge(policy)
    out = run(policy, batch, off_policy=True, clip_range=10.0)
    assert torch.equal(out.loss, run(policy, batch, key={"on_policy": False}, clip_range=10.0).loss)
    assert "ratio/stored_error" not in out.metrics


def test_only_a_subset_of_steps_costs_only_their_rows() -> None:
    policy = fresh()
    batch = rollout(policy, "flow_sde")
    run(policy, batch, sde_steps=4)
    assert policy.model.calls == [(20, True)]


def test_a_deterministic_rollout_is_refused() -> None:
    policy = fresh()
    with pytest.raises(ValueError, match=r"sample\.noise_level above 0"):
        run(policy, rolled_out(policy, FlowSDE(grid=GRID, noise_level=0.0)))


@every_sampler
def test_reward_rises_on_the_tiny_problem(name: str) -> None:
    policy = fresh()
    optimizer = torch.optim.Adam(policy.trainable_parameters(), lr=0.05)
    rewards = []
    for epoch in range(25):
        batch = rolled_out(
            policy,
            SAMPLERS[name](grid=GRID, noise_level=NOISE),
            batch=make_experience(batch=32, dtype=DOUBLE),
            seed=epoch,
        )
        reward = -batch.x_0.mean((1, 2, 3))
        rewards.append(reward.mean().item())
        advantage = (reward - reward.mean()) / reward.std()
        loss = run(policy, replace(batch, advantage=advantage), clip_range=1e-4, key={"epoch": epoch}).loss
        optimizer.zero_grad()
        loss.mean().backward()
        optimizer.step()
    assert sum(rewards[-5:]) / 5 > sum(rewards[:5]) / 5 + 0.05
