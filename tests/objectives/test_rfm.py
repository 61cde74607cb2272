"""What RFM on images promises: exact targets, no signal without one, and no forward it does not need."""

from __future__ import annotations

import math
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from awm.flow.path import interpolate
from awm.objectives.noising import noised_with
from awm.objectives.rfm import RFM
from awm.objectives.rfm_candidates import candidate_weights, effective_size, relative_log_likelihood, tempering
from awm.objectives.rfm_gradient import correlated_noise, fresh_share, stein_correction
from awm.objectives.rfm_targets import anchored_target, weighted_target
from awm.objectives.terms import velocity_mse
from awm.reverse_matching import velocity_target
from awm.types import Condition, Experience, GroupMates, LossOutput, TargetGradient
from tests.helpers import FakePolicy, TinyFlow, gaussian_velocity, make_experience, on_forward_process

KEY: dict[str, Any] = {"seed": 0, "epoch": 3, "inner_epoch": 0, "on_policy": True}
DOUBLE = torch.float64


def make(**options: Any) -> RFM:
    rfm: RFM = on_forward_process(RFM, **options)
    return rfm


def credited(objective: RFM, batch: Experience, reward: Tensor, gradient: Tensor | None = None) -> Experience:
    """The batch as the trainer hands it over when it is the whole epoch."""
    weights = objective.weigh(reward.double(), batch.group, batch.valid)
    known = batch.valid
    mates = GroupMates(batch.x_0[known], batch.group[known], batch.sample_index[known], weights.value[known])
    slope = None if gradient is None else weights.slope * gradient
    return replace(batch, weight=weights.value, mates=mates, weight_gradient=slope)


def one_prompt(batch: int = 6, shape: tuple[int, int, int] = (1, 1, 2), dtype: torch.dtype = DOUBLE) -> Experience:
    experience = make_experience(batch=batch, prompts=1, shape=shape, dtype=dtype)
    return replace(experience, group=torch.zeros(batch, dtype=torch.int64))


def gradient(policy: FakePolicy, loss: Tensor) -> Tensor:
    return torch.autograd.grad(loss.mean(), policy.model.weight)[0]


# Weights


def test_weights_are_a_softmax_of_the_advantages_and_average_one() -> None:
    reward = torch.tensor([1.0, 0.0, 0.5, 2.0, 2.0, -1.0], dtype=DOUBLE)
    group, valid = torch.arange(6) // 3, torch.ones(6, dtype=torch.bool)
    weights = make(rfm_temperature=0.7).weigh(reward, group, valid)
    advantage = (reward - reward.reshape(2, 3).mean(1).repeat_interleave(3)) / (reward.std(correction=0) + 1e-4)
    expected = 3 * (advantage / 0.7).reshape(2, 3).softmax(1).flatten()
    torch.testing.assert_close(weights.value, expected.float())
    torch.testing.assert_close(weights.value.reshape(2, 3).mean(1), torch.ones(2))
    ratio = (weights.value[0] / weights.value[1]).log() / (reward[0] - reward[1])
    assert weights.slope == pytest.approx(float(ratio), rel=1e-5)
    assert weights.metrics["weight/max"] == pytest.approx(float(expected.max())) and weights.metrics["weight/kl"] > 0


def test_samples_without_a_reward_have_no_weight_and_do_not_count() -> None:
    reward = torch.tensor([1.0, 0.0, torch.nan, 2.0], dtype=DOUBLE)
    valid = torch.tensor([True, True, False, True])
    value = make().weigh(reward, torch.zeros(4, dtype=torch.int64), valid).value
    assert value[2] == 0
    assert value[valid].mean() == pytest.approx(1.0)
    with pytest.raises(ValueError, match="not finite"):
        make().weigh(reward, torch.zeros(4, dtype=torch.int64), torch.ones(4, dtype=torch.bool))


def test_equal_rewards_and_single_images_weigh_one_and_have_no_slope() -> None:
    valid, group = torch.ones(4, dtype=torch.bool), torch.tensor([0, 0, 1, 1])
    weights = make().weigh(torch.full((4,), 0.3, dtype=DOUBLE), group, valid)
    assert torch.equal(weights.value, torch.ones(4)) and weights.slope == 0
    alone = make().weigh(torch.arange(4, dtype=DOUBLE), torch.arange(4), valid)
    assert torch.equal(alone.value, torch.ones(4))
    nothing = make().weigh(torch.full((4,), torch.nan, dtype=DOUBLE), group, ~valid)
    assert torch.equal(nothing.value, torch.zeros(4)) and nothing.slope == 0


# The inner softmax


def test_only_the_generator_is_behind_an_image_sized_state_until_noise_is_all_there_is() -> None:
    batch = one_prompt(batch=6, shape=(16, 32, 32), dtype=torch.float32)
    batch = credited(make(), batch, torch.zeros(6))
    assert batch.mates is not None
    times = torch.tensor([0.1, 0.5, 0.9, 1.0]).unsqueeze(1).expand(4, 6)
    eps = torch.randn(4, *batch.x_0.shape, generator=torch.Generator().manual_seed(1))
    ess = effective_size(candidate_weights(relative_log_likelihood(batch.x_0, eps, times, batch.group, batch.mates)))
    torch.testing.assert_close(ess[:3], torch.ones(3, 6))
    torch.testing.assert_close(ess[3], torch.full((6,), 6.0))


def test_the_target_at_a_state_is_the_posterior_mean_whichever_image_made_it() -> None:
    batch = credited(make(), one_prompt(), torch.tensor([0.3, -1.0, 0.0, 2.0, 1.0, 0.5]))
    assert batch.mates is not None and batch.weight is not None
    x_t, t = torch.tensor([0.2, -0.4], dtype=DOUBLE).reshape(1, 1, 2), torch.full((1, 6), 0.6, dtype=DOUBLE)
    eps = ((x_t - 0.4 * batch.x_0) / 0.6).unsqueeze(0)
    matching = weighted_target(batch, noised_with(batch, eps, t))
    logits = batch.weight.double().log() - ((x_t - 0.4 * batch.x_0) ** 2).flatten(1).sum(1) / (2 * 0.36)
    w = logits.softmax(0)
    expected = torch.einsum("j,j...->...", w, eps[0] - batch.x_0)
    torch.testing.assert_close(matching.target[0], expected.expand(6, 1, 1, 2))
    torch.testing.assert_close(matching.ess[0], (1 / w.square().sum()).expand(6))


def test_candidates_are_of_the_same_prompt_and_valid() -> None:
    batch = make_experience(batch=6, shape=(1, 1, 2))
    batch = replace(batch, group=torch.tensor([0, 0, 0, 1, 1, 1]), valid=torch.tensor([1, 1, 0, 1, 1, 1]).bool())
    reward = torch.tensor([0.0, 1.0, torch.nan, 0.0, 1.0, 2.0])
    batch = credited(make(), batch, reward)
    assert batch.mates is not None
    likelihood = relative_log_likelihood(
        batch.x_0, torch.zeros(2, *batch.x_0.shape), torch.full((2, 6), 0.9), batch.group, batch.mates
    )
    assert batch.mates.group.tolist() == [0, 0, 1, 1, 1]
    weight = candidate_weights(likelihood)
    assert (weight[:, :3, 2:] == 0).all() and (weight[:, 3:, :2] == 0).all()
    torch.testing.assert_close(weight.sum(2), torch.ones(2, 6))
    # The sample without a reward is no candidate, but noised like the others: its target is finite, its weight zero.
    assert torch.isfinite(make()(FakePolicy(TinyFlow()), batch, **KEY).loss).all()
    out = make(rfm_centred=False)(FakePolicy(TinyFlow()), batch, **KEY)
    assert torch.isfinite(out.loss).all() and out.loss[2] == 0


def test_a_batch_without_any_valid_sample_is_matched_with_its_paths() -> None:
    batch = make_experience(batch=4, shape=(1, 1, 2))
    batch = credited(make(), replace(batch, valid=torch.zeros(4, dtype=torch.bool)), torch.full((4,), torch.nan))
    noised = make().forward.noised(batch, seed=0, epoch=0, inner_epoch=0)
    assert torch.equal(weighted_target(batch, noised).target, noised.target)
    anchored = anchored_target(batch, noised, noised.x_t)
    assert torch.equal(anchored.target, noised.x_t)


def test_tempering_leaves_a_quarter_of_the_candidates() -> None:
    batch = credited(make(), one_prompt(batch=16, shape=(4, 16, 16), dtype=torch.float32), torch.arange(16.0))
    assert batch.mates is not None
    t = torch.tensor([0.2, 0.6, 0.95, 1.0]).unsqueeze(1).expand(4, 16)
    eps = torch.randn(4, *batch.x_0.shape, generator=torch.Generator().manual_seed(2))
    likelihood = relative_log_likelihood(batch.x_0, eps, t, batch.group, batch.mates)
    power = tempering(likelihood)
    ess = effective_size(candidate_weights(likelihood * power))
    torch.testing.assert_close(ess[:2], torch.full((2, 16), 4.0), rtol=1e-3, atol=0)
    assert (power[:2] < 1).all() and (power[3] == 1).all()
    assert (ess > 3.99).all()


# Form "weighted", estimator "noise"


def test_the_collapsed_limit_is_flow_matching_weighted_by_a_softmax() -> None:
    policy = FakePolicy(TinyFlow())
    objective = make(rfm_centred=False)
    batch = one_prompt(shape=(16, 16, 16), dtype=torch.float32)
    batch = credited(objective, replace(batch, x_0=4 * batch.x_0), torch.linspace(-1, 1, 6))
    out = objective(policy, batch, **KEY)
    noised = objective.forward.noised(batch, seed=0, epoch=3, inner_epoch=0)
    plain = (batch.weight * velocity_mse(noised.velocity(policy, 1.0), noised.target)).mean(0)
    torch.testing.assert_close(out.loss, plain)
    torch.testing.assert_close(gradient(policy, out.loss), gradient(policy, plain))
    torch.testing.assert_close(out.metrics["rfm/ess"], torch.ones(6))
    centred = make()(policy, batch, **KEY)  # on policy the pull is zero
    torch.testing.assert_close(centred.loss, (out.loss / batch.weight) * (batch.weight - 1))


def test_centring_keeps_the_mean_gradient_at_the_policy_that_sampled_and_lowers_its_variance() -> None:
    class Gaussian:
        """The exact velocity of N(0, 1) data, (t - s) x_t / (s^2 + t^2), minus b."""

        def __init__(self) -> None:
            self.b = torch.zeros(1, dtype=DOUBLE, requires_grad=True)

        def velocity(self, x_t: Tensor, t: Tensor, condition: Any, guidance_scale: float = 1.0) -> Tensor:
            clock = t.reshape(-1, 1, 1, 1).double()
            return (2 * clock - 1) / ((1 - clock) ** 2 + clock**2) * x_t - self.b

    class Sampling:
        model = Gaussian()

    def gradient_of(objective: RFM, batch: Experience, seed: int) -> Tensor:
        out = objective(Sampling(), batch, **{**KEY, "seed": seed})  # type: ignore[arg-type]
        return torch.autograd.grad(out.loss.mean(), Sampling.model.b)[0]

    generator = torch.Generator().manual_seed(0)
    objectives = [make(rfm_centred=centred, weighting="Uniform") for centred in (True, False)]
    template = replace(make_experience(batch=64, prompts=1, shape=(1, 4, 4), dtype=DOUBLE), group=torch.arange(64) // 4)
    found = []
    for seed in range(60):
        batch = replace(template, x_0=torch.randn(64, 1, 4, 4, generator=generator, dtype=DOUBLE))
        batch = credited(objectives[0], batch, batch.x_0.mean((1, 2, 3)))
        found.append(torch.cat([gradient_of(objective, batch, seed) for objective in objectives]))
    centred, plain = torch.stack(found).unbind(1)
    difference = centred - plain
    assert abs(difference.mean()) < 4 * difference.std() / len(difference) ** 0.5
    assert centred.mean() < -4 * centred.std() / len(centred) ** 0.5  # b rises: brighter images are better
    assert centred.var() < 0.7 * plain.var()


def test_forwards_are_those_that_the_form_needs() -> None:
    def used(on_policy: bool, **options: Any) -> list[str]:
        policy, objective = FakePolicy(TinyFlow()), make(**options)
        batch = credited(objective, make_experience(), torch.arange(5.0), torch.zeros(5, 2, 3, 3))
        batch, _ = objective.prepare(policy, batch, seed=0, epoch=0, gather=lambda x: x)
        policy.used.clear()
        objective(policy, batch, **{**KEY, "on_policy": on_policy})
        return policy.used

    gaussian = {"rfm_estimator": "combined", "rfm_score": "gaussian"}
    plain = {"rfm_centred": False}
    assert used(False, **plain) == used(False, **plain, rfm_estimator="combined") == []
    assert used(True) == used(False, old_policy="current") == []
    assert used(False) == used(False, rfm_estimator="combined") == ["rollout"]
    assert used(True, rfm_form="anchored") == used(True, **gaussian) == []
    assert used(False, rfm_form="anchored") == used(False, **gaussian) == ["rollout"]
    assert used(False, rfm_form="anchored", old_policy="current") == []
    assert used(True, rfm_form="anchored", off_policy=True) == ["anchor"]
    assert used(True, beta=0.1, ema_beta=1.0) == ["reference", "anchor"]


# Form "anchored"


@pytest.mark.parametrize("on_policy", [True, False])
def test_equal_rewards_leave_the_anchored_policy_exactly_where_it_is(on_policy: bool) -> None:
    policy, objective = FakePolicy(TinyFlow()), make(rfm_form="anchored")
    batch = credited(objective, one_prompt(dtype=torch.float32), torch.full((6,), 0.7))
    noised = objective.forward.noised(batch, seed=0, epoch=3, inner_epoch=0)
    old = noised.velocity(policy, 1.0)
    assert torch.equal(anchored_target(batch, noised, old).target, old)
    out = objective(policy, batch, **{**KEY, "on_policy": on_policy})
    assert torch.equal(out.loss, torch.zeros(6)) and torch.equal(gradient(policy, out.loss), torch.zeros(3))


def test_the_anchored_target_moves_toward_better_images() -> None:
    """By -(1 / t) sum (w - w0) x_0, whose first order in A / T is a covariance with the advantage."""
    objective = make(rfm_form="anchored", rfm_temperature=1e3)
    reward = torch.tensor([0.0, 1.0, 3.0, -1.0, 0.5, 2.0])
    batch = credited(objective, one_prompt(), reward)
    assert batch.mates is not None
    batch = replace(batch, mates=replace(batch.mates, weight=batch.mates.weight.double()))
    noised = objective.forward.noised(batch, seed=0, epoch=0, inner_epoch=0)
    old = torch.zeros_like(noised.x_t)
    change = anchored_target(batch, noised, old).target
    likelihood = relative_log_likelihood(
        batch.x_0, noised.target + batch.x_0, noised.t.double(), batch.group, batch.mates
    )
    w = candidate_weights(likelihood * tempering(likelihood))
    score = reward.double() / (reward.std(correction=0) + 1e-4) / 1e3
    mean = torch.einsum("tbm,mchw->tbchw", w, batch.x_0)
    together = torch.einsum("tbm,m,mchw->tbchw", w, score, batch.x_0)
    covariance = together - (w @ score)[..., None, None, None] * mean
    expected = -covariance / noised.t[..., None, None, None]
    torch.testing.assert_close(change, expected, rtol=0.02, atol=float(0.02 * expected.abs().max()))


# Gradients


class GaussianPolicy:
    """The exact velocity of N(mean, std^2), in place of a network."""

    def __init__(self, mean: float, std: float) -> None:
        self.exact = gaussian_velocity(mean, std)
        self.model = self

    def using(self, name: str) -> Any:
        return nullcontext()

    def velocity(self, x_t: Tensor, t: Tensor, condition: Condition, guidance_scale: float = 1.0) -> Tensor:
        return self.exact(x_t, t)


def gaussian_samples(mean: float, std: float, slope: float, count: int = 100_000) -> Experience:
    """Samples of N(mean, std^2) with reward x_0 and weights exp(slope x_0), each the only image of its prompt."""
    x_0 = mean + std * torch.randn(count, 1, 1, 1, dtype=DOUBLE, generator=torch.Generator().manual_seed(5))
    weight = (slope * x_0.flatten()).exp()
    none = torch.zeros(0, dtype=torch.int64)
    return Experience(
        x_0=x_0,
        condition=Condition(torch.zeros(1, 1, 1), torch.zeros(1, 1)),
        prompt_index=torch.zeros(count, dtype=torch.int64),
        sample_index=torch.arange(count),
        group=torch.arange(count),
        advantage=torch.zeros(count),
        valid=torch.ones(count, dtype=torch.bool),
        weight=weight / weight.mean(),
        weight_gradient=torch.full_like(x_0, slope),
        mates=GroupMates(x_0[:0], none, none, weight[:0]),
    )


@pytest.mark.parametrize(("std", "slope", "t_n"), [(0.5, 0.8, 0.02), (0.05, 8.0, 0.05)], ids=["wide", "narrow"])
def test_targets_with_the_policys_score_have_the_right_mean_and_hardly_any_variance(
    std: float, slope: float, t_n: float
) -> None:
    """Gaussian data and a linear reward: the target is N(mean + slope std^2, std^2), and its velocity is known."""
    mean, count = 0.3, 20_000
    policy: Any = GaussianPolicy(mean, std)
    objective = make(rfm_estimator="combined", rfm_score_time=t_n, rfm_gradient_clip=0.0, batch_size=count)
    batch, metrics = objective.prepare(
        policy, gaussian_samples(mean, std, slope, count), seed=0, epoch=0, gather=lambda x: x
    )
    assert metrics["rfm/fisher"] == pytest.approx(1 / ((1 - t_n) ** 2 * std**2 + t_n**2), rel=0.03)
    assert metrics["rfm/reward_gradient"] == pytest.approx(slope)
    gradient = batch.target_gradient
    assert gradient is not None and gradient.noise is not None
    generator = torch.Generator().manual_seed(7)
    times = torch.tensor([0.1, 0.3, 0.6, 0.9], dtype=DOUBLE).unsqueeze(1).expand(4, count)
    fresh = torch.randn(4, count, 1, 1, 1, dtype=DOUBLE, generator=generator)
    eps = correlated_noise(fresh, gradient.noise.double(), times, t_n)
    noised = noised_with(batch, eps, times)
    exact = gaussian_velocity(mean + slope * std**2, std)
    v = torch.stack([exact(x, t) for x, t in zip(noised.x_t, noised.t, strict=True)])
    field = stein_correction(fresh, gradient, times, time=t_n, combined=True)
    old = torch.stack([policy.exact(x, t) for x, t in zip(noised.x_t, noised.t, strict=True)])
    matching = objective._match(batch, noised, noised_with(batch, fresh, times), old)
    y, y_old = matching.target, matching.baseline
    torch.testing.assert_close(y, weighted_target(batch, noised, lambda _: field).target)
    assert batch.weight is not None and y_old is not None
    plain, combined = (((x - v) * 1.0).flatten(1) for x in (noised.target, y))
    z = (y_old - old).flatten(1).mean(1) / ((y_old - old).flatten(1).std(1) / math.sqrt(count))
    assert (z.abs() < 4).all(), z  # of all samples alike, the baseline is the policy's velocity
    for residual in (plain, combined):
        for moment in (torch.ones_like(residual), noised.x_t.flatten(1)):
            terms = batch.weight * residual * moment
            z = terms.mean(1) / (terms.std(1) / math.sqrt(count))
            assert (z.abs() < 4).all(), z
    variance = [(batch.weight * r.square()).mean(1) for r in (plain, combined)]
    if t_n < std / 2:
        assert (variance[1] / variance[0])[1:].max() < 0.01  # at t = .1, x_n's own noise is a part of it
        assert (variance[1] / variance[0])[0] < 0.06


def test_noise_of_its_own_would_make_the_score_a_bias() -> None:
    """Data as narrow as t_n, as images are off their manifold: u has mean zero only if x_t is made from x_n."""
    std, t_n, count, t = 0.02, 0.02, 200_000, torch.tensor(0.1, dtype=DOUBLE)
    generator = torch.Generator().manual_seed(3)
    x_0, e, fresh = torch.randn(3, 1, count, 1, 1, 1, dtype=DOUBLE, generator=generator).unbind()
    x_0, times = x_0[0] * std, t.expand(1, count)
    x_n = (1 - t_n) * x_0 + t_n * e[0]
    score = -x_n / ((1 - t_n) ** 2 * std**2 + t_n**2)
    gradient = TargetGradient(score, score, e[0], float(score.square().mean()))
    field = stein_correction(fresh, gradient, times, time=t_n, combined=True)
    slopes = []
    for eps in (correlated_noise(fresh, e[0], times, t_n), fresh):
        x_t = interpolate(x_0, eps, times)
        slopes.append(float((field * x_t).mean() / (field.std() * x_t.std())))
    assert abs(slopes[0]) < 4 / math.sqrt(count)
    assert abs(slopes[1]) > 0.1


def test_noise_by_way_of_x_n_is_standard_normal() -> None:
    t = torch.tensor([0.01, 0.02, 0.03, 0.2, 1.0], dtype=DOUBLE).unsqueeze(1).expand(5, 50_000)
    e, fresh = (
        torch.randn(5, 50_000, 1, 1, 1, dtype=DOUBLE, generator=torch.Generator().manual_seed(s)) for s in (1, 2)
    )
    eps = correlated_noise(fresh, e[0], t, 0.02)
    torch.testing.assert_close(eps.flatten(1).var(1), torch.ones(5, dtype=DOUBLE), rtol=0.03, atol=0)
    assert torch.equal(eps[:2], fresh[:2]) and torch.equal(eps[4], fresh[4])
    # x_t is then x_n with more noise: what is left after a x_n is independent of x_n.
    x_t = t[3, :, None, None, None] * eps[3] + (1 - t[3, :, None, None, None])
    rest = x_t - (1 - 0.2) / (1 - 0.02) * (1 - 0.02 + 0.02 * e[0])
    torch.testing.assert_close(rest.var(), (0.04 * fresh_share(t[3], 0.02)[0]), rtol=0.03, atol=0)
    assert abs(torch.corrcoef(torch.stack([rest.flatten(), e[0].flatten()]))[0, 1]) < 0.02


@pytest.mark.parametrize("estimator", ["gradient", "combined"])
def test_with_the_score_at_the_data_itself_it_is_the_estimator_of_reverse_matching(estimator: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    x_0, g = torch.randn(2, 5, 1, 2, 2, dtype=DOUBLE, generator=generator).unbind()
    eps = torch.randn(3, 5, 1, 2, 2, dtype=DOUBLE, generator=generator)
    t = torch.tensor([0.2, 0.5, 0.9], dtype=DOUBLE).unsqueeze(1).expand(3, 5)
    gradient = TargetGradient(g, g, torch.zeros_like(g), 2.5)
    field = stein_correction(eps, gradient, t, time=1e-9, combined=estimator == "combined")
    expected = velocity_target(
        x_0.repeat(3, 1, 1, 1).reshape(15, 1, 4), eps.reshape(15, 1, 4), g.repeat(3, 1, 1, 1).reshape(15, 1, 4),
        torch.zeros(15, 1, dtype=DOUBLE), t.flatten(), estimator=estimator, fisher=2.5,
    )  # fmt: skip
    torch.testing.assert_close((eps - x_0 - field).reshape(15, 4), expected.velocity)


@pytest.mark.parametrize("estimator", ["gradient", "combined"])
def test_corrections_are_finite_at_both_ends_and_zero_before_the_score(estimator: str) -> None:
    t = torch.tensor([1e-3, 0.02, 0.0201, 0.5, 1.0]).unsqueeze(1).expand(5, 2)
    ones = torch.ones(5, 2, 1, 1, 1)
    field = stein_correction(
        ones, TargetGradient(ones[0], ones[0], ones[0], 1.0), t, time=0.02, combined=estimator == "combined"
    )
    assert torch.isfinite(field).all() and (field[:2] == 0).all()
    if estimator == "combined":
        assert field.abs().max() < 2.1


def test_the_gaussian_form_is_exact_for_gaussians() -> None:
    mean, std, slope, count = 0.3, 0.7, 0.8, 20_000
    policy: Any = GaussianPolicy(mean, std)
    objective = make(rfm_estimator="gradient", rfm_score="gaussian", rfm_gradient_clip=0.0)
    batch = gaussian_samples(mean, std, slope, count)
    assert batch.weight_gradient is not None
    nothing = torch.zeros_like(batch.weight_gradient)
    batch = replace(batch, target_gradient=TargetGradient(batch.weight_gradient, nothing, None, 1 / std**2))
    noised = objective.forward.noised(replace(batch, x_0=batch.x_0.float()), seed=0, epoch=0, inner_epoch=0)
    noised = noised_with(batch, (noised.target + batch.x_0.float()).double(), noised.t.double())
    exact = gaussian_velocity(mean + slope * std**2, std)
    old, new = (
        torch.stack([f(x, t) for x, t in zip(noised.x_t, noised.t, strict=True)]) for f in (policy.exact, exact)
    )
    matching = objective._match(batch, noised, noised, old)
    torch.testing.assert_close(matching.target, new)
    torch.testing.assert_close(matching.baseline, old)


def test_the_variance_of_the_data_is_that_within_prompts() -> None:
    generator = torch.Generator().manual_seed(0)
    x_0 = 3.0 * torch.arange(4.0).repeat_interleave(8).reshape(32, 1, 1, 1) + 0.5 * torch.randn(
        32, 4, 16, 16, generator=generator
    )
    batch = replace(
        make_experience(batch=32, shape=(4, 16, 16)), x_0=x_0, group=torch.arange(32) // 8, valid=torch.ones(32).bool()
    )
    objective = make(rfm_estimator="combined", rfm_score="gaussian")
    batch = credited(objective, batch, torch.arange(32.0), torch.ones_like(x_0))
    _, metrics = objective.prepare(FakePolicy(TinyFlow()), batch, seed=0, epoch=0, gather=lambda x: x)
    assert metrics["rfm/fisher"] == pytest.approx(4.0, rel=0.02)


def test_a_long_correction_is_cut_and_counted() -> None:
    def run(clip: float) -> LossOutput:
        objective = make(rfm_estimator="gradient", rfm_gradient_clip=clip)
        batch = credited(objective, make_experience(batch=6), torch.arange(6.0), torch.ones(6, 2, 3, 3))
        policy = FakePolicy(TinyFlow())
        batch, _ = objective.prepare(policy, batch, seed=0, epoch=3, gather=lambda x: x)
        return objective(policy, batch, **KEY)

    free, loose, tight = run(0.0), run(1e6), run(1e-6)
    assert torch.equal(free.loss, loose.loss) and (loose.metrics["rfm/clipped"] == 0).all()
    assert (tight.metrics["rfm/clipped"] == 1).all()
    assert (free.loss - tight.loss).abs().max() > 1e-3


def test_score_and_fisher_information_do_not_depend_on_how_the_epoch_is_cut() -> None:
    objective = make(rfm_estimator="combined", batch_size=2)
    whole = credited(objective, make_experience(batch=6), torch.arange(6.0), torch.ones(6, 2, 3, 3))
    policy = FakePolicy(TinyFlow())
    together, metrics = objective.prepare(policy, whole, seed=0, epoch=1, gather=lambda x: x)
    halves = [whole.take(torch.arange(3)), whole.take(torch.arange(3, 6))]
    seen: list[Tensor] = []
    for half in halves:
        objective.prepare(policy, half, seed=0, epoch=1, gather=lambda x: (seen.append(x), x)[1])
    per_half = len(seen) // 2
    parts = [[s for s in seen[:per_half]], [s for s in seen[per_half:]]]
    for number, half in enumerate(halves):
        order = iter(torch.cat([parts[0][k], parts[1][k]]) for k in range(per_half))
        result, cut = objective.prepare(policy, half, seed=0, epoch=1, gather=lambda x, o=order: next(o))  # type: ignore[misc]
        assert cut == metrics
        assert result.target_gradient is not None and together.target_gradient is not None
        rows = slice(3 * number, 3 * number + 3)
        torch.testing.assert_close(result.target_gradient.value, together.target_gradient.value[rows])


# Mistakes


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rfm_form": "anchored", "rfm_estimator": "combined"}, "no use for gradients"),
        ({"rfm_form": "weigthed"}, "weighted, anchored"),
        ({"rfm_score": "none"}, "policy, gaussian"),
        ({"rfm_estimator": "noisy"}, "noise, gradient, combined"),
    ],
)
def test_mistakes_name_what_is_valid(options: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**options)


@pytest.mark.slow
def test_the_score_of_a_trained_network_lowers_the_variance_of_its_targets() -> None:
    """The shipped tiny model near its data: the residual of the combined target against that of the plain one."""
    from awm.building.objects import build_policy, build_sampler
    from awm.data.prompts import load_prompts
    from awm.flow.rng import SampleNoise
    from awm.objectives.rfm_gradient import fisher_information, policy_score
    from config.awm import quickstart

    config, count = quickstart(), 16
    config.mixed_precision = "no"
    policy = build_policy(config, torch.device("cpu"))
    text = load_prompts(config.dataset, "train", config.prompt_fn).text[:count]
    condition, shape = policy.model.encode(text), policy.model.latent_shape(config.resolution)
    rollout = SampleNoise(0, "rollout", 0, range(count))
    with torch.no_grad():
        x_0 = build_sampler(config, "sa_solver", 10)(
            lambda x, t: policy.model.velocity(x, t, condition), rollout.randn(shape), lambda: rollout.randn(shape)
        ).x_0
    batch = make_experience(batch=count, prompts=1, shape=shape)
    batch = replace(batch, x_0=x_0, condition=condition, prompt_index=torch.arange(count))
    score, noise = policy_score(
        policy, batch, SampleNoise(1, "score", 0, range(count)),
        time=0.05, weights="current", guidance_scale=1.0, batch_size=count,
    )  # fmt: skip
    fisher = fisher_information(score, torch.ones(count), batch.valid, lambda x: x)
    t = torch.tensor([0.1, 0.36, 0.65]).unsqueeze(1).expand(3, count)
    fresh = torch.randn(3, *x_0.shape, generator=torch.Generator().manual_seed(3))
    noised = noised_with(batch, correlated_noise(fresh, noise, t, 0.05), t)
    velocity = noised.frozen_velocity(policy, "current", 1.0)
    field = stein_correction(fresh, TargetGradient(score, score, noise, fisher), t, time=0.05, combined=True)
    plain, combined = (velocity_mse(y, velocity).mean(1) for y in (noised.target, noised.target - field))
    assert ((combined / plain) < torch.tensor([0.65, 0.8, 0.95])).all()
