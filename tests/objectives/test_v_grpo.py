"""What V-GRPO promises: one clipped ratio per image, and on policy the step of DiffusionNFT."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from awm.flow.times import shifted_grid
from awm.objectives.forward_process import ForwardProcess
from awm.objectives.nft import DiffusionNFT, nft_loss
from awm.objectives.terms import velocity_mse
from awm.objectives.v_grpo import VGRPO, v_grpo_loss
from awm.types import Experience, LossOutput
from tests.helpers import FakePolicy, TinyFlow, make_experience

GRID = shifted_grid(14)
KEY: dict[str, Any] = {"seed": 0, "epoch": 3, "inner_epoch": 0, "on_policy": True}
DOUBLE = torch.float64


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)


class TestTheWorkedExample:
    """Two numbers at t = 0.5 whose target is 0: errors (1, -1) of the old policy, (0.8, -0.8) of the current one."""

    target = torch.zeros(1, 1, 2, dtype=DOUBLE)
    old = torch.tensor([1.0, -1.0], dtype=DOUBLE).reshape(1, 1, 2)
    t, one = torch.full((1, 1), 0.5, dtype=DOUBLE), torch.ones(1, dtype=DOUBLE)

    def test_ratio_and_clip(self) -> None:
        loss, metrics = v_grpo_loss(0.8 * self.old, self.old, self.target, self.t, self.one, clip_range=0.01)
        assert metrics["log_likelihood"].item() == pytest.approx(-0.4, abs=1e-12)
        assert metrics["ratio/mean"].item() == pytest.approx(1.1051709, abs=1e-7)
        assert metrics["ratio/clip_fraction"].item() == 1
        assert loss.item() == pytest.approx(-1.01, abs=1e-12)

    def test_a_bad_image_that_became_likelier_is_not_clipped(self) -> None:
        loss, _ = v_grpo_loss(0.8 * self.old, self.old, self.target, self.t, -self.one, clip_range=0.01)
        assert loss.item() == pytest.approx(1.1051709, abs=1e-7)

    def test_the_clip_stops_the_gradient(self) -> None:
        v = (0.8 * self.old).requires_grad_()
        for advantage, stopped in ((self.one, True), (-self.one, False)):
            loss, _ = v_grpo_loss(v, self.old, self.target, self.t, advantage, clip_range=0.01)
            assert (torch.autograd.grad(loss.sum(), v)[0].abs().max() == 0) == stopped

    def test_soft_clip(self) -> None:
        for advantage in (0.1, 4.0, 1e6):
            loss, _ = v_grpo_loss(
                self.old, self.old, self.target, self.t, advantage * self.one, clip_range=0.01, soft_clip=3.0
            )
            assert loss.item() == pytest.approx(-3 * torch.tensor(advantage / 3, dtype=DOUBLE).tanh().item(), abs=1e-12)

    def test_kl_is_a_distance_of_data_predictions(self) -> None:
        plain, _ = v_grpo_loss(0.8 * self.old, self.old, self.target, self.t, self.one, clip_range=0.01)
        loss, metrics = v_grpo_loss(0.8 * self.old, self.old, self.target, self.t, self.one, clip_range=0.01, kl=0.3)
        assert metrics["loss/kl_old"].item() == pytest.approx(0.25 * 0.04, abs=1e-12)
        assert (loss - plain).item() == pytest.approx(0.3 * 0.01, abs=1e-12)


class TestTheLoss:
    old, target = randn(3, 5, 2, 4, 4), randn(3, 5, 2, 4, 4, seed=1)
    t = torch.rand(3, 5, generator=torch.Generator().manual_seed(3), dtype=DOUBLE)
    advantage = torch.tensor([-0.9, -0.3, 0.0, 0.4, 0.9], dtype=DOUBLE)

    def gradient(self, **options: Any) -> Tensor:
        v = self.old.clone().requires_grad_()
        loss, _ = v_grpo_loss(v, v, self.target, self.t, self.advantage, clip_range=0.01, **options)
        return torch.autograd.grad(loss.sum(), v)[0]

    def test_first_step_is_that_of_nft(self) -> None:
        v = self.old.clone().requires_grad_()
        loss, _ = nft_loss(v, self.old, self.target, self.t, self.advantage, beta=0.1, advantage_max=1.0)
        (expected,) = torch.autograd.grad(loss.sum(), v)
        torch.testing.assert_close(self.gradient(), expected, rtol=1e-11, atol=1e-15)

    def test_first_step_is_weighted_matching(self) -> None:
        v = self.old.clone().requires_grad_()
        with torch.no_grad():
            weight = self.t / (v - self.target).abs().mean((2, 3, 4))
        loss = (self.advantage * weight * velocity_mse(v, self.target)).mean(0)
        (expected,) = torch.autograd.grad(loss.sum(), v)
        torch.testing.assert_close(self.gradient(), expected, rtol=1e-12, atol=1e-15)

    def test_kl_is_inert_on_policy(self) -> None:
        torch.testing.assert_close(self.gradient(kl=0.3), self.gradient(), rtol=0, atol=0)

    def test_ratio_is_of_the_mean_over_times_and_each_policy_has_its_own_normaliser(self) -> None:
        v = self.old + 0.3 * randn(3, 5, 2, 4, 4, seed=2)
        _, metrics = v_grpo_loss(v, self.old, self.target, self.t, self.advantage, clip_range=10.0)
        new, old = (
            -(self.t * velocity_mse(each, self.target) / (each - self.target).abs().mean((2, 3, 4))).mean(0)
            for each in (v, self.old)
        )
        torch.testing.assert_close(metrics["ratio/mean"], (new - old).exp(), rtol=1e-12, atol=0)
        torch.testing.assert_close(metrics["log_likelihood"], new, rtol=1e-12, atol=0)

    def test_no_advantage_has_no_gradient(self) -> None:
        assert not self.gradient()[:, 2].any()

    def test_no_gradient_reaches_the_old_policy(self) -> None:
        v, old = self.target.clone().requires_grad_(), self.old.clone().requires_grad_()
        loss, _ = v_grpo_loss(v + 0.1, old, self.target, self.t, self.advantage, clip_range=1.0, kl=0.5)
        assert torch.autograd.grad(loss.sum(), [v, old], allow_unused=True)[1] is None

    def test_low_precision_predictions_are_compared_in_float32(self) -> None:
        low = [v.bfloat16() for v in (0.99 * self.old, self.old)]
        rest = (self.target.float(), self.t.float(), self.advantage.float())
        got, wanted = (v_grpo_loss(*pair, *rest, clip_range=1.0, kl=0.1)[0] for pair in (low, [v.float() for v in low]))
        assert got.dtype == torch.float32
        torch.testing.assert_close(got, wanted, rtol=0, atol=0)


def v_grpo(**options: Any) -> VGRPO:
    own = {
        name: options.pop(name)
        for name in ("clip_range", "vgrpo_soft_clip", "vgrpo_kl", "old_policy", "off_policy")
        if name in options
    }
    return VGRPO(forward=ForwardProcess(**{"grid": GRID, "group_noise": True, **options}), **{"clip_range": 0.5, **own})


def run(policy: FakePolicy, batch: Any = None, *, key: dict[str, Any] | None = None, **options: Any) -> LossOutput:
    batch = make_experience(dtype=policy.model.weight.dtype) if batch is None else batch
    return v_grpo(**options)(policy, batch, **{**KEY, **(key or {})})


def fresh() -> FakePolicy:
    return FakePolicy(TinyFlow(dtype=DOUBLE))


def moved(name: str) -> FakePolicy:
    """A policy whose set ``name`` differs from the current weights."""
    policy = fresh()
    policy.sets[name]["weight"] += torch.tensor([0.2, -0.1, 0.3], dtype=DOUBLE)
    return policy


def gradient(policy: FakePolicy, out: LossOutput) -> Tensor:
    return torch.autograd.grad(out.loss.mean(), policy.model.weight)[0]


class TestTheObjective:
    def test_on_policy_it_is_nft_on_the_same_noise(self) -> None:
        policy, batch = fresh(), make_experience(dtype=DOUBLE)
        out = run(policy, batch, vgrpo_kl=0.3)
        torch.testing.assert_close(out.loss.detach(), -batch.advantage)
        assert (out.metrics["ratio/mean"] == 1).all() and not out.metrics["loss/kl_old"].any()
        nft = DiffusionNFT(forward=ForwardProcess(grid=GRID, group_noise=True), nft_beta=0.1)(policy, batch, **KEY)
        torch.testing.assert_close(gradient(policy, out), gradient(policy, nft), rtol=1e-9, atol=1e-13)

    def test_images_of_a_prompt_are_compared_at_the_same_noise(self) -> None:
        """Two equal images of opposite advantage: nothing is left."""
        batch = make_experience(dtype=DOUBLE).take(torch.tensor([0, 1]))
        twins = replace(
            batch,
            x_0=batch.x_0[:1].expand(2, -1, -1, -1),
            prompt_index=torch.zeros(2, dtype=torch.int64),
            advantage=torch.tensor([1.0, -1.0], dtype=DOUBLE),
        )
        policy = fresh()
        assert gradient(policy, run(policy, twins)).abs().max() < 1e-12
        apart = replace(twins, group=torch.tensor([0, 1]))
        assert gradient(policy, run(policy, apart)).abs().max() > 1e-3

    @pytest.mark.parametrize(("name", "options"), [("rollout", {}), ("anchor", {"off_policy": True})])
    def test_old_surrogate_is_that_of_the_policy_that_sampled(self, name: Any, options: dict[str, Any]) -> None:
        policy, batch = moved(name), make_experience(dtype=DOUBLE)
        out = run(policy, batch, key={"on_policy": False}, clip_range=0.01, vgrpo_kl=0.3, **options)
        noised = ForwardProcess(grid=GRID, group_noise=True).noised(batch, seed=0, epoch=3, inner_epoch=0)
        current, old = noised.velocity(policy, 1.0), noised.frozen_velocity(policy, name, 1.0)
        expected, metrics = v_grpo_loss(current, old, noised.target, noised.t, batch.advantage, clip_range=0.01, kl=0.3)
        torch.testing.assert_close(out.loss, expected)
        torch.testing.assert_close(out.metrics["ratio/mean"], metrics["ratio/mean"].detach())
        assert (out.metrics["ratio/mean"] - 1).abs().max() > 1e-3

    def test_unmoved_rollout_weights_give_the_on_policy_loss_and_gradient(self) -> None:
        policy = fresh()
        on, off = (run(policy, key={"on_policy": flag}, vgrpo_kl=0.3) for flag in (True, False))
        torch.testing.assert_close(on.loss, off.loss)
        torch.testing.assert_close(gradient(policy, on), gradient(policy, off))

    @pytest.mark.parametrize(
        ("options", "on_policy", "used"),
        [
            ({}, True, []),
            ({}, False, ["rollout"]),
            ({"vgrpo_kl": 0.3}, True, []),
            ({"beta": 0.1}, True, ["reference"]),
            ({"beta": 0.1}, False, ["reference", "rollout"]),
            ({"old_policy": "current", "vgrpo_kl": 0.3}, False, []),
            ({"off_policy": True}, True, ["anchor"]),
            ({"off_policy": True}, False, ["anchor"]),
            ({"ema_beta": 0.5}, False, ["anchor", "rollout"]),
        ],
    )
    def test_no_forward_that_is_not_needed(self, options: dict[str, Any], on_policy: bool, used: list[str]) -> None:
        policy = fresh()
        out = run(policy, key={"on_policy": on_policy}, train_timesteps=4, **options)
        assert policy.used == used
        # All of T = 4 times of B = 5 samples in one forward; the one with gradient comes last.
        assert policy.model.calls == [(20, False)] * len(used) + [(20, True)]
        assert ("loss/kl_reference" in out.metrics) == ("reference" in used)

    def test_the_kl_to_the_anchor_does_not_make_it_the_old_policy(self) -> None:
        out = run(moved("anchor"), key={"on_policy": False}, ema_beta=0.5)
        assert (out.metrics["ratio/mean"] == 1).all() and (out.metrics["loss/kl_anchor"] > 0).all()

    def test_a_sample_costs_the_same_in_any_micro_batch(self) -> None:
        policy, batch = moved("rollout"), make_experience(dtype=DOUBLE)
        whole = run(policy, batch, key={"on_policy": False}, beta=0.1, vgrpo_kl=0.3)
        for rows in ([3, 0], [2]):
            part = run(policy, batch.take(torch.tensor(rows)), key={"on_policy": False}, beta=0.1, vgrpo_kl=0.3)
            torch.testing.assert_close(part.loss, whole.loss[rows])
            for name, value in part.metrics.items():
                assert not value.requires_grad
                torch.testing.assert_close(value, whole.metrics[name][rows])

    def test_an_invalid_sample_has_no_gradient_of_its_own(self) -> None:
        policy, batch = fresh(), make_experience(dtype=DOUBLE)
        some = torch.tensor([True, False, True, True, True])
        masked: Experience = replace(batch, valid=some, advantage=torch.where(some, batch.advantage, 0.0))
        out = run(policy, masked)
        assert not torch.autograd.grad(out.loss[1], policy.model.weight)[0].any()

    def test_soft_clip_reaches_the_loss(self) -> None:
        batch = replace(make_experience(dtype=DOUBLE), advantage=torch.linspace(-5, 4, 5, dtype=DOUBLE))
        out = run(fresh(), batch, vgrpo_soft_clip=3.0)
        torch.testing.assert_close(out.loss.detach(), -3 * (batch.advantage / 3).tanh())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"group_noise": False}, "set train.group_noise=True"),
        ({"clip_range": 0.0}, "clip_range=0 is not valid"),
        ({"vgrpo_soft_clip": 0.0}, "vgrpo_soft_clip=0 is not valid"),
        ({"vgrpo_kl": -0.1}, "vgrpo_kl=-0.1 is negative"),
        ({"old_policy": "anchor"}, "known: rollout, current"),
    ],
)
def test_bad_options_fail_at_construction(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        v_grpo(**options)
