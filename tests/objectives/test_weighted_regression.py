"""What weighted regression promises: the velocity of the reweighted policy, from weights that are never negative."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from ml_collections import ConfigDict
from torch import Tensor

from awm.flow.times import shifted_grid
from awm.objectives.awr import AWR
from awm.objectives.dpmd import DPMD
from awm.objectives.forward_process import ForwardProcess
from awm.objectives.qvpo import QVPO
from awm.objectives.rwr import RWR
from awm.objectives.simpo import simpo_loss
from awm.objectives.weighted_regression import weighted_matching_loss
from awm.training.epoch_rewards import gather_rewards
from awm.types import Experience
from tests.helpers import FakePolicy, TinyFlow, gaussian_velocity, make_experience

GRID = shifted_grid(14)
KEY: dict[str, Any] = {"seed": 0, "epoch": 3, "inner_epoch": 0}
DOUBLE = torch.float64
RULES: dict[str, Any] = {"rwr": RWR, "awr": AWR, "dpmd": DPMD, "qvpo": QVPO}
UNBOUNDED: dict[str, dict[str, float]] = {"rwr": {}, "awr": {"awr_max_weight": 1e30}}
METRICS = {"weight/mean", "weight/max", "weight/ess"}


def make(name: str, *, beta: float = 0.0, ema_beta: float = 0.0, **options: Any) -> Any:
    return RULES[name](forward=ForwardProcess(grid=GRID, beta=beta, ema_beta=ema_beta), **options)


def weigh(name: str, reward: Any, group: Any = None, valid: Any = None, **options: Any) -> Tensor:
    reward = torch.as_tensor(reward, dtype=DOUBLE)
    group = torch.zeros(len(reward), dtype=torch.int64) if group is None else torch.as_tensor(group)
    valid = torch.ones(len(reward), dtype=torch.bool) if valid is None else torch.as_tensor(valid)
    value: Tensor = make(name, **options).weigh(reward, group, valid).value
    assert value.dtype == torch.float32 and (value >= 0).all()
    return value.double()


def loss_of(weight: Tensor, error: Any) -> float:
    """Mean loss of samples with these weights and matching errors."""
    v = torch.as_tensor(error, dtype=DOUBLE).sqrt().reshape(1, -1, 1, 1, 1).expand(2, -1, 1, 2, 2)
    return weighted_matching_loss(v, torch.zeros_like(v), weight)[0].mean().item()


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)


class TestByHand:
    error = (0.5, 1.0, 2.0)

    def test_rwr(self) -> None:
        weight = weigh("rwr", [1, 0, -1])
        torch.testing.assert_close(weight, torch.tensor([1.995723, 0.734185, 0.270092]).double(), atol=1e-6, rtol=0)
        assert loss_of(weight, self.error) == pytest.approx(0.757410, abs=1e-6)

    def test_awm_s_advantages_in_the_same_loss(self) -> None:
        assert loss_of(torch.tensor([1.0, 0.0, -1.0]), self.error) == pytest.approx(-0.5)

    def test_awr_is_rwr_without_the_normaliser(self) -> None:
        weight = weigh("awr", [1, 0, -1])
        torch.testing.assert_close(weight, torch.tensor([math.e, 1, 1 / math.e]).double())
        assert loss_of(weight, self.error) == pytest.approx((math.e / 2 + 1 + 2 / math.e) / 3)
        assert loss_of(weight, self.error) == pytest.approx(0.757410 * weight.mean().item(), rel=1e-6)

    def test_awr_measures_from_the_group_s_mean_and_is_bounded(self) -> None:
        # Means 3 and 0; the bound of 20 is log 20 = 2.9957 above the mean.
        weight = weigh("awr", [0, 3, 6, 1, -1, 0], [0, 0, 0, 1, 1, 1])
        expected = [math.exp(-3), 1, 20, math.e, 1 / math.e, 1]
        torch.testing.assert_close(weight, torch.tensor(expected, dtype=DOUBLE))
        assert weigh("awr", [0, 3, 6], awr_max_weight=30.0)[2].item() == pytest.approx(math.exp(3))
        assert weigh("awr", [0, 3, 6], awr_temperature=3.0)[2].item() == pytest.approx(math.e)

    def test_dpmd(self) -> None:
        # std of (1, 0, -1) is sqrt(2/3): this temperature makes the exponents 1, 0, -1; the 1e-4 is nothing beside 1e6.
        weight = weigh("dpmd", [3e6, 2e6, 1e6], dpmd_temperature=math.sqrt(1.5))
        torch.testing.assert_close(weight, torch.tensor([math.e, 1, 1 / math.e]).double())
        assert loss_of(weight, self.error) == pytest.approx(1.0316333, abs=1e-6)

    def test_dpmd_standardises_over_the_epoch_and_clips_at_three(self) -> None:
        # Nineteen zeros and one 20: mean 1, std sqrt(19), so the good one is 19 / sqrt(19) = 4.36 std above.
        reward = [0.0] * 19 + [20.0]
        weight = weigh("dpmd", reward, [0, 1] * 10, dpmd_temperature=2.0)
        assert weight[-1].item() == pytest.approx(math.exp(1.5))
        torch.testing.assert_close(
            weight[:-1], torch.full((19,), math.exp(-0.5 / (math.sqrt(19) + 1e-4)), dtype=DOUBLE)
        )

    def test_qvpo(self) -> None:
        weight = weigh("qvpo", [1, 2, 4, 1])
        assert weight.tolist() == [0, 0, 2, 0]
        assert loss_of(weight, (1, 1, 0.5, 2)) == pytest.approx(0.25)

    def test_qvpo_best_only(self) -> None:
        reward, group = [0, 4, 5, 0, 2, 2, 0, 0], [0, 0, 0, 1, 1, 1, 1, 0]
        # Means 2.25 and 1, over four images each; two share the best place of the second.
        assert weigh("qvpo", reward, group).tolist() == [0, 1.75, 2.75, 0, 1, 1, 0, 0]
        assert weigh("qvpo", reward, group, qvpo_best_only=True).tolist() == [0, 0, 2.75, 0, 1, 1, 0, 0]

    def test_the_effective_share_of_samples(self) -> None:
        valid = torch.ones(4, dtype=torch.bool)
        metrics = make("qvpo").weigh(torch.tensor([1.0, 2, 4, 1]).double(), torch.zeros(4).long(), valid).metrics
        assert metrics == {"weight/mean": 0.5, "weight/max": 2.0, "weight/ess": 0.25}
        metrics = make("awr").weigh(torch.tensor([3.0, 3, 3, 3]).double(), torch.zeros(4).long(), valid).metrics
        assert metrics == {"weight/mean": 1.0, "weight/max": 1.0, "weight/ess": 1.0}


class TestTheMinimiser:
    """Old policy N(m, s^2) and a reward k x: reweighted, it is N(m + s^2 k / tau, s^2), whose velocity is known."""

    mean, std, slope, temperature = 0.4, 0.7, 1.3, 2.0

    @pytest.mark.parametrize("name", ["rwr", "awr"])
    @pytest.mark.parametrize("t", [0.15, 0.5, 0.9])
    def test_is_the_velocity_of_the_policy_times_exp_of_the_reward(self, name: str, t: float) -> None:
        # What lies behind x_t, by quadrature over the posterior N(post_mean, post_std^2) of x_0.
        node, share = (torch.from_numpy(values) for values in np.polynomial.hermite_e.hermegauss(60))
        share = share / share.sum()
        tilted = gaussian_velocity(self.mean + self.std**2 * self.slope / self.temperature, self.std)
        for x in (-1.0, 0.2, 1.5):
            total = (1 - t) ** 2 * self.std**2 + t**2
            post_mean = self.mean + (1 - t) * self.std**2 / total * (x - (1 - t) * self.mean)
            x_0 = post_mean + self.std * t / math.sqrt(total) * node
            target = ((x - x_0) / t).reshape(1, -1, 1, 1, 1)
            weight = weigh(name, self.slope * x_0, **{f"{name}_temperature": self.temperature}, **UNBOUNDED[name])
            best = tilted(torch.tensor([[[[x]]]], dtype=DOUBLE), torch.tensor([t], dtype=DOUBLE)).requires_grad_()
            loss, _ = weighted_matching_loss(best.expand_as(target), target, weight)
            (gradient,) = torch.autograd.grad((share * loss).sum(), best)
            scale = (share * weight).sum() * target.square().max()
            assert abs(gradient.item()) < 1e-7 * scale.item()  # weights are float32

    def test_is_the_weighted_mean_of_the_targets(self) -> None:
        target, weight = randn(1, 6, 2, 1, 1), randn(6, seed=1).exp()
        best = ((weight[:, None] * target[0, :, :, 0, 0]).sum(0) / weight.sum()).reshape(2, 1, 1).requires_grad_()
        loss, metrics = weighted_matching_loss(best.expand_as(target), target, weight)
        torch.testing.assert_close(torch.autograd.grad(loss.mean(), best)[0], torch.zeros(2, 1, 1).double())
        torch.testing.assert_close(loss, weight * metrics["velocity_mse"])

    def test_it_is_simpo_s_uncentred_loss(self) -> None:
        v, target, weight = randn(3, 5, 2, 3, 3), randn(3, 5, 2, 3, 3, seed=1), randn(5, seed=2).exp()
        simpo, _ = simpo_loss(v, target, torch.full((3, 5), 0.3, dtype=DOUBLE), weight)
        torch.testing.assert_close(weighted_matching_loss(v, target, weight)[0], simpo, rtol=1e-12, atol=0)


class TestLimits:
    reward = torch.tensor([0.9, 0.1, 0.5, 0.9, 0.3, -0.2], dtype=DOUBLE)
    group = torch.tensor([0, 0, 0, 1, 1, 1])

    @pytest.mark.parametrize("name", ["rwr", "awr", "dpmd"])
    def test_a_high_temperature_is_fine_tuning_on_one_s_own_samples(self, name: str) -> None:
        weight = weigh(name, self.reward, self.group, **{f"{name}_temperature": 1e9})
        torch.testing.assert_close(weight, torch.ones(6, dtype=DOUBLE), rtol=0, atol=1e-6)

    @pytest.mark.parametrize("name", ["rwr", "awr"])
    def test_its_first_order_is_the_advantage_over_the_temperature(self, name: str) -> None:
        advantage = (self.reward.reshape(2, 3) - self.reward.reshape(2, 3).mean(1, keepdim=True)).flatten()
        gaps = []
        for temperature in (10.0, 100.0):
            weight = weigh(name, self.reward, self.group, **{f"{name}_temperature": temperature})
            gaps.append((weight - 1 - advantage / temperature).abs().max().item())
        assert gaps[0] < 0.01 and gaps[1] == pytest.approx(gaps[0] / 100, rel=0.05)

    def test_a_low_temperature_leaves_the_best_of_a_prompt(self) -> None:
        assert weigh("rwr", self.reward, self.group, rwr_temperature=1e-3).tolist() == [3, 0, 0, 3, 0, 0]
        assert weigh("rwr", [1, 1, 0, 0], rwr_temperature=1e-3).tolist() == [2, 2, 0, 0]  # K / k of k that tie
        low = weigh("awr", self.reward, self.group, awr_temperature=1e-3)
        torch.testing.assert_close(low, torch.tensor([20.0, 0, 1, 20, 0, 0], dtype=DOUBLE), atol=1e-6, rtol=1e-6)

    def test_large_rewards_do_not_overflow(self) -> None:
        assert weigh("rwr", [1e6, 1e6 - 1, -1e6]).isfinite().all()
        assert weigh("awr", [1e6, 0, -1e6]).tolist() == [20, 1, 0]
        assert weigh("dpmd", [1e6, 0, -1e6], dpmd_temperature=0.035).isfinite().all()


@pytest.mark.parametrize("name", RULES)
class TestAnEpochOfRewards:
    group = torch.arange(6).repeat_interleave(8)
    reward = randn(48, seed=5) * (1 + group) + group
    valid = torch.ones(48, dtype=torch.bool)

    def test_better_images_of_a_prompt_weigh_more(self, name: str) -> None:
        weight = weigh(name, self.reward, self.group).reshape(6, 8)
        order = self.reward.reshape(6, 8).argsort(1)
        assert (weight.gather(1, order).diff(dim=1) >= 0).all()
        assert (weight.amax(1) > weight.amin(1)).all()

    def test_neither_the_order_of_samples_nor_the_names_of_groups_matter(self, name: str) -> None:
        order = torch.randperm(48, generator=torch.Generator().manual_seed(0))
        shuffled = weigh(name, self.reward[order], 100 - 7 * self.group[order])
        torch.testing.assert_close(shuffled, weigh(name, self.reward, self.group)[order])

    def test_only_differences_of_rewards_matter(self, name: str) -> None:
        # DPMD compares the whole epoch, the others the images of each prompt.
        shift = torch.full((48,), 3.0, dtype=DOUBLE) if name == "dpmd" else self.group.double()
        expected = weigh(name, self.reward, self.group)
        torch.testing.assert_close(weigh(name, self.reward + shift, self.group), expected)

    def test_samples_without_a_score_weigh_nothing_and_count_in_nothing(self, name: str) -> None:
        valid = self.valid.clone()
        valid[2:5], valid[8:15], valid[16:24] = False, False, False
        for nothing in (math.nan, math.inf, 1e9):
            weight = weigh(name, self.reward.masked_fill(~valid, nothing), self.group, valid)
            assert not weight[~valid].any()
            torch.testing.assert_close(weight[valid], weigh(name, self.reward[valid], self.group[valid]))
        metrics = make(name).weigh(self.reward, self.group, valid).metrics
        alone = make(name).weigh(self.reward[valid], self.group[valid], valid[valid]).metrics
        assert metrics == pytest.approx(alone, rel=1e-12)

    def test_equal_rewards_are_no_reason_for_anything(self, name: str) -> None:
        expected = 0.0 if name == "qvpo" else 1.0
        for size, group in ((48, self.group), (48, torch.arange(48)), (1, torch.zeros(1, dtype=torch.int64))):
            weight = weigh(name, torch.full((size,), 0.3), group)
            assert (weight == expected).all()
        metrics = make(name).weigh(torch.full((48,), 0.3).double(), self.group, self.valid).metrics
        assert metrics == {"weight/mean": expected, "weight/max": expected, "weight/ess": expected}

    def test_metrics_are_those_of_the_weights(self, name: str) -> None:
        weights = make(name).weigh(self.reward, self.group, self.valid)
        w = weights.value.double()
        expected = {"weight/mean": w.mean(), "weight/max": w.max(), "weight/ess": w.sum() ** 2 / 48 / (w**2).sum()}
        assert weights.metrics == pytest.approx({key: value.item() for key, value in expected.items()}, rel=1e-5)
        assert 1 / 48 < weights.metrics["weight/ess"] < 1

    def test_no_valid_reward_weighs_nothing(self, name: str) -> None:
        weights = make(name).weigh(self.reward, self.group, ~self.valid)
        assert not weights.value.any() and weights.metrics == {}

    @pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
    def test_a_valid_reward_is_finite(self, name: str, bad: float) -> None:
        reward = self.reward.clone()
        reward[3] = bad
        with pytest.raises(ValueError, match="a valid reward is not finite"):
            make(name).weigh(reward, self.group, self.valid)


def weighted(dtype: torch.dtype = torch.float32) -> Experience:
    batch = make_experience(dtype=dtype)
    return replace(batch, weight=torch.tensor([2.0, 0.5, 0.0, 1.0, 1.5], dtype=dtype))


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("on_policy", [True, False])
@pytest.mark.parametrize(
    ("options", "used"),
    [({}, []), ({"beta": 0.1}, ["reference"]), ({"beta": 0.1, "ema_beta": 1.0}, ["reference", "anchor"])],
)
def test_no_forward_that_is_not_needed(name: str, on_policy: bool, options: dict[str, Any], used: list[str]) -> None:
    policy = FakePolicy(TinyFlow())
    out = make(name, **options)(policy, weighted(), **KEY, on_policy=on_policy)
    assert policy.used == used
    # All of T = 6 times of B = 5 samples in one forward; the one with gradient comes last.
    assert policy.model.calls == [(30, False)] * len(used) + [(30, True)]
    assert out.loss.shape == (5,) and (out.loss >= 0).all()
    assert ("loss/kl_reference" in out.metrics) == ("reference" in used)
    assert ("loss/kl_anchor" in out.metrics) == ("anchor" in used)
    assert not any(value.requires_grad for value in out.metrics.values())


@pytest.mark.parametrize("name", RULES)
def test_a_sample_costs_its_weight_times_its_matching_error(name: str) -> None:
    policy, batch = FakePolicy(TinyFlow(dtype=DOUBLE)), weighted(DOUBLE)
    rule = make(name)
    out = rule(policy, batch, **KEY, on_policy=True)
    noised = ForwardProcess(grid=GRID).noised(batch, **KEY)
    error = (noised.velocity(policy, 1.0) - noised.target).square().mean((0, 2, 3, 4))
    assert batch.weight is not None
    torch.testing.assert_close(out.loss, batch.weight * error, rtol=1e-12, atol=0)
    assert not torch.autograd.grad(out.loss[2], policy.model.weight)[0].any()  # its weight is zero
    part = rule(policy, batch.take(torch.tensor([3, 0])), **KEY, on_policy=True)
    torch.testing.assert_close(part.loss, out.loss[[3, 0]])


@pytest.mark.parametrize("name", RULES)
def test_samples_without_weights_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="samples have no weight"):
        make(name)(FakePolicy(TinyFlow()), make_experience(), **KEY, on_policy=True)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("rwr", {"rwr_temperature": 0.0}, "rwr_temperature=0 is not valid"),
        ("rwr", {"rwr_temperature": math.inf}, "rwr_temperature=inf is not valid"),
        ("awr", {"awr_temperature": -1.0}, "awr_temperature=-1 is not valid"),
        ("awr", {"awr_max_weight": math.inf}, "awr_max_weight=inf is not valid"),
        ("dpmd", {"dpmd_temperature": 0.03}, "must be a finite number above 0.034"),
        ("dpmd", {"dpmd_temperature": math.nan}, "dpmd_temperature=nan is not valid"),
    ],
)
def test_bad_options_fail_at_construction(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(name, **options)


def test_every_rule_trains_the_tiny_model(make_config: Callable[..., ConfigDict]) -> None:
    """One rollout, learnt from by each rule in turn."""
    from tests.training.test_trainer import build

    trainer = build(make_config(num_epochs=9, eval_freq=0, save_freq=100, train__updates_per_inner_epoch=2))
    prompts = trainer.epoch_prompts()
    rollout = trainer.rollout(prompts, trainer.rollout_noise, lambda _: None, keep=())
    rewards = gather_rewards(rollout.rewards, prompts.group, trainer.distributed)
    for name in RULES:
        trainer.credit.objective = trainer.update.objective = make(name, beta=0.1)
        experience, metrics = trainer.credit(rollout, rewards, prompts, trainer.epoch)
        assert metrics.keys() == METRICS and 0 < metrics["weight/ess"] < 1
        before = [p.detach().clone() for p in trainer.policy.trainable_parameters()]
        losses, steps = trainer.update(experience, trainer.epoch, lambda _: None)
        assert steps == 2 and losses["loss/policy"] > 0 and losses["grad_norm"] > 0
        after = trainer.policy.trainable_parameters()
        assert any(not torch.equal(a, b) for a, b in zip(after, before, strict=True)), name
    trainer.outputs.finish()
