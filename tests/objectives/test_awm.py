"""What AWM promises: the pre-training gradient times the advantage, and no forward it does not need."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from awm.objectives.awm import AWM, awm_loss
from awm.objectives.terms import log_likelihood, velocity_mse
from awm.types import LossOutput
from tests.helpers import FakePolicy, TinyFlow, make_experience, on_forward_process

KEY: dict[str, Any] = {"seed": 0, "epoch": 3, "inner_epoch": 0, "on_policy": True}
DOUBLE = torch.float64


def make(**options: Any) -> AWM:
    awm: AWM = on_forward_process(AWM, **options)
    return awm


def run(policy: FakePolicy, *, key: dict[str, Any] | None = None, batch: Any = None, **options: Any) -> LossOutput:
    batch = make_experience(dtype=policy.model.weight.dtype) if batch is None else batch
    return make(**options)(policy, batch, **{**KEY, **(key or {})})


def fresh(**options: Any) -> FakePolicy:
    return FakePolicy(TinyFlow(**options))


def moved(name: str, dtype: torch.dtype = torch.float32) -> FakePolicy:
    """A policy whose set ``name`` differs from the current weights."""
    policy = fresh(dtype=dtype)
    policy.sets[name]["weight"] += torch.tensor([0.2, -0.1, 0.3], dtype=dtype)
    return policy


def gradient(policy: FakePolicy, loss: Tensor) -> Tensor:
    return torch.autograd.grad(loss.mean(), policy.model.weight)[0]


@pytest.mark.parametrize("loss_type", ["exp_first", "sum_first"])
@pytest.mark.parametrize("weighting", ["Uniform", "t", "t**2", "huber", "ghuber"])
def test_on_policy_gradient_is_advantage_weighted_matching(loss_type: str, weighting: str) -> None:
    policy, batch = fresh(dtype=DOUBLE), make_experience(dtype=DOUBLE)
    out = run(policy, batch=batch, loss_type=loss_type, weighting=weighting)
    torch.testing.assert_close(out.loss.detach(), -batch.advantage)

    noised = make().forward.noised(batch, seed=0, epoch=3, inner_epoch=0)
    mse = velocity_mse(noised.velocity(policy, 1.0), noised.target)
    with torch.enable_grad():
        point = mse.detach().requires_grad_()
        slope = torch.autograd.grad(log_likelihood(point, noised.t, weighting=weighting).sum(), point)[0]
    expected = gradient(policy, -batch.advantage * (slope * mse).mean(0))
    torch.testing.assert_close(gradient(policy, out.loss), expected, rtol=1e-6, atol=1e-12)


def test_loss_types_differ_once_the_policy_has_moved() -> None:
    losses = [
        run(moved("rollout", DOUBLE), key={"on_policy": False}, loss_type=k).loss for k in ("exp_first", "sum_first")
    ]
    assert (losses[0] - losses[1]).abs().max() > 1e-4


def test_ratio_is_that_of_the_rollout_weights_at_the_same_noise() -> None:
    policy, batch = moved("rollout", DOUBLE), make_experience(dtype=DOUBLE)
    out = run(policy, batch=batch, key={"on_policy": False}, weighting="t", loss_type="sum_first", clip_range=10.0)
    noised = make().forward.noised(batch, seed=0, epoch=3, inner_epoch=0)
    new = -(noised.t * velocity_mse(noised.velocity(policy, 1.0), noised.target)).mean(0)
    with policy.using("rollout"):
        old = -(noised.t * velocity_mse(noised.velocity(policy, 1.0), noised.target)).mean(0)
    torch.testing.assert_close(out.loss, -batch.advantage * (new - old).exp())
    torch.testing.assert_close(out.metrics["ratio/mean"], (new - old).exp().detach())


def test_unmoved_rollout_weights_give_the_on_policy_loss_and_gradient() -> None:
    policy = fresh(dtype=DOUBLE)
    on, off = (run(policy, key={"on_policy": flag}) for flag in (True, False))
    torch.testing.assert_close(on.loss, off.loss)
    torch.testing.assert_close(gradient(policy, on.loss), gradient(policy, off.loss))


def test_clipping_stops_the_gradient_of_a_good_sample_that_moved_too_far() -> None:
    v = torch.zeros(1, 1, 1, 1, 1, dtype=DOUBLE, requires_grad=True)
    target, old = torch.zeros_like(v), torch.ones_like(v)
    t = torch.ones(1, 1, dtype=DOUBLE)
    advantage = torch.ones(1, dtype=DOUBLE)
    loss, metrics = awm_loss(v, target, t, advantage, velocity_old=old, weighting="Uniform", clip_range=0.2)
    assert loss.item() == pytest.approx(-1.2)
    assert metrics["ratio/clip_fraction"].item() == 1
    assert torch.autograd.grad(loss.sum(), v)[0].item() == 0


@pytest.mark.parametrize(
    ("options", "on_policy", "used"),
    [
        ({}, True, []),
        ({"beta": 0.1}, True, ["reference"]),
        ({"ema_beta": 1.0}, True, ["anchor"]),
        ({"beta": 0.1, "ema_beta": 1.0}, True, ["reference", "anchor"]),
        ({}, False, ["rollout"]),
        ({"beta": 0.1, "ema_beta": 1.0}, False, ["reference", "anchor", "rollout"]),
        ({"old_policy": "current"}, False, []),
        ({"off_policy": True}, True, ["anchor"]),
        ({"off_policy": True, "ema_beta": 1.0}, False, ["anchor"]),
    ],
)
def test_no_forward_that_is_not_needed(options: dict[str, Any], on_policy: bool, used: list[str]) -> None:
    policy = fresh()
    out = run(policy, key={"on_policy": on_policy}, **options)
    assert policy.used == used
    # All of T = 6 times of B = 5 samples in one forward; the one with gradient comes last.
    assert policy.model.calls == [(30, False)] * len(used) + [(30, True)]
    assert out.loss.shape == (5,)
    assert ("loss/kl_reference" in out.metrics) == ("reference" in used)
    assert ("loss/kl_anchor" in out.metrics) == (options.get("ema_beta", 0) > 0)


def test_kl_terms_vanish_with_their_gradient_when_the_weights_are_equal() -> None:
    policy = fresh(dtype=DOUBLE)
    plain, pulled = run(policy), run(policy, beta=0.5, ema_beta=2.0)
    torch.testing.assert_close(pulled.loss, plain.loss, rtol=0, atol=0)
    torch.testing.assert_close(gradient(policy, pulled.loss), gradient(policy, plain.loss))
    assert (pulled.metrics["loss/kl_reference"] == 0).all()
    torch.testing.assert_close(pulled.metrics["velocity_norm_ratio"], torch.ones(5, dtype=DOUBLE))


@pytest.mark.parametrize(("name", "coefficient"), [("reference", "beta"), ("anchor", "ema_beta")])
def test_a_zero_advantage_group_still_pays_the_kl(name: str, coefficient: str) -> None:
    policy = moved(name, DOUBLE)
    batch = make_experience(dtype=DOUBLE).take(torch.tensor([0, 1]))
    batch = replace(batch, advantage=torch.zeros(2, dtype=DOUBLE))
    out = run(policy, batch=batch, **{coefficient: 0.5})
    assert (out.loss > 0).all()
    torch.testing.assert_close(out.loss.detach(), 0.5 * out.metrics[f"loss/kl_{name}"])
    before = gradient(policy, out.loss)
    with torch.no_grad():
        policy.model.weight.sub_(0.01 * before / before.norm())
    assert run(policy, batch=batch, **{coefficient: 0.5}).loss.mean() < out.loss.mean()


def test_off_policy_ratio_is_against_the_anchor() -> None:
    out = run(moved("anchor"), off_policy=True)
    assert (out.metrics["ratio/mean"] - 1).abs().max() > 1e-3
    out = run(moved("rollout"), off_policy=True)
    assert (out.metrics["ratio/mean"] == 1).all()


def test_a_sample_costs_the_same_in_any_micro_batch() -> None:
    policy, batch = moved("reference"), make_experience()
    whole = run(policy, batch=batch, beta=0.1, ema_beta=1.0)
    part = run(policy, batch=batch.take(torch.tensor([3, 0])), beta=0.1, ema_beta=1.0)
    torch.testing.assert_close(part.loss, whole.loss[[3, 0]])
    for name, value in part.metrics.items():
        assert not value.requires_grad
        torch.testing.assert_close(value, whole.metrics[name][[3, 0]])


def test_every_pass_and_epoch_draws_anew_and_a_key_repeats() -> None:
    batch, forward = make_experience(), make().forward
    first = forward.noised(batch, seed=0, epoch=0, inner_epoch=0)
    assert torch.equal(first.x_t, forward.noised(batch, seed=0, epoch=0, inner_epoch=0).x_t)
    for key in ((1, 0, 0), (0, 1, 0), (0, 0, 1)):
        seed, epoch, inner_epoch = key
        assert not torch.equal(first.x_t, forward.noised(batch, seed=seed, epoch=epoch, inner_epoch=inner_epoch).x_t)


def test_packing_is_time_major() -> None:
    batch = make_experience()
    noised = make(train_timesteps=3).forward.noised(batch, seed=0, epoch=0, inner_epoch=0)
    assert noised.x_t.shape == (3, 5, 2, 3, 3)
    torch.testing.assert_close(noised.condition.pooled, batch.condition.pooled[batch.prompt_index].repeat(3, 1))
    time = noised.t.reshape(3, 5, 1, 1, 1)
    torch.testing.assert_close(noised.x_t - time * noised.target, batch.x_0.expand(3, -1, -1, -1, -1))


def test_guidance_in_training_reaches_the_model() -> None:
    policy = fresh()
    plain, guided = run(policy), run(policy, guidance_scale=4.5)
    assert (plain.metrics["velocity_mse"] - guided.metrics["velocity_mse"]).abs().max() > 0.1


@pytest.mark.parametrize("time_type", ["discrete", "discrete_wo_init", "discrete_with_init", "uniform", "logit_normal"])
def test_every_time_type_runs(time_type: str) -> None:
    assert torch.isfinite(run(fresh(), time_type=time_type).loss).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"time_type": "cosine"}, "unknown time_type"),
        ({"train_timesteps": 40}, "use fewer training times"),
        ({"loss_type": "mean"}, "unknown loss_type"),
        ({"weighting": "t**3"}, "unknown weighting"),
        ({"kl_weight": "elbo"}, "unknown kl_weight"),
        ({"kl_ema_weight": "elbo"}, "unknown kl_ema_weight"),
        ({"old_policy": "anchor"}, "known: rollout, current"),
    ],
)
def test_bad_options_fail_at_construction(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**options)
