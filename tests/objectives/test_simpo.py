"""What SiMPO promises: flow matching to a signed measure, bounded where that measure has no minimum."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from ml_collections import ConfigDict
from torch import Tensor

from awm.building import build_objective
from awm.objectives.awm import awm_loss
from awm.objectives.simpo import SiMPO, simpo_loss
from awm.objectives.terms import kl_term
from awm.training.epoch_rewards import gather_rewards
from awm.training.metrics import read_metrics
from awm.types import Experience
from tests.helpers import FakePolicy, TinyFlow, make_experience, on_forward_process

KEY: dict[str, Any] = {"seed": 0, "epoch": 3, "inner_epoch": 0, "on_policy": True}
DOUBLE = torch.float64
WEIGHTINGS: dict[str, dict[str, Any]] = {
    "exp": {},
    "linear": {"simpo_weighting": "linear"},
    "square": {"simpo_weighting": "square"},
    "linear_neg": {"simpo_weighting": "linear", "simpo_floor": -0.5},
    "square_neg": {"simpo_weighting": "square", "simpo_floor": -0.5},
    "power": {"simpo_weighting": "power", "simpo_power": 3.0},
    "wd1": {"simpo_weighting": "wd1"},
}
WITH_MASS = [name for name in WEIGHTINGS if name != "wd1"]
METRICS = {f"weight/{name}" for name in ("kl", "temperature", "at_min_temperature", "max", "min", "negative_mass")}


def make(**options: Any) -> SiMPO:
    simpo: SiMPO = on_forward_process(SiMPO, **options)
    return simpo


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)


def gradient(
    loss: Callable[..., tuple[Tensor, dict[str, Tensor]]], v: Tensor, target: Tensor, **options: Any
) -> Tensor:
    """Mean gradient with respect to one velocity v [D] that all samples [1, B, D] share."""
    v = v.clone().requires_grad_()
    t = torch.full(target.shape[:2], 0.5, dtype=DOUBLE)
    value, _ = loss(v.expand_as(target), target, t, **options)
    return torch.autograd.grad(value.mean(), v)[0]


def anchored_awm(velocity: Tensor, target: Tensor, t: Tensor, *, advantage: Tensor, anchor: Tensor):
    loss, metrics = awm_loss(velocity, target, t, advantage, weighting="Uniform")
    return loss + kl_term(velocity, anchor, t, weight="Uniform"), metrics


class TestTheMinimiser:
    """Samples that meet at one x_t, where the best velocity is a weighted mean of their targets."""

    target = randn(1, 16, 3)
    advantage = randn(16, seed=1) - randn(16, seed=1).mean()
    v_old = target.mean((0, 1))

    def test_is_that_of_the_weighted_measure(self) -> None:
        weight = 1 + 0.8 * self.advantage
        best = (weight[:, None] * self.target[0]).sum(0) / weight.sum()
        torch.testing.assert_close(gradient(simpo_loss, best, self.target, weight=weight), torch.zeros(3).double())

    def test_of_awm_with_an_anchor_is_simpo_s_with_one_plus_the_advantage(self) -> None:
        weight = 1 + self.advantage
        best = (weight[:, None] * self.target[0]).sum(0) / weight.sum()
        anchor = self.v_old.expand_as(self.target)
        awm = {"advantage": self.advantage, "anchor": anchor}
        at_best = gradient(anchored_awm, best, self.target, **awm)
        torch.testing.assert_close(at_best, torch.zeros(3).double())
        torch.testing.assert_close(
            gradient(anchored_awm, self.v_old, self.target, **awm),
            gradient(simpo_loss, self.v_old, self.target, weight=weight),
        )

    def test_stays_when_weights_are_centred_and_pulled_to_the_old_policy(self) -> None:
        weight, old = 1 + self.advantage, self.v_old.expand_as(self.target)
        best = (weight[:, None] * self.target[0]).sum(0) / weight.sum()
        centred = {"weight": weight - 1, "velocity_old": old, "pull": 1.0}
        for v in (best, self.v_old, randn(3, seed=2)):
            torch.testing.assert_close(
                gradient(simpo_loss, v, self.target, **centred),
                gradient(simpo_loss, v, self.target, weight=weight),
            )

    def test_centring_leaves_the_gradient_at_the_old_policy_and_takes_its_variance(self) -> None:
        weight = 1 + 0.3 * self.advantage
        at_old = {name: [] for name in ("raw", "centred")}  # type: dict[str, list[Tensor]]
        for i in range(16):
            one = self.target[:, i : i + 1]
            at_old["raw"].append(gradient(simpo_loss, self.v_old, one, weight=weight[i : i + 1]))
            at_old["centred"].append(gradient(simpo_loss, self.v_old, one, weight=weight[i : i + 1] - 1))
        raw, centred = torch.stack(at_old["raw"]), torch.stack(at_old["centred"])
        torch.testing.assert_close(raw.mean(0), centred.mean(0))
        assert centred.var(0).sum() < 0.5 * raw.var(0).sum()


class TestTwoModes:
    """Old policy N(+-1, 0.3^2) half each, one weight for each mode: what the exact minimiser samples."""

    std, mean = 0.3, torch.tensor([1.0, -1.0], dtype=DOUBLE)

    def velocities(self, x: Tensor, t: float) -> tuple[Tensor, Tensor]:
        """Posterior of each mode and its mean velocity at x [...]: [..., 2] each."""
        variance = (1 - t) ** 2 * self.std**2 + t**2
        distance = x[..., None] - (1 - t) * self.mean
        share = (-distance.square() / (2 * variance)).softmax(-1)
        return share, -self.mean + (t - (1 - t) * self.std**2) / variance * distance

    def minimiser(self, x: Tensor, t: float, weight: Tensor, alpha: Tensor) -> Tensor:
        share, u = self.velocities(x, t)
        old, mass = (share * u).sum(-1), (share * weight).sum(-1)
        return ((share * weight * u).sum(-1) + alpha * old) / (mass + alpha)

    @pytest.fixture(scope="class")
    def samples(self) -> Tensor:
        """[3, 400] end points from quantiles of the noise: positive weights, negative with a pull, negative alone."""
        weight = torch.tensor([[1.6, 0.4], [2.5, -0.5], [2.5, -0.5]], dtype=DOUBLE)[:, None]
        alpha = torch.tensor([[0.0], [1.0], [0.0]], dtype=DOUBLE)
        x = torch.special.ndtri((torch.arange(400, dtype=DOUBLE) + 0.5) / 400).expand(3, 400)
        times = torch.linspace(1, 0.001, 2001, dtype=DOUBLE).tolist()
        for t, s in itertools.pairwise(times):
            x = x + (s - t) * self.minimiser(x, t, weight, alpha)
        return x

    @pytest.mark.parametrize(("weight", "alpha"), [((1.6, 0.4), 0.0), ((2.5, -0.5), 0.0), ((2.5, -0.5), 1.0)])
    @pytest.mark.parametrize("t", [0.1, 0.5, 0.9])
    def test_the_exact_velocity_is_where_the_loss_is_stationary(
        self, weight: tuple[float, float], alpha: float, t: float
    ) -> None:
        x = torch.linspace(-1.5, 1.5, 9, dtype=DOUBLE)
        share, u = self.velocities(x, t)
        v = self.minimiser(x, t, torch.tensor(weight, dtype=DOUBLE), torch.tensor(alpha)).requires_grad_()
        shared, old = v[:, None].expand_as(u), (share * u).sum(1, keepdim=True).expand_as(u)
        # One sample for each mode and x, as heavy as the mode is there.
        loss, _ = simpo_loss(
            shared.reshape(1, -1, 1),
            u.reshape(1, -1, 1),
            torch.full((1, u.numel()), t, dtype=DOUBLE),
            (share * torch.tensor(weight, dtype=DOUBLE)).flatten(),
            velocity_old=old.reshape(1, -1, 1),
            pull=alpha / 2,
            error_clip=math.inf,
        )
        (slope,) = torch.autograd.grad(loss.sum(), v)
        scale = (share * u.square()).sum(1).max()
        torch.testing.assert_close(slope / scale, torch.zeros(9, dtype=DOUBLE), atol=1e-9, rtol=0)

    def test_positive_weights_are_the_shares(self, samples: Tensor) -> None:
        x = samples[0]
        assert (x > 0).double().mean().item() == pytest.approx(0.801, abs=0.01)
        assert x[x > 0].std().item() == pytest.approx(0.299, abs=0.01)

    def test_negative_weights_with_a_pull_are_the_shares_of_a_mixture(self, samples: Tensor) -> None:
        x = samples[1]
        assert (x > 0).double().mean().item() == pytest.approx(0.875, abs=0.01)
        assert x[x > 0].std().item() == pytest.approx(0.298, abs=0.01)

    def test_negative_weights_alone_repel_beyond_the_good_mode_and_contract_it(self, samples: Tensor) -> None:
        x = samples[2]
        assert (x > 0).double().mean().item() == 1
        assert x.mean().item() > 1.05
        assert x.std().item() < 0.26


class TestCaseTwo:
    def test_a_row_that_repels_has_no_gradient_beyond_the_clip(self) -> None:
        v = torch.tensor([0.0, 1.0, 3.0, -3.0]).reshape(1, 1, 4).requires_grad_()
        loss, metrics = simpo_loss(
            v, torch.zeros_like(v), torch.full((1, 1), 0.5), torch.tensor([-0.5]), error_clip=5.0
        )
        assert loss.item() == pytest.approx(-0.5 * (0 + 1 + 5 + 5) / 4)
        torch.testing.assert_close(torch.autograd.grad(loss.sum(), v)[0].flatten(), torch.tensor([0, -0.25, 0, 0]))
        assert metrics["weight/case_two"].item() == 1

    @pytest.mark.parametrize("options", [{"weight": 0.5}, {"weight": -0.5, "pull": 1.0}, {"weight": -1.0, "pull": 1.0}])
    def test_a_row_with_a_minimum_keeps_its_whole_error(self, options: dict[str, float]) -> None:
        v, t = torch.full((1, 1, 2), 4.0, requires_grad=True), torch.full((1, 1), 0.5)
        weight = torch.tensor([options["weight"]])
        loss, metrics = simpo_loss(v, torch.zeros_like(v), t, weight, pull=options.get("pull", 0.0))
        assert loss.item() == pytest.approx(16 * options["weight"])
        torch.testing.assert_close(torch.autograd.grad(loss.sum(), v)[0], 4 * weight.expand(1, 1, 2))
        assert metrics["weight/case_two"].item() == 0

    def test_the_kl_terms_count_with_their_weight_at_the_time(self) -> None:
        v, t = torch.zeros(2, 1, 2), torch.tensor([[0.1], [0.9]])
        anchoring = make(ema_beta=1.0, kl_ema_weight="ELBO").forward.anchoring(t, pull=0.0)
        _, metrics = simpo_loss(v, v, t, torch.tensor([-0.5]), anchoring=anchoring)
        assert metrics["weight/case_two"].item() == 0.5  # k = 9.2 and 0.11

    @pytest.mark.parametrize("clip", [5.0, math.inf])
    def test_descent_on_negative_weights_stops_only_with_the_clip(self, clip: float) -> None:
        v, target = torch.zeros(3, dtype=DOUBLE), randn(1, 4, 3)
        for _ in range(300):
            v = v - 0.1 * gradient(simpo_loss, v, target, weight=torch.full((4,), -1.0, dtype=DOUBLE), error_clip=clip)
        assert (v.abs().max() < 6) == math.isfinite(clip)


def weighted(batch: Experience, seed: int = 0) -> Experience:
    weight = 1 + randn(len(batch), seed=seed).to(batch.x_0.dtype)
    return replace(batch, weight=weight - weight.mean() + 1)


def run(policy: FakePolicy, batch: Experience | None = None, key: dict[str, Any] | None = None, **options: Any):
    batch = weighted(make_experience(dtype=policy.model.weight.dtype)) if batch is None else batch
    return make(**options)(policy, batch, **{**KEY, **(key or {})})


@pytest.mark.parametrize(
    ("options", "on_policy", "used"),
    [
        ({}, True, []),
        ({}, False, ["rollout"]),
        ({"simpo_pull": 0.0}, False, []),
        ({"old_policy": "current"}, False, []),
        ({"off_policy": True}, True, ["anchor"]),
        ({"beta": 0.1, "ema_beta": 1.0}, True, ["reference", "anchor"]),
        ({"beta": 0.1, "ema_beta": 1.0}, False, ["reference", "anchor", "rollout"]),
    ],
)
def test_no_forward_that_is_not_needed(options: dict[str, Any], on_policy: bool, used: list[str]) -> None:
    policy = FakePolicy(TinyFlow())
    out = run(policy, key={"on_policy": on_policy}, **options)
    assert policy.used == used
    assert policy.model.calls == [(30, False)] * len(used) + [(30, True)]
    assert out.loss.shape == (5,)
    assert ("loss/pull" in out.metrics) == ("rollout" in used or "off_policy" in options)
    assert not any(value.requires_grad for value in out.metrics.values())


@pytest.mark.parametrize("weighting", ["Uniform", "ghuber"])
def test_the_pull_vanishes_while_the_policy_has_not_moved(weighting: str) -> None:
    policy = FakePolicy(TinyFlow(dtype=DOUBLE))
    on, off = (run(policy, key={"on_policy": flag}, weighting=weighting) for flag in (True, False))
    torch.testing.assert_close(on.loss, off.loss)
    assert not off.metrics["loss/pull"].any()


def test_a_sample_costs_the_same_in_any_micro_batch() -> None:
    policy, batch = FakePolicy(TinyFlow()), weighted(make_experience())
    policy.sets["rollout"]["weight"] += 0.2
    whole = run(policy, batch, key={"on_policy": False}, ema_beta=1.0)
    part = run(policy, batch.take(torch.tensor([3, 0])), key={"on_policy": False}, ema_beta=1.0)
    torch.testing.assert_close(part.loss, whole.loss[[3, 0]])
    for name, value in part.metrics.items():
        torch.testing.assert_close(value, whole.metrics[name][[3, 0]])


def test_weights_enter_minus_one_unless_they_have_mean_zero() -> None:
    policy, batch = FakePolicy(TinyFlow(dtype=DOUBLE)), make_experience(dtype=DOUBLE)
    weight = torch.tensor([2.0, 0.5, 1.0, 0.0, 1.5], dtype=DOUBLE)
    options: dict[str, Any] = {"old_policy": "current", "simpo_error_clip": math.inf}
    plain = run(policy, replace(batch, weight=weight), simpo_centred=False, **options).loss
    error = plain / weight
    torch.testing.assert_close(run(policy, replace(batch, weight=weight), **options).loss[0], error[0])
    torch.testing.assert_close(run(policy, replace(batch, weight=weight), simpo_weighting="wd1", **options).loss, plain)


def test_samples_without_weights_are_refused() -> None:
    with pytest.raises(ValueError, match="samples have no weight"):
        run(FakePolicy(TinyFlow()), make_experience())


class TestWeighing:
    group = torch.arange(6).repeat_interleave(8)
    reward = randn(48, seed=5) * (1 + group)
    valid = torch.ones(48, dtype=torch.bool)

    @pytest.mark.parametrize("name", WITH_MASS)
    def test_every_group_has_mean_one_and_the_epoch_its_divergence(self, name: str) -> None:
        weights = make(simpo_target_kl=0.7, **WEIGHTINGS[name]).weigh(self.reward, self.group, self.valid)
        torch.testing.assert_close(weights.value.reshape(6, 8).mean(1), torch.ones(6), atol=1e-5, rtol=0)
        assert set(weights.metrics) == METRICS
        assert weights.metrics["weight/kl"] == pytest.approx(0.7, abs=1e-5)
        assert weights.metrics["weight/at_min_temperature"] == 0
        assert weights.metrics["weight/max"] == pytest.approx(weights.value.max().item())
        assert weights.metrics["weight/min"] == pytest.approx(weights.value.min().item())
        negative = weights.value.clamp(max=0).neg().mean().item()
        assert weights.metrics["weight/negative_mass"] == pytest.approx(negative)
        assert (negative > 0) == (name in ("linear_neg", "square_neg"))

    def test_wd1_has_mean_zero_and_the_temperature_one(self) -> None:
        weights = make(simpo_weighting="wd1").weigh(self.reward, self.group, self.valid)
        torch.testing.assert_close(weights.value.reshape(6, 8).mean(1), torch.zeros(6), atol=1e-5, rtol=0)
        score = (self.reward / (self.reward.std(correction=0) + 1e-4)).reshape(6, 8)
        expected = 8 * (score.softmax(1) - (-score).softmax(1))
        torch.testing.assert_close(weights.value, expected.flatten().float())
        assert set(weights.metrics) == METRICS and weights.metrics["weight/temperature"] == 1

    def test_one_and_a_half_nats_unless_told_otherwise(self) -> None:
        by_default = make().weigh(self.reward, self.group, self.valid).metrics
        assert by_default["weight/kl"] == pytest.approx(1.5, abs=1e-6)
        by_entropy = make(simpo_target_entropy=math.log(8) - 0.4)
        assert by_entropy.weigh(self.reward, self.group, self.valid).metrics["weight/kl"] == pytest.approx(0.4)
        fixed = make(simpo_temperature=0.8).weigh(self.reward, self.group, self.valid)
        score = (self.reward / (self.reward.std(correction=0) + 1e-4)).reshape(6, 8)
        torch.testing.assert_close(fixed.value, (8 * (score / 0.8).softmax(1)).flatten().float())
        assert fixed.metrics["weight/temperature"] == 0.8

    def test_the_order_of_samples_and_the_unit_of_rewards_do_not_matter(self) -> None:
        simpo, order = make(), torch.randperm(48, generator=torch.Generator().manual_seed(0))
        expected = simpo.weigh(self.reward, self.group, self.valid).value
        shuffled = simpo.weigh(3 + 7 * self.reward[order], 100 - self.group[order], self.valid)
        torch.testing.assert_close(shuffled.value, expected[order])

    def test_missing_rewards_take_their_samples_out_of_their_groups(self) -> None:
        valid = self.valid.clone()
        valid[2:5], valid[8:15], valid[16:24] = False, False, False
        weights = make().weigh(self.reward.masked_fill(~valid, torch.nan), self.group, valid).value
        assert not weights[~valid].any() and weights.isfinite().all()
        counts = torch.stack([valid[self.group == g].sum() for g in range(6)]).float()
        torch.testing.assert_close(weights.reshape(6, 8).sum(1), counts, atol=1e-5, rtol=0)
        assert weights[15] == 1  # the only one left of its group

    @pytest.mark.parametrize("name", WEIGHTINGS)
    def test_equal_rewards_weigh_nothing_over_the_others(self, name: str) -> None:
        weights = make(**WEIGHTINGS[name]).weigh(torch.full((48,), 0.3), self.group, self.valid)
        assert (weights.value == (0.0 if name == "wd1" else 1.0)).all()
        assert weights.metrics["weight/at_min_temperature"] == (name != "wd1")
        assert weights.metrics["weight/kl"] == pytest.approx(0, abs=1e-9)

    def test_one_image_per_prompt_weighs_one(self) -> None:
        weights = make().weigh(self.reward, torch.arange(48), self.valid)
        assert (weights.value == 1).all()

    def test_binary_rewards_stop_at_the_smallest_temperature(self) -> None:
        reward = (torch.arange(48) % 2).double()
        weights = make(simpo_weighting="linear", simpo_floor=-0.5).weigh(reward, self.group, self.valid)
        torch.testing.assert_close(weights.value, torch.where(reward > 0, 2.5, -0.5))
        assert weights.metrics["weight/at_min_temperature"] == 1
        assert weights.metrics["weight/temperature"] == 0.05

    def test_no_valid_reward_weighs_nothing(self) -> None:
        weights = make().weigh(self.reward, self.group, ~self.valid)
        assert not weights.value.any() and all(math.isfinite(value) for value in weights.metrics.values())

    @pytest.mark.parametrize("bad", [math.nan, math.inf])
    def test_a_valid_reward_is_finite(self, bad: float) -> None:
        reward = self.reward.clone()
        reward[3] = bad
        with pytest.raises(ValueError, match="a valid reward is not finite"):
            make().weigh(reward, self.group, self.valid)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"simpo_weighting": "softmax"}, "unknown weighting 'softmax'"),
        ({"simpo_floor": -0.5}, "has no meaning for weighting 'exp'"),
        ({"simpo_temperature": 1.0, "simpo_target_kl": 1.0}, "at most one of temperature"),
        ({"simpo_weighting": "wd1", "simpo_target_kl": 1.0}, "'wd1' have mean 0 and thus no KL"),
        ({"weighting": "t**3"}, "unknown weighting 't\\*\\*3'"),
        ({"kl_weight": "elbo"}, "unknown kl_weight"),
        ({"kl_ema_weight": "elbo"}, "unknown kl_ema_weight"),
        ({"old_policy": "anchor"}, "known: rollout, current"),
        ({"train_timesteps": 40}, "use fewer training times"),
    ],
)
def test_bad_options_fail_at_construction(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**options)


def test_every_weighting_trains_the_tiny_model(make_config: Callable[..., ConfigDict]) -> None:
    """One trainer and one rollout, learnt from with each weighting in turn."""
    from tests.training.test_trainer import build

    config = make_config(num_epochs=9, eval_freq=0, save_freq=100, train__algorithm="simpo")
    config.train.weighting, config.train.simpo_weighting, config.train.simpo_floor = "Uniform", "linear", -0.5
    config.train.simpo_target_kl, config.train.updates_per_inner_epoch = 0.6, 2
    trainer = build(config)
    trainer.train_epoch()
    line = read_metrics(Path(config.logdir) / "run" / "metrics.jsonl")[-1]
    assert line.keys() >= METRICS | {"weight/case_two", "loss/policy", "loss/pull", "loss/kl_anchor", "grad_norm"}
    assert line["weight/kl"] == pytest.approx(0.6, abs=1e-4)

    prompts = trainer.epoch_prompts()
    rollout = trainer.rollout(prompts, trainer.rollout_noise, lambda _: None, keep=())
    rewards = gather_rewards(rollout.rewards, prompts.group, trainer.distributed)
    for name, options in WEIGHTINGS.items():
        for key, default in {"simpo_weighting": "exp", "simpo_floor": 0.0, "simpo_power": 2.0}.items():
            config.train[key] = options.get(key, default)
        config.train.simpo_target_kl = None if name == "wd1" else 0.6
        trainer.credit.objective = trainer.update.objective = build_objective(config)
        experience, metrics = trainer.credit(rollout, rewards, prompts, trainer.epoch)
        before = [p.detach().clone() for p in trainer.policy.trainable_parameters()]
        losses, steps = trainer.update(experience, trainer.epoch, lambda _: None)
        assert steps == 2 and all(math.isfinite(value) for value in losses.values())
        after = trainer.policy.trainable_parameters()
        assert any(not torch.equal(a, b) for a, b in zip(after, before, strict=True))
        assert metrics["weight/max"] > 1 or name == "wd1"
        assert (metrics["weight/min"] < 0) == (name in ("linear_neg", "square_neg", "wd1")), name
    trainer.outputs.finish()
