"""What CRD promises: implicit rewards that match the images' rewards within each prompt, however a step is split."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from awm.interfaces import PreparesStep
from awm.objectives.crd import CRD, bounded_reward, crd_loss, matching_score
from awm.objectives.terms import velocity_mse
from awm.types import Experience
from tests.helpers import FakePolicy
from tests.objectives.coupled import (
    DOUBLE,
    KEY,
    SPLITS,
    assert_same,
    awm_gradient,
    current_and,
    forward,
    make_groups,
    make_policy,
    prepare,
    split,
    take_step,
)

ROWS = torch.arange(12).reshape(3, 4)  # samples of each group of make_groups()


def cross_entropy(logit: Tensor, wanted: Tensor) -> Tensor:
    return -(wanted.sigmoid() * logit.sigmoid().log() + (-wanted).sigmoid() * (-logit).sigmoid().log())


def published(
    policy: FakePolicy,
    batch: Experience,
    groups: list[Tensor],
    *,
    beta: float = 1.0,
    kind: str = "mse",
    adaptive: bool = True,
    temperature: float = math.inf,
    advantage_max: float = 1.0,
    through_the_bar: bool = False,
) -> Tensor:
    """The loss with whole groups at hand: mean over samples, times and the two directions of the bars."""
    velocity, anchor, target = current_and("anchor", policy, batch)
    size, size_anchor = (
        (v.detach() - target).abs().flatten(2).mean(2) if adaptive else 1.0 for v in (velocity, anchor)
    )
    gain = velocity_mse(anchor, target) / size_anchor - velocity_mse(velocity, target) / size
    reward = (batch.advantage / (2 * advantage_max) + 0.5).clamp(0, 1)
    terms = []
    for rows in groups:
        for sign in (1, -1):
            share = (sign * reward[rows] / temperature).softmax(0)
            bar = (gain if through_the_bar else gain.detach())[:, rows] @ share
            logit, wanted = beta * (gain[:, rows] - bar.unsqueeze(1)), reward[rows] - reward[rows] @ share
            error = (logit - wanted).square() if kind == "mse" else cross_entropy(logit, wanted.expand_as(logit))
            terms.append(error.mean(0).sum() / 2)
    return advantage_max / beta * torch.stack(terms).sum() / sum(len(rows) for rows in groups)


def slope(policy: FakePolicy, loss: Tensor) -> Tensor:
    return torch.autograd.grad(loss, policy.model.weight)[0]


def row(*values: float) -> Tensor:
    return torch.tensor([values], dtype=DOUBLE)


def test_the_loss_of_two_errors_by_hand() -> None:
    centres = [(row(0, 0), row(0.5, 0.5))]
    arguments = (-row(0.9, 1.1), -row(1, 1), row(0.8, 0.2)[0], centres)
    loss, metrics = crd_loss(*arguments, kind="mse", crd_beta=1.0, advantage_max=1.0)
    assert metrics["crd/gain"].tolist() == pytest.approx([0.1, -0.1])
    assert metrics["crd/miss"].tolist() == pytest.approx([0.2, 0.2])
    assert loss.tolist() == pytest.approx([0.04, 0.04])
    scaled, _ = crd_loss(*arguments, kind="mse", crd_beta=2.0, advantage_max=5.0)
    assert scaled.tolist() == pytest.approx([2.5 * 0.01] * 2)
    entropy, _ = crd_loss(*arguments, kind="bce", crd_beta=1.0, advantage_max=1.0)
    # -s(.3) log s(.1) - s(-.3) log s(-.1) = log(1 + e^-.1) + .1 s(-.3)
    assert entropy.tolist() == pytest.approx([math.log1p(math.exp(-0.1)) + 0.1 / (1 + math.exp(0.3))] * 2)


def test_scores_are_errors_over_their_size() -> None:
    velocity = torch.tensor([1.0, -3.0], dtype=DOUBLE).reshape(1, 1, 2, 1, 1).requires_grad_()
    target = torch.zeros_like(velocity)
    assert matching_score(velocity, target, adaptive=False).item() == -5
    score = matching_score(velocity, target, adaptive=True)
    assert score.item() == -2.5
    # 2 e / (D m): the size has no gradient.
    torch.testing.assert_close(torch.autograd.grad(score.sum(), velocity)[0].flatten(), row(-0.5, 1.5)[0])
    assert matching_score(target, target, adaptive=True).item() == 0


@pytest.mark.parametrize("adaptive", [False, True])
def test_at_the_anchor_it_is_advantage_weighted_matching(adaptive: bool) -> None:
    policy, batch = make_policy(), make_groups()
    crd = CRD(forward=forward(), crd_adaptive=adaptive, advantage_max=5.0)
    step = take_step(crd, policy, split(batch))
    assert step.metrics["crd/gain"] == 0
    if adaptive:
        velocity, _, target = current_and("anchor", policy, batch)
        size = (velocity.detach() - target).abs().flatten(2).mean(2)
        expected = slope(policy, (batch.advantage * velocity_mse(velocity, target) / size).mean())
    else:
        expected = awm_gradient(policy, batch)
    torch.testing.assert_close(step.gradient, expected, rtol=1e-11, atol=1e-14)


def test_cross_entropy_is_an_eighth_of_that_for_small_advantages() -> None:
    policy, batch = make_policy(), make_groups()
    batch = replace(batch, advantage=1e-4 * batch.advantage)
    step = take_step(CRD(forward=forward(), crd_adaptive=False, crd_loss="bce"), policy, split(batch))
    torch.testing.assert_close(step.gradient, awm_gradient(policy, batch) / 8, rtol=1e-6, atol=0)


@pytest.mark.parametrize("temperature", [None, 0.2, 5.0])
@pytest.mark.parametrize("kind", ["mse", "bce"])
@pytest.mark.parametrize("adaptive", [False, True])
def test_the_loss_is_the_published_one_within_each_prompt(kind: str, adaptive: bool, temperature: float | None) -> None:
    policy, batch = make_policy("anchor"), make_groups()
    crd = CRD(
        forward=forward(),
        crd_beta=0.7,
        crd_loss=kind,
        crd_adaptive=adaptive,
        crd_weight_temperature=temperature,
        advantage_max=0.4,
    )
    step = take_step(crd, policy, split(batch))
    options: dict[str, Any] = {"beta": 0.7, "kind": kind, "adaptive": adaptive, "advantage_max": 0.4}
    loss = published(policy, batch, list(ROWS), temperature=temperature or math.inf, **options)
    assert step.loss == pytest.approx(loss.item(), rel=1e-12)
    torch.testing.assert_close(step.gradient, slope(policy, loss), rtol=1e-10, atol=1e-13)


def test_a_gradient_through_a_plain_mean_would_change_nothing() -> None:
    policy, batch = make_policy("anchor"), make_groups()
    both = [slope(policy, published(policy, batch, list(ROWS), through_the_bar=flag)) for flag in (False, True)]
    torch.testing.assert_close(*both, rtol=1e-10, atol=1e-14)


def test_implicit_rewards_that_match_cost_nothing() -> None:
    reward = row(0.9, 0.5, 0.1)[0]
    gain = (reward / 4).expand(2, 3) + row(3.0, -1.0).T  # whatever the prompt's normaliser at each time
    bars = (gain.mean(1, keepdim=True).expand(2, 3), reward.mean().expand(2, 3))
    loss, _ = crd_loss(gain, torch.zeros(2, 3), reward, [bars], kind="mse", crd_beta=4.0, advantage_max=1.0)
    torch.testing.assert_close(loss, torch.zeros(3, dtype=DOUBLE), atol=1e-20, rtol=0)


def test_temperatures_end_at_plain_means_and_at_the_best_and_worst_image() -> None:
    policy, batch = make_policy("anchor"), make_groups(groups=1)
    steps = {
        temperature: take_step(CRD(forward=forward(), crd_weight_temperature=temperature), policy, split(batch))
        for temperature in (None, 1e6, 1e-4)
    }
    torch.testing.assert_close(steps[1e6].gradient, steps[None].gradient, rtol=1e-5, atol=0)
    velocity, anchor, target = current_and("anchor", policy, batch)
    score, score_anchor = (matching_score(v, target, adaptive=True) for v in (velocity, anchor))
    reward, gain = bounded_reward(batch.advantage, 1.0), (score - score_anchor).detach()
    ends = [(gain[:, i, None].expand(3, 4), reward[i].expand(3, 4)) for i in (reward.argmax(), reward.argmin())]
    loss = crd_loss(score, score_anchor, reward, ends, kind="mse", crd_beta=1.0, advantage_max=1.0)[0]
    torch.testing.assert_close(steps[1e-4].gradient, slope(policy, loss.mean()), rtol=1e-8, atol=0)


def test_rewards_stop_at_the_bound_of_the_advantages() -> None:
    torch.testing.assert_close(bounded_reward(row(-9, -5, 0, 2.5, 5, 9)[0], 5.0), row(0, 0, 0.5, 0.75, 1, 1)[0])


@pytest.mark.parametrize(("ranks", "size"), SPLITS)
@pytest.mark.parametrize("temperature", [None, 0.2])
def test_groups_over_micro_batches_and_ranks_are_as_good_as_whole(
    ranks: int, size: int, temperature: float | None
) -> None:
    policy, batch = make_policy("anchor", "reference"), make_groups()
    batch = replace(batch, valid=batch.valid & (torch.arange(12) != 7))
    crd = CRD(forward=forward(beta=0.1, ema_beta=0.2), crd_weight_temperature=temperature)
    assert_same(take_step(crd, policy, split(batch, ranks, size)), take_step(crd, policy, split(batch)))


@pytest.mark.parametrize("temperature", [None, 0.2])
def test_invalid_images_count_in_no_mean(temperature: float | None) -> None:
    policy, batch = make_policy("anchor"), make_groups()
    valid, x_0 = torch.arange(12) != 5, batch.x_0.clone()
    x_0[5] = 40.0
    batch = replace(batch, valid=valid, x_0=x_0, advantage=batch.advantage.where(valid, 0.0))
    step = take_step(CRD(forward=forward(), crd_weight_temperature=temperature), policy, split(batch, 1, 5))
    groups = [torch.arange(0, 4), torch.arange(4, 7), torch.arange(7, 11)]
    left = batch.take(torch.arange(12)[valid])
    loss = published(policy, left, groups, temperature=temperature or math.inf)
    torch.testing.assert_close(step.gradient, slope(policy, loss), rtol=1e-10, atol=1e-13)


def test_one_image_of_a_prompt_teaches_nothing() -> None:
    policy, batch = make_policy("anchor"), make_groups(size=1)
    step = take_step(CRD(forward=forward()), policy, split(replace(batch, advantage=row(0.4, -0.2, 0.1)[0])))
    assert step.loss == pytest.approx(0, abs=1e-20)
    torch.testing.assert_close(step.gradient, torch.zeros(3, dtype=DOUBLE), atol=1e-12, rtol=0)


def test_equal_rewards_pull_back_to_the_anchor() -> None:
    policy, batch = make_policy("anchor"), replace(make_groups(), advantage=torch.zeros(12, dtype=DOUBLE))
    crd = CRD(forward=forward())
    before = take_step(crd, policy, split(batch))
    assert before.loss > 0
    with torch.no_grad():
        policy.model.weight.sub_(1e-3 * before.gradient / before.gradient.norm())
    assert take_step(crd, policy, split(batch)).loss < before.loss


class TestTheKlToTheReference:
    @staticmethod
    def kl(policy: FakePolicy, batch: Experience, beta: float) -> tuple[Tensor, Tensor]:
        """[B] what the KL costs each sample, over beta, and the distance it is a multiple of."""
        crd, without = CRD(forward=forward(beta=beta)), CRD(forward=forward())
        (ready,) = prepare(crd, policy, split(batch))
        out = crd(policy, ready[0], **KEY)
        cost = out.loss - without(policy, ready[0], **KEY).loss
        return (cost / beta).detach(), out.metrics["loss/kl_reference"]

    def test_good_images_are_pulled_and_bad_ones_hardly(self) -> None:
        policy, batch = make_policy("reference"), make_groups()
        advantage = batch.advantage.clone()
        advantage[:2] = torch.tensor([1.0, -1.0])
        batch = replace(batch, advantage=advantage)
        cost, distance = self.kl(policy, batch, beta=0.1)
        reward = (advantage / 2 + 0.5).clamp(0, 1)
        torch.testing.assert_close(cost, (1e-3 + (1 - 1e-3) * reward) * distance, rtol=1e-9, atol=1e-12)
        assert (cost / distance)[:2].tolist() == pytest.approx([1, 1e-3], rel=1e-6)

    def test_a_small_coefficient_is_not_raised(self) -> None:
        policy = make_policy("reference")
        cost, distance = self.kl(policy, make_groups(), beta=1e-5)
        torch.testing.assert_close(cost, distance, rtol=1e-6, atol=1e-9)

    def test_it_need_not_depend_on_rewards(self) -> None:
        policy, batch = make_policy("reference"), make_groups()
        plain = take_step(CRD(forward=forward(beta=0.1), crd_adaptive_pull=False), policy, split(batch))
        bare = take_step(CRD(forward=forward()), policy, split(batch))
        assert plain.loss - bare.loss == pytest.approx(0.1 * plain.metrics["loss/kl_reference"], rel=1e-9)

    def test_its_reference_may_have_guidance(self) -> None:
        policy, batch = make_policy(), make_groups()
        steps = [
            take_step(CRD(forward=forward(beta=0.1, reference_guidance_scale=scale)), policy, split(batch))
            for scale in (None, 4.5)
        ]
        assert steps[0].metrics["loss/kl_reference"] == 0 < steps[1].metrics["loss/kl_reference"]
        assert steps[0].metrics["crd/gain"] == steps[1].metrics["crd/gain"]


@pytest.mark.parametrize(
    ("options", "used"),
    [({}, []), ({"beta": 0.1}, ["reference"]), ({"beta": 0.1, "ema_beta": 1.0}, ["reference", "anchor"])],
)
def test_no_forward_that_is_not_needed(options: dict[str, Any], used: list[str]) -> None:
    policy, crd = make_policy(), CRD(forward=forward(**options))
    assert isinstance(crd, PreparesStep) and crd.needs.whole_groups
    (ready,) = prepare(crd, policy, split(make_groups(), 1, 6))
    assert policy.used == ["anchor", "current"] * 2
    assert policy.model.calls == [(18, False)] * 4
    policy.used.clear()
    policy.model.calls.clear()
    crd(policy, ready[0], **KEY)
    assert policy.used == used and policy.model.calls == [(18, False)] * len(used) + [(18, True)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"forward": forward(group_noise=False)}, r"'crd' compares the images .* set train\.group_noise=True"),
        ({"crd_loss": "mae"}, "unknown crd_loss 'mae'; known: mse, bce"),
        ({"crd_beta": 0.0}, r"train\.crd_beta=0 is not valid"),
        ({"advantage_max": -1.0}, r"train\.advantage_max=-1 is not valid"),
        ({"crd_weight_temperature": 0.0}, r"train\.crd_weight_temperature=0 is not valid"),
    ],
)
def test_mistakes_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CRD(**{"forward": forward(), **options})


def test_samples_without_group_terms_are_refused() -> None:
    with pytest.raises(ValueError, match="samples of 'crd' have no group terms"):
        CRD(forward=forward())(make_policy(), make_groups(), **KEY)
