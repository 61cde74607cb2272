"""What DiffusionNFT promises: a bounded loss around the old policy, whose first step is advantage-weighted matching."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from awm.flow.times import shifted_grid
from awm.objectives.forward_process import ForwardProcess
from awm.objectives.nft import DiffusionNFT, nft_loss, self_normalised_error
from awm.objectives.terms import velocity_mse
from awm.types import LossOutput
from tests.helpers import FakePolicy, TinyFlow, make_experience

GRID = shifted_grid(14)
KEY: dict[str, Any] = {"seed": 0, "epoch": 3, "inner_epoch": 0, "on_policy": True}
DOUBLE = torch.float64
PLAIN: dict[str, Any] = {"advantage_max": 1.0, "adaptive": False}


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)


def number(value: float) -> Tensor:
    return torch.full((1, 1, 1), value, dtype=DOUBLE)


class TestTheWorkedExample:
    """One number: t = 0.5, x_0 = 1, eps = -1, so u = -2; v_old = -1, v = -1.2, b = 0.5, r = 0.8."""

    target, old, velocity = number(-2.0), number(-1.0), number(-1.2)
    t, advantage = torch.full((1, 1), 0.5, dtype=DOUBLE), torch.tensor([0.6], dtype=DOUBLE)

    def test_plain(self) -> None:
        loss, metrics = nft_loss(self.velocity, self.old, self.target, self.t, self.advantage, beta=0.5, **PLAIN)
        assert loss.item() == pytest.approx(0.89, abs=1e-12)  # 0.8 * 0.9^2 + 0.2 * 1.1^2
        assert metrics["nft/r"].item() == pytest.approx(0.8, abs=1e-12)
        assert metrics["nft/positive_error"].item() == pytest.approx(0.81, abs=1e-12)
        assert metrics["nft/negative_error"].item() == pytest.approx(1.21, abs=1e-12)

    @pytest.mark.parametrize(("largest", "loss"), [(1.0, 0.94), (5.0, 4.70)])
    def test_as_published(self, largest: float, loss: float) -> None:
        advantage = self.advantage * largest
        options = {"beta": 0.5, "advantage_max": largest}
        out, metrics = nft_loss(self.velocity, self.old, self.target, self.t, advantage, **options)
        assert out.item() == pytest.approx(loss, abs=1e-12)
        assert metrics["nft/positive_error"].item() == pytest.approx(0.45, abs=1e-12)
        assert metrics["nft/negative_error"].item() == pytest.approx(0.55, abs=1e-12)

    def test_gradient_at_the_old_policy(self) -> None:
        v = self.old.clone().requires_grad_()
        loss, _ = nft_loss(v, self.old, self.target, self.t, self.advantage, beta=0.5, advantage_max=1.0)
        assert torch.autograd.grad(loss.sum(), v)[0].item() == pytest.approx(0.6, abs=1e-12)


class TestThePlainForm:
    velocity, old, target = (randn(3, 5, 2, 4, 4, seed=seed) for seed in range(3))
    t = torch.rand(3, 5, generator=torch.Generator().manual_seed(3), dtype=DOUBLE)
    advantage = torch.tensor([-1.0, -0.3, 0.0, 0.4, 1.0], dtype=DOUBLE)

    @pytest.mark.parametrize("beta", [0.1, 0.5, 1.0, 2.0])
    def test_is_a_squared_distance_to_a_moved_old_velocity(self, beta: float) -> None:
        loss, _ = nft_loss(self.velocity, self.old, self.target, self.t, self.advantage, beta=beta, **PLAIN)
        a = self.advantage.reshape(1, 5, 1, 1, 1)
        error = self.old - self.target
        expected = beta**2 * (self.velocity - self.old + a / beta * error).square() + (1 - a**2) * error.square()
        torch.testing.assert_close(loss, expected.mean((0, 2, 3, 4)), rtol=1e-12, atol=1e-12)

    def test_of_the_best_image_is_supervised_fine_tuning(self) -> None:
        loss, _ = nft_loss(self.velocity, self.old, self.target, self.t, self.advantage, beta=1.0, **PLAIN)
        torch.testing.assert_close(loss[4], velocity_mse(self.velocity, self.target).mean(0)[4], rtol=1e-12, atol=0)

    @pytest.mark.parametrize("beta", [0.1, 1.0])
    def test_has_the_minimiser_of_the_spec(self, beta: float) -> None:
        """Samples that meet at one x_t: v_old + mean(a (u - v_old)) / b."""
        target, a = randn(1, 16, 3), randn(16, seed=1).clamp(-1, 1)
        old = randn(3, seed=2)
        best = (old + (a[:, None] * (target[0] - old)).mean(0) / beta).requires_grad_()
        t = torch.full((1, 16), 0.5, dtype=DOUBLE)

        def mean_loss(v: Tensor) -> Tensor:
            loss, _ = nft_loss(v.expand_as(target), old.expand_as(target), target, t, a, beta=beta, **PLAIN)
            return loss.mean()

        (slope,) = torch.autograd.grad(mean_loss(best), best)
        torch.testing.assert_close(slope, torch.zeros(3, dtype=DOUBLE), rtol=0, atol=1e-12)
        for away in torch.eye(3, dtype=DOUBLE):
            assert mean_loss(best.detach() + 0.1 * away) > mean_loss(best.detach())

    def test_is_bounded_below_where_matching_with_a_negative_advantage_is_not(self) -> None:
        far = [nft_loss(s * self.velocity, self.old, self.target, self.t, -torch.ones(5), beta=1.0, **PLAIN)[0]
               for s in (1e2, 1e3)]  # fmt: skip
        assert (far[1] > far[0]).all() and (far[0] > 0).all()


class TestThePublishedForm:
    old, target = randn(3, 5, 2, 4, 4), randn(3, 5, 2, 4, 4, seed=1)
    t = torch.rand(3, 5, generator=torch.Generator().manual_seed(3), dtype=DOUBLE)
    advantage = torch.tensor([-0.9, -0.3, 0.0, 0.4, 0.9], dtype=DOUBLE)

    def gradient(self, v: Tensor, **options: Any) -> Tensor:
        v = v.clone().requires_grad_()
        loss, _ = nft_loss(v, self.old, self.target, self.t, self.advantage, **{"advantage_max": 1.0, **options})
        return torch.autograd.grad(loss.sum(), v)[0]

    @pytest.mark.parametrize(("beta", "largest"), [(1.0, 1.0), (0.1, 1.0), (1.0, 5.0), (0.1, 5.0)])
    def test_first_step_is_weighted_matching_whatever_its_scales(self, beta: float, largest: float) -> None:
        error = self.old - self.target
        weight = (self.t / error.abs().mean((2, 3, 4))).reshape(3, 5, 1, 1, 1)
        expected = 2 * self.advantage.reshape(1, 5, 1, 1, 1) * weight * error / (32 * 3)
        torch.testing.assert_close(
            self.gradient(self.old, beta=beta, advantage_max=largest), expected, rtol=1e-12, atol=1e-15
        )

    def test_normalisers_are_constants_of_each_branch(self) -> None:
        v = randn(3, 5, 2, 4, 4, seed=4).requires_grad_()
        b, r = 0.3, (0.5 + 0.5 * self.advantage)
        t = self.t.reshape(3, 5, 1, 1, 1)
        x_t = randn(3, 5, 2, 4, 4, seed=5)
        x_0 = x_t - t * self.target
        total = torch.zeros((), dtype=DOUBLE)
        sizes = []
        for share, mixed in ((r, (1 - b) * self.old + b * v), (1 - r, (1 + b) * self.old - b * v)):
            residual = x_t - t * mixed - x_0
            sizes.append(residual.detach().abs().mean((2, 3, 4)))
            total = total + (share * residual.square().mean((2, 3, 4)) / sizes[-1]).sum() / (3 * b)
        assert (sizes[0] / sizes[1] - 1).abs().max() > 0.05  # of two branches, not of one
        (expected,) = torch.autograd.grad(total, v)
        loss, _ = nft_loss(v, self.old, self.target, self.t, self.advantage, beta=b, advantage_max=1.0)
        torch.testing.assert_close(loss.sum(), total, rtol=1e-11, atol=0)
        torch.testing.assert_close(self.gradient(v.detach(), beta=b), expected, rtol=1e-9, atol=1e-13)

    def test_no_advantage_is_at_rest_on_the_old_policy_and_pulls_back_to_it(self) -> None:
        assert not self.gradient(self.old, beta=0.5)[:, 2].any()
        # Errors (1, -1) moved by the same d: both branches keep the normaliser t, and the pull is exact.
        old, target, d = torch.tensor([1.0, -1.0], dtype=DOUBLE).reshape(1, 1, 2), torch.zeros(1, 1, 2).double(), 0.2
        v = (old + d).requires_grad_()
        t = torch.full((1, 1), 0.4, dtype=DOUBLE)
        loss, _ = nft_loss(v, old, target, t, torch.zeros(1).double(), beta=0.5, advantage_max=5.0)
        (slope,) = torch.autograd.grad(loss.sum(), v)
        torch.testing.assert_close(slope, torch.full_like(slope, 2 * 5.0 * 0.5 * 0.4 * d / 2), rtol=1e-12, atol=0)

    def test_an_advantage_beyond_its_bound_counts_as_the_bound(self) -> None:
        v = randn(3, 5, 2, 4, 4, seed=4)
        bound, beyond = (
            nft_loss(v, self.old, self.target, self.t, scale * torch.ones(5), beta=1.0, advantage_max=1.0)[0]
            for scale in (1.0, 3.0)
        )
        torch.testing.assert_close(beyond, bound, rtol=0, atol=0)

    def test_a_perfect_prediction_has_a_finite_loss_and_gradient(self) -> None:
        v = self.target.clone().requires_grad_()
        loss, _ = nft_loss(v, self.target, self.target, self.t, self.advantage, beta=1.0, advantage_max=1.0)
        assert not loss.any() and not torch.autograd.grad(loss.sum(), v)[0].any()

    def test_small_errors_are_divided_by_the_floor(self) -> None:
        error = torch.full((1, 1, 2), 1e-6, dtype=DOUBLE)
        value = self_normalised_error(error, torch.full((1, 1), 0.5, dtype=DOUBLE))
        assert value.item() == pytest.approx(0.25e-12 / 1e-5)

    def test_no_gradient_reaches_the_old_policy(self) -> None:
        v, old = self.target.clone().requires_grad_(), self.old.clone().requires_grad_()
        loss, _ = nft_loss(v, old, self.target, self.t, self.advantage, beta=1.0, advantage_max=1.0)
        assert torch.autograd.grad(loss.sum(), [v, old], allow_unused=True)[1] is None

    def test_low_precision_predictions_are_compared_in_float32(self) -> None:
        low = [v.bfloat16() for v in (0.9 * self.old, self.old)]
        high = [v.float() for v in low]
        rest = (self.target.float(), self.t.float(), self.advantage.float())
        got, wanted = (nft_loss(*pair, *rest, beta=0.5, advantage_max=1.0)[0] for pair in (low, high))
        assert got.dtype == torch.float32
        torch.testing.assert_close(got, wanted, rtol=0, atol=0)


def run(policy: FakePolicy, batch: Any = None, *, key: dict[str, Any] | None = None, **options: Any) -> LossOutput:
    batch = make_experience(dtype=policy.model.weight.dtype) if batch is None else batch
    own = {name: options.pop(name) for name in ("nft_beta", "advantage_max") if name in options}
    nft = DiffusionNFT(forward=ForwardProcess(grid=GRID, **options), **own)
    return nft(policy, batch, **{**KEY, **(key or {})})


def moved(name: str) -> FakePolicy:
    """A policy whose set ``name`` differs from the current weights."""
    policy = FakePolicy(TinyFlow(dtype=DOUBLE))
    policy.sets[name]["weight"] += torch.tensor([0.2, -0.1, 0.3], dtype=DOUBLE)
    return policy


class TestTheObjective:
    def test_is_the_loss_of_the_anchor_at_the_same_noise(self) -> None:
        policy, batch = moved("anchor"), make_experience(dtype=DOUBLE)
        out = run(policy, batch, nft_beta=0.3, advantage_max=2.0)
        noised = ForwardProcess(grid=GRID).noised(batch, seed=0, epoch=3, inner_epoch=0)
        current, anchor = noised.velocity(policy, 1.0), noised.frozen_velocity(policy, "anchor", 1.0)
        expected, metrics = nft_loss(
            current, anchor, noised.target, noised.t, batch.advantage, beta=0.3, advantage_max=2.0
        )
        torch.testing.assert_close(out.loss, expected)
        torch.testing.assert_close(out.metrics["nft/r"], 0.5 + batch.advantage / 4)
        torch.testing.assert_close(out.metrics["nft/negative_error"], metrics["nft/negative_error"].detach())
        torch.testing.assert_close(out.metrics["velocity_mse"], velocity_mse(current, noised.target).mean(0).detach())
        assert (out.metrics["nft/positive_error"] - out.metrics["nft/negative_error"]).abs().min() > 1e-6

    @pytest.mark.parametrize("on_policy", [True, False])
    @pytest.mark.parametrize(
        ("options", "used"),
        [
            ({}, ["anchor"]),
            ({"beta": 0.1}, ["reference", "anchor"]),
            ({"ema_beta": 0.5}, ["anchor"]),
        ],
    )
    def test_no_forward_that_is_not_needed(self, options: dict[str, Any], on_policy: bool, used: list[str]) -> None:
        policy = FakePolicy(TinyFlow())
        out = run(policy, key={"on_policy": on_policy}, **options)
        assert policy.used == used
        # All of T = 6 times of B = 5 samples in one forward; the one with gradient comes last.
        assert policy.model.calls == [(30, False)] * len(used) + [(30, True)]
        assert ("loss/kl_reference" in out.metrics) == ("reference" in used)
        assert ("loss/kl_anchor" in out.metrics) == ("ema_beta" in options)

    def test_the_kl_to_the_reference_is_added(self) -> None:
        plain, pulled = run(moved("reference")), run(moved("reference"), beta=0.5)
        torch.testing.assert_close(pulled.loss, plain.loss + 0.5 * pulled.metrics["loss/kl_reference"])
        assert (pulled.metrics["loss/kl_reference"] > 0).all()
        torch.testing.assert_close(pulled.metrics["loss/policy"], plain.loss.detach())

    def test_a_step_from_the_anchor_makes_good_images_more_likely_than_bad_ones(self) -> None:
        policy, batch = FakePolicy(TinyFlow(dtype=DOUBLE)), make_experience(dtype=DOUBLE)
        before = run(policy, batch)
        (slope,) = torch.autograd.grad(before.loss.mean(), policy.model.weight)
        with torch.no_grad():
            policy.model.weight.sub_(0.01 * slope / slope.norm())
        after = run(policy, batch)
        change = after.metrics["velocity_mse"] - before.metrics["velocity_mse"]
        assert after.loss.mean() < before.loss.mean()
        assert (batch.advantage * change).mean() < 0

    def test_a_sample_costs_the_same_in_any_micro_batch(self) -> None:
        policy, batch = moved("anchor"), make_experience(dtype=DOUBLE)
        whole = run(policy, batch, beta=0.1)
        for rows in ([3, 0], [2]):
            part = run(policy, batch.take(torch.tensor(rows)), beta=0.1)
            torch.testing.assert_close(part.loss, whole.loss[rows])
            for name, value in part.metrics.items():
                assert not value.requires_grad
                torch.testing.assert_close(value, whole.metrics[name][rows])

    def test_an_invalid_sample_is_finite_and_leaves_the_others_alone(self) -> None:
        policy, batch = moved("anchor"), make_experience(dtype=DOUBLE)
        whole = run(policy, batch)
        some = torch.tensor([True, False, True, True, True])
        masked = run(policy, replace(batch, valid=some, advantage=torch.where(some, batch.advantage, 0.0)))
        assert masked.loss.isfinite().all()
        torch.testing.assert_close(masked.loss[some], whole.loss[some], rtol=0, atol=0)

    def test_guidance_in_training_reaches_both_forwards(self) -> None:
        plain, guided = run(moved("anchor")), run(moved("anchor"), guidance_scale=4.5)
        for name in ("nft/positive_error", "nft/negative_error", "velocity_mse"):
            assert (plain.metrics[name] - guided.metrics[name]).abs().max() > 0.1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"nft_beta": 0.0}, "nft_beta=0 is not valid"),
        ({"nft_beta": -1.0}, "nft_beta=-1 is not valid"),
        ({"advantage_max": 0.0}, "advantage_max=0 is not valid"),
        ({"nft_beta": float("nan")}, "nft_beta=nan is not valid"),
    ],
)
def test_bad_options_fail_at_construction(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DiffusionNFT(forward=ForwardProcess(grid=GRID), **options)
