"""What DGPO promises: the gradient of softplus of a prompt's margin, however a step is split."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, softplus

from awm.interfaces import PreparesStep
from awm.objectives.dgpo import DGPO, dgpo_loss
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


def excess(policy: FakePolicy, batch: Experience) -> Tensor:
    """[T, B] d - d_ref."""
    velocity, reference, target = current_and("reference", policy, batch)
    return velocity_mse(velocity, target) - velocity_mse(reference, target)


def group_loss(policy: FakePolicy, batch: Experience, groups: list[Tensor], beta: float) -> Tensor:
    """softplus(z) / beta, mean over times and, by their sizes, groups; what the gradient is to be that of."""
    weighted = batch.advantage * excess(policy, batch)
    sizes = torch.tensor([len(rows) for rows in groups], dtype=DOUBLE)
    terms = torch.stack([softplus(beta * weighted[:, rows].mean(1)).mean() / beta for rows in groups])
    return (sizes * terms).sum() / sizes.sum()


def two(values: tuple[float, float]) -> Tensor:
    return torch.tensor([values], dtype=DOUBLE)


def test_the_loss_of_two_errors_by_hand() -> None:
    advantage, beta = two((1, -1))[0], 10.0
    margin = beta / 2 * (advantage * (two((0.9, 1.1)) - 1)).sum()
    assert margin.item() == pytest.approx(-1)
    velocity = two((0.9, 1.1)).sqrt().reshape(1, 2, 1, 1, 1).requires_grad_()
    loss, metrics = dgpo_loss(velocity, torch.zeros_like(velocity), advantage, margin.expand(1, 2), dgpo_beta=beta)
    assert loss.mean().item() == pytest.approx(-0.0268941, abs=1e-7)
    assert metrics["dgpo/weight"].tolist() == pytest.approx([0.2689414] * 2, abs=1e-7)
    assert metrics["dgpo/objective"].tolist() == pytest.approx([math.log1p(math.exp(-1)) / 10] * 2)
    slope = torch.autograd.grad(loss.sum(), velocity)[0].flatten()
    torch.testing.assert_close(slope, 2 * 0.2689414 * advantage * velocity.detach().flatten(), atol=1e-6, rtol=0)


@pytest.mark.parametrize("beta", [0.1, 30.0, 3000.0])
def test_the_gradient_is_that_of_the_margins_softplus(beta: float) -> None:
    policy, batch = make_policy("reference"), make_groups()
    step = take_step(DGPO(forward=forward(), dgpo_beta=beta), policy, split(batch))
    loss = group_loss(policy, batch, list(ROWS), beta)
    assert step.metrics["dgpo/objective"] == pytest.approx(loss.item(), rel=1e-12)
    expected = torch.autograd.grad(loss, policy.model.weight)[0]
    torch.testing.assert_close(step.gradient, expected, rtol=1e-10, atol=1e-14)


def test_at_the_reference_it_is_half_of_advantage_weighted_matching() -> None:
    policy, batch = make_policy(), make_groups()
    step = take_step(DGPO(forward=forward()), policy, split(batch))
    torch.testing.assert_close(step.gradient, awm_gradient(policy, batch) / 2, rtol=1e-12, atol=0)
    assert step.metrics["dgpo/weight"] == pytest.approx(0.5) and step.metrics["dgpo/margin"] == pytest.approx(0)


def test_two_images_are_a_pair_of_dpo() -> None:
    policy, batch = make_policy("reference"), make_groups(size=2)
    batch = replace(batch, advantage=torch.tensor([0.3, -0.3] * 3, dtype=DOUBLE))
    step = take_step(DGPO(forward=forward(), dgpo_beta=50.0), policy, split(batch))
    gain = excess(policy, batch)
    dpo = -logsigmoid(-0.3 * 50 / 2 * (gain[:, ::2] - gain[:, 1::2])).mean() / 50
    torch.testing.assert_close(step.gradient, torch.autograd.grad(dpo, policy.model.weight)[0], rtol=1e-10, atol=0)


def test_a_policy_that_is_ahead_of_the_reference_learns_less() -> None:
    policy, batch = make_policy(), make_groups()
    dgpo = DGPO(forward=forward(), dgpo_beta=1000.0)
    before = take_step(dgpo, policy, split(batch))
    with torch.no_grad():
        policy.model.weight.sub_(0.1 * before.gradient / before.gradient.norm())
    after = take_step(dgpo, policy, split(batch))
    assert after.metrics["dgpo/margin"] < 0 and after.metrics["dgpo/objective"] < before.metrics["dgpo/objective"]
    assert after.metrics["dgpo/weight"] < before.metrics["dgpo/weight"] == pytest.approx(0.5)


@pytest.mark.parametrize(("ranks", "size"), SPLITS)
def test_groups_over_micro_batches_and_ranks_are_as_good_as_whole(ranks: int, size: int) -> None:
    policy, batch = make_policy("reference", "anchor"), make_groups()
    batch = replace(batch, valid=batch.valid & (torch.arange(12) != 7))
    dgpo = DGPO(forward=forward(beta=0.1, ema_beta=0.2), dgpo_beta=20.0, dgpo_clip=1e-3)
    assert_same(take_step(dgpo, policy, split(batch, ranks, size)), take_step(dgpo, policy, split(batch)))


def test_invalid_images_count_in_no_group() -> None:
    policy, batch = make_policy("reference"), make_groups()
    batch = replace(batch, valid=batch.valid & (torch.arange(12) != 5), x_0=batch.x_0.clone())
    batch.x_0[5] = 40.0
    step = take_step(DGPO(forward=forward(), dgpo_beta=20.0), policy, split(batch, 1, 5))
    left = batch.take(torch.arange(12)[batch.valid])
    loss = group_loss(policy, left, [torch.arange(0, 4), torch.arange(4, 7), torch.arange(7, 11)], 20.0)
    expected = torch.autograd.grad(loss, policy.model.weight)[0]
    torch.testing.assert_close(step.gradient, expected, rtol=1e-10, atol=1e-13)


def test_a_prompt_whose_images_are_all_worth_the_same_teaches_nothing() -> None:
    policy, batch = make_policy("reference"), make_groups(groups=1)
    batch = replace(batch, advantage=torch.zeros(4, dtype=DOUBLE))
    step = take_step(DGPO(forward=forward()), policy, split(batch))
    assert step.loss == 0 and not step.gradient.any()


@pytest.mark.parametrize(
    ("advantage", "log_ratio", "learns"),
    [
        (1.0, 0.2, False),
        (1.0, 0.05, True),
        (1.0, -0.2, True),
        (-1.0, -0.2, False),
        (-1.0, 0.2, True),
        (0.0, -0.2, True),
    ],
)
def test_a_row_that_went_far_enough_has_no_gradient(advantage: float, log_ratio: float, learns: bool) -> None:
    velocity = torch.ones(1, 1, 1, 1, 1, dtype=DOUBLE, requires_grad=True)
    loss, metrics = dgpo_loss(
        velocity,
        torch.zeros_like(velocity),
        torch.tensor([advantage], dtype=DOUBLE),
        torch.zeros(1, 1, dtype=DOUBLE),
        dgpo_beta=1.0,
        error_anchor=torch.full((1, 1), 1.0 + log_ratio, dtype=DOUBLE),
        clip=0.1,
    )
    slope = torch.autograd.grad(loss.sum(), velocity)[0].item()
    assert slope == pytest.approx(advantage if learns else 0.0)
    assert loss.item() == pytest.approx(advantage / 2)
    assert metrics["ratio/clip_fraction"].item() == (not learns)


def test_clipping_is_against_the_anchor() -> None:
    batch = make_groups()
    for moved, clipped in (((), False), (("anchor",), True)):
        step = take_step(DGPO(forward=forward(), dgpo_clip=1e-3), make_policy(*moved), split(batch))
        assert (step.metrics["ratio/clip_fraction"] > 0) == clipped


@pytest.mark.parametrize(
    ("options", "clip", "used"),
    [
        ({}, None, []),
        ({}, 1e-3, ["anchor"]),
        ({"beta": 0.1}, None, ["reference"]),
        ({"beta": 0.1, "ema_beta": 1.0}, 1e-3, ["reference", "anchor"]),
    ],
)
def test_no_forward_that_is_not_needed(options: dict[str, Any], clip: float | None, used: list[str]) -> None:
    policy, dgpo = make_policy(), DGPO(forward=forward(**options), dgpo_clip=clip)
    assert isinstance(dgpo, PreparesStep) and dgpo.needs.whole_groups
    (ready,) = prepare(dgpo, policy, split(make_groups(), 1, 6))
    assert policy.used == ["reference", "current"] * 2
    assert policy.model.calls == [(18, False)] * 4
    policy.used.clear()
    policy.model.calls.clear()
    out = dgpo(policy, ready[0], **KEY)
    assert policy.used == used and policy.model.calls == [(18, False)] * len(used) + [(18, True)]
    assert ("ratio/clip_fraction" in out.metrics) == (clip is not None)
    assert ("loss/kl_reference" in out.metrics) == ("beta" in options)


def test_the_reference_may_have_guidance_of_its_own() -> None:
    policy, batch = make_policy(), make_groups()
    step = take_step(DGPO(forward=forward(reference_guidance_scale=3.0)), policy, split(batch))
    assert abs(step.metrics["dgpo/margin"]) > 1e-3


def test_mistakes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"'dgpo' compares the images .* set train\.group_noise=True"):
        DGPO(forward=forward(group_noise=False))
    with pytest.raises(ValueError, match=r"train\.dgpo_beta=-1 is not valid"):
        DGPO(forward=forward(), dgpo_beta=-1)
    with pytest.raises(ValueError, match=r"train\.dgpo_clip=0 is not valid"):
        DGPO(forward=forward(), dgpo_clip=0.0)
    with pytest.raises(ValueError, match="samples of 'dgpo' have no group terms"):
        DGPO(forward=forward())(make_policy(), make_groups(), **KEY)
