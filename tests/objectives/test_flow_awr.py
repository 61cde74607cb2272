"""What FlowAWR promises: the step of advantage-weighted regression from the old velocity, and no further."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from awm.flow.times import shifted_grid
from awm.objectives.awm import awm_loss
from awm.objectives.flow_awr import FlowAWR, flow_awr_advantages, flow_awr_loss
from awm.objectives.forward_process import ForwardProcess
from awm.objectives.nft import nft_loss
from awm.types import Experience, LossOutput
from tests.helpers import FakePolicy, TinyFlow, make_experience

GRID = shifted_grid(14)
KEY: dict[str, Any] = {"seed": 0, "epoch": 3, "inner_epoch": 0, "on_policy": True}
DOUBLE = torch.float64


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)


def flow_awr(**options: Any) -> FlowAWR:
    own = {name: options.pop(name) for name in ("flow_awr_max",) if name in options}
    return FlowAWR(forward=ForwardProcess(grid=GRID, **options), **own)


class TestTheWorkedExample:
    reward = torch.tensor([1.0, 0.0, 0.0], dtype=DOUBLE)
    group, valid = torch.zeros(3, dtype=torch.int64), torch.ones(3, dtype=torch.bool)
    advantage = torch.tensor([1.4198495, -0.7099248, -0.7099248], dtype=DOUBLE)

    def test_advantages(self) -> None:
        weights = flow_awr().weigh(self.reward, self.group, self.valid)
        torch.testing.assert_close(weights.value, self.advantage.float(), rtol=0, atol=1e-7)
        assert weights.metrics["weight/temperature"] == pytest.approx(0.4714045, abs=1e-7)
        assert weights.metrics["weight/max"] == pytest.approx(1.4198495, abs=1e-7)
        assert weights.metrics["weight/min"] == pytest.approx(-0.7099248, abs=1e-7)
        assert weights.metrics["weight/clipped"] == 0

    def test_loss_at_the_old_policy(self) -> None:
        """One number each: u = -2, v_old = v = -1, so the target is v_old - A."""
        old, target = torch.full((1, 3, 1), -1.0, dtype=DOUBLE), torch.full((1, 3, 1), -2.0, dtype=DOUBLE)
        loss, metrics = flow_awr_loss(old, old, target, self.advantage)
        expected = torch.tensor([2.015973, 0.503993, 0.503993], dtype=DOUBLE)
        torch.testing.assert_close(loss, expected, rtol=0, atol=1e-6)
        torch.testing.assert_close(metrics["flow_awr/correction"], expected, rtol=0, atol=1e-6)
        best = torch.tensor([-2.41985, -0.29008, -0.29008], dtype=DOUBLE).reshape(1, 3, 1)
        at_best, _ = flow_awr_loss(best, old, target, self.advantage)
        torch.testing.assert_close(at_best, torch.zeros(3, dtype=DOUBLE), rtol=0, atol=1e-9)


class TestTheLoss:
    velocity, old, target = (randn(3, 5, 2, 4, 4, seed=seed) for seed in range(3))
    t = torch.rand(3, 5, generator=torch.Generator().manual_seed(3), dtype=DOUBLE)
    advantage = torch.tensor([-1.0, -0.3, 0.0, 0.4, 1.0], dtype=DOUBLE)

    def test_is_nft_s_plain_form_less_a_constant(self) -> None:
        loss, _ = flow_awr_loss(self.velocity, self.old, self.target, self.advantage)
        options = {"beta": 1.0, "advantage_max": 1.0, "adaptive": False}
        plain, _ = nft_loss(self.velocity, self.old, self.target, self.t, self.advantage, **options)
        error = (self.old - self.target).square().mean((0, 2, 3, 4))
        torch.testing.assert_close(loss, plain - (1 - self.advantage**2) * error, rtol=1e-12, atol=1e-12)

    def test_first_step_is_advantage_weighted_matching(self) -> None:
        v = self.old.clone().requires_grad_()
        advantage = 3 * self.advantage  # nothing is clipped
        (slope,) = torch.autograd.grad(flow_awr_loss(v, self.old, self.target, advantage)[0].sum(), v)
        loss, _ = awm_loss(v, self.target, self.t, advantage, weighting="Uniform")
        torch.testing.assert_close(slope, torch.autograd.grad(loss.sum(), v)[0], rtol=1e-12, atol=1e-15)

    def test_minimiser_is_the_regression_s_field_scaled_by_the_density_ratio(self) -> None:
        """Samples that meet at one x_t, where the old velocity is the mean of their targets."""
        target, reward = randn(1, 12, 3), randn(12, seed=1)
        every = torch.ones(12, dtype=torch.bool)
        advantage = flow_awr_advantages(reward, torch.zeros(12, dtype=torch.int64), every, 0.7)
        for share in (1.0, 0.3):  # all of the group is at this x_t, or its first four are
            here = slice(0, 12 if share == 1.0 else 4)
            u, a = target[:, here], advantage[here]
            old, w = u.mean((0, 1)), a + 1
            regression = (w[:, None] * u[0]).sum(0) / w.sum()
            best = (old + w.mean() * (regression - old)).requires_grad_()
            loss, _ = flow_awr_loss(best.expand_as(u), old.expand_as(u), u, a)
            (slope,) = torch.autograd.grad(loss.mean(), best)
            torch.testing.assert_close(slope, torch.zeros(3, dtype=DOUBLE), rtol=0, atol=1e-12)

    def test_worth_nothing_only_pulls_to_the_old_policy(self) -> None:
        loss, metrics = flow_awr_loss(self.velocity, self.old, self.target, torch.zeros(5, dtype=DOUBLE))
        torch.testing.assert_close(loss, (self.velocity - self.old).square().mean((0, 2, 3, 4)), rtol=1e-12, atol=0)
        assert not metrics["flow_awr/correction"].any()

    def test_the_worst_image_has_a_minimum(self) -> None:
        far = [flow_awr_loss(s * self.velocity, self.old, self.target, -torch.ones(5))[0] for s in (1e2, 1e3)]
        assert (far[1] > far[0]).all() and (far[0] > 0).all()

    def test_no_gradient_reaches_the_old_policy(self) -> None:
        v, old = self.velocity.clone().requires_grad_(), self.old.clone().requires_grad_()
        loss, _ = flow_awr_loss(v, old, self.target, self.advantage)
        assert torch.autograd.grad(loss.sum(), [v, old], allow_unused=True)[1] is None

    def test_low_precision_predictions_are_compared_in_float32(self) -> None:
        low = [v.bfloat16() for v in (self.velocity, self.old)]
        rest = (self.target.float(), self.advantage.float())
        got, wanted = (flow_awr_loss(*pair, *rest)[0] for pair in (low, [v.float() for v in low]))
        assert got.dtype == torch.float32
        torch.testing.assert_close(got, wanted, rtol=0, atol=0)


class TestWeighing:
    group = torch.arange(6).repeat_interleave(8)
    reward = randn(48, seed=5) * (1 + group)
    valid = torch.ones(48, dtype=torch.bool)

    def test_one_temperature_for_the_rollout_and_a_softmax_for_each_prompt(self) -> None:
        weights = flow_awr().weigh(self.reward, self.group, self.valid)
        gamma = self.reward.std(correction=0)
        assert weights.metrics["weight/temperature"] == pytest.approx(gamma.item(), rel=1e-12)
        expected = 8 * (self.reward.reshape(6, 8) / gamma).softmax(1) - 1
        torch.testing.assert_close(weights.value, expected.flatten().float())

    def test_each_group_sums_to_zero_within_its_bounds(self) -> None:
        advantage = flow_awr_advantages(self.reward, self.group, self.valid, 0.01)
        torch.testing.assert_close(advantage.reshape(6, 8).sum(1), torch.zeros(6, dtype=DOUBLE), rtol=0, atol=1e-12)
        assert advantage.min() >= -1 and advantage.max() <= 7 and advantage.max() > 6.9

    def test_the_order_of_samples_and_the_unit_of_rewards_do_not_matter(self) -> None:
        expected = flow_awr().weigh(self.reward, self.group, self.valid).value
        order = torch.randperm(48, generator=torch.Generator().manual_seed(0))
        shuffled = flow_awr().weigh(3 + 7 * self.reward[order], 100 - self.group[order], self.valid)
        torch.testing.assert_close(shuffled.value, expected[order])

    def test_missing_rewards_count_nowhere(self) -> None:
        valid = self.valid.clone()
        valid[2:5], valid[8:15], valid[16:24] = False, False, False
        weights = flow_awr().weigh(self.reward.masked_fill(~valid, torch.nan), self.group, valid)
        assert not weights.value[~valid].any() and weights.value.isfinite().all()
        left = flow_awr().weigh(self.reward[valid], self.group[valid], torch.ones(int(valid.sum()), dtype=torch.bool))
        torch.testing.assert_close(weights.value[valid], left.value, rtol=0, atol=0)
        assert weights.metrics == pytest.approx(left.metrics, rel=1e-12)
        assert weights.value[15] == 0  # the only one left of its group

    def test_equal_rewards_are_worth_nothing(self) -> None:
        weights = flow_awr().weigh(torch.full((48,), 0.3, dtype=DOUBLE), self.group, self.valid)
        assert not weights.value.any() and weights.metrics["weight/temperature"] == 1e-6
        # The floor: rewards that differ by 1e-9 hardly decide, and exp(1e6 / 1e-6) is never formed.
        weights = flow_awr().weigh(1e6 + 1e-9 * self.reward, self.group, self.valid)
        assert weights.value.abs().max() < 0.02

    def test_a_group_that_scores_alike_is_worth_nothing_beside_others(self) -> None:
        reward = self.reward.clone()
        reward[8:16] = 0.1
        value = flow_awr().weigh(reward, self.group, self.valid).value
        assert not value[8:16].any() and value[:8].abs().min() > 1e-3

    def test_the_bound_is_on_good_images_only(self) -> None:
        free = flow_awr().weigh(self.reward, self.group, self.valid)
        bounded = flow_awr(flow_awr_max=0.5).weigh(self.reward, self.group, self.valid)
        torch.testing.assert_close(bounded.value, free.value.clamp(max=0.5))
        assert bounded.metrics["weight/max"] == 0.5
        assert bounded.metrics["weight/min"] == free.metrics["weight/min"] < -0.5
        assert bounded.metrics["weight/clipped"] == pytest.approx((free.value > 0.5).double().mean().item())

    def test_no_valid_reward_weighs_nothing(self) -> None:
        weights = flow_awr().weigh(self.reward, self.group, ~self.valid)
        assert not weights.value.any() and all(math.isfinite(value) for value in weights.metrics.values())

    @pytest.mark.parametrize("bad", [math.nan, math.inf])
    def test_a_valid_reward_is_finite(self, bad: float) -> None:
        reward = self.reward.clone()
        reward[3] = bad
        with pytest.raises(ValueError, match="a valid reward is not finite"):
            flow_awr().weigh(reward, self.group, self.valid)


def weighed() -> Experience:
    batch = make_experience(dtype=DOUBLE)
    return replace(batch, weight=torch.tensor([-1.0, 0.7, 0.0, 2.5, -0.4], dtype=DOUBLE))


def run(policy: FakePolicy, batch: Any = None, *, key: dict[str, Any] | None = None, **options: Any) -> LossOutput:
    return flow_awr(**options)(policy, weighed() if batch is None else batch, **{**KEY, **(key or {})})


def moved(name: str) -> FakePolicy:
    """A policy whose set ``name`` differs from the current weights."""
    policy = FakePolicy(TinyFlow(dtype=DOUBLE))
    policy.sets[name]["weight"] += torch.tensor([0.2, -0.1, 0.3], dtype=DOUBLE)
    return policy


class TestTheObjective:
    def test_is_the_loss_of_the_anchor_at_the_same_noise(self) -> None:
        policy, batch = moved("anchor"), weighed()
        out = run(policy, batch)
        noised = ForwardProcess(grid=GRID).noised(batch, seed=0, epoch=3, inner_epoch=0)
        current, anchor = noised.velocity(policy, 1.0), noised.frozen_velocity(policy, "anchor", 1.0)
        assert batch.weight is not None
        expected, metrics = flow_awr_loss(current, anchor, noised.target, batch.weight)
        torch.testing.assert_close(out.loss, expected)
        torch.testing.assert_close(out.metrics["flow_awr/correction"], metrics["flow_awr/correction"])

    @pytest.mark.parametrize("on_policy", [True, False])
    @pytest.mark.parametrize(("beta", "used"), [(0.0, ["anchor"]), (0.1, ["reference", "anchor"])])
    def test_no_forward_that_is_not_needed(self, beta: float, on_policy: bool, used: list[str]) -> None:
        policy = FakePolicy(TinyFlow(dtype=DOUBLE))
        out = run(policy, key={"on_policy": on_policy}, beta=beta)
        assert policy.used == used
        assert policy.model.calls == [(30, False)] * len(used) + [(30, True)]
        assert ("loss/kl_reference" in out.metrics) == (beta > 0)

    def test_the_kl_to_the_reference_is_added(self) -> None:
        plain, pulled = run(moved("reference")), run(moved("reference"), beta=0.5)
        torch.testing.assert_close(pulled.loss, plain.loss + 0.5 * pulled.metrics["loss/kl_reference"])
        assert (pulled.metrics["loss/kl_reference"] > 0).all()

    def test_advantages_of_the_trainer_do_not_enter(self) -> None:
        batch = weighed()
        other = replace(batch, advantage=-3 * batch.advantage)
        torch.testing.assert_close(run(moved("anchor"), other).loss, run(moved("anchor"), batch).loss, rtol=0, atol=0)

    def test_a_sample_costs_the_same_in_any_micro_batch(self) -> None:
        policy, batch = moved("anchor"), weighed()
        whole = run(policy, batch, beta=0.1)
        for rows in ([3, 0], [2]):
            part = run(policy, batch.take(torch.tensor(rows)), beta=0.1)
            torch.testing.assert_close(part.loss, whole.loss[rows])
            for name, value in part.metrics.items():
                assert not value.requires_grad
                torch.testing.assert_close(value, whole.metrics[name][rows])

    def test_samples_without_weights_are_refused(self) -> None:
        with pytest.raises(ValueError, match="samples have no weight"):
            run(moved("anchor"), make_experience(dtype=DOUBLE))


@pytest.mark.parametrize("largest", [0.0, -1.0, math.nan])
def test_a_bound_below_zero_fails_at_construction(largest: float) -> None:
    with pytest.raises(ValueError, match=r"flow_awr_max=.* is not valid"):
        flow_awr(flow_awr_max=largest)
