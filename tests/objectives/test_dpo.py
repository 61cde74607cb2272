"""What online Diffusion-DPO promises: the gradient of the mean over pairs, however a step is split."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from awm.interfaces import PreparesStep
from awm.objectives.dpo import DiffusionDPO, dpo_loss, pair_roles
from awm.objectives.terms import velocity_mse
from awm.types import Experience
from tests.helpers import FakePolicy
from tests.objectives.coupled import (
    DOUBLE,
    KEY,
    NOISE,
    SPLITS,
    assert_same,
    awm_gradient,
    forward,
    make_groups,
    make_policy,
    prepare,
    split,
    take_step,
)

PAIRS = [(0, 2), (7, 6), (11, 8)]  # of make_groups(), checked below


def published(d_w: Tensor, d_l: Tensor, r_w: Tensor, r_l: Tensor, beta: float) -> Tensor:
    """The loss of pairs as the paper has it."""
    return -logsigmoid(-beta / 2 * ((d_w - r_w) - (d_l - r_l)))


def errors(policy: FakePolicy, batch: Experience) -> tuple[Tensor, Tensor]:
    """[T, B] of current, with gradient, and reference."""
    noised = forward().noised(batch, **NOISE)
    with policy.using("reference"):
        reference = velocity_mse(noised.velocity(policy, 1.0), noised.target).detach()
    return velocity_mse(noised.velocity(policy, 1.0), noised.target), reference


def whole_loss(policy: FakePolicy, batch: Experience, pairs: list[tuple[int, int]], beta: float) -> Tensor:
    current, reference = errors(policy, batch)
    terms = [published(current[:, w], current[:, lo], reference[:, w], reference[:, lo], beta) for w, lo in pairs]
    return torch.stack(terms).mean()


def pairs_of(batch: Experience) -> list[tuple[int, int]]:
    role = pair_roles(batch.group, batch.advantage, batch.valid)
    return list(zip((role > 0).nonzero().flatten().tolist(), (role < 0).nonzero().flatten().tolist(), strict=True))


def test_the_loss_of_two_errors_by_hand() -> None:
    one = torch.ones(1, dtype=DOUBLE)
    assert published(0.9 * one, 1.1 * one, one, one, 2.0).item() == pytest.approx(0.5981389, abs=1e-7)
    target = torch.zeros(1, 2, 1, 1, 1, dtype=DOUBLE)
    velocity = torch.tensor([0.9, 1.1], dtype=DOUBLE).sqrt().reshape(target.shape)
    role, margin, reference = torch.tensor([1.0, -1.0]), torch.full((1, 2), 0.2, dtype=DOUBLE), torch.ones(1, 2)
    loss, metrics = dpo_loss(velocity, target, role, margin, reference, dpo_beta=2.0)
    # 2 sigmoid(-.2) (.9, -1.1)
    torch.testing.assert_close(loss, torch.tensor([0.8102988, -0.9903652], dtype=DOUBLE), atol=1e-6, rtol=0)
    assert metrics["dpo/loss"].mean().item() == pytest.approx(0.5981389, abs=1e-7)
    assert metrics["dpo/accuracy"].tolist() == [1, 1]
    assert metrics["dpo/winner_drift"].mean().item() == pytest.approx(-0.1)
    assert metrics["dpo/loser_drift"].mean().item() == pytest.approx(0.1)


def test_at_the_reference_the_gradient_is_a_quarter_beta_of_the_pairs_difference() -> None:
    policy, batch = make_policy(), make_groups()
    step = take_step(DiffusionDPO(forward=forward(), dpo_beta=100.0), policy, split(batch))
    assert step.metrics["dpo/loss"] == pytest.approx(math.log(2), abs=1e-12)
    assert pairs_of(batch) == PAIRS
    error = errors(policy, batch)[0].mean(0)
    difference = torch.stack([error[w] - error[lo] for w, lo in PAIRS]).mean()
    expected = 25 * torch.autograd.grad(difference, policy.model.weight)[0]
    torch.testing.assert_close(step.gradient, expected, rtol=1e-12, atol=0)
    # The same as AWM with the advantages +-beta / 4 of the pairs, over pairs.
    advantage = 25 * pair_roles(batch.group, batch.advantage, batch.valid) * len(batch) / len(PAIRS)
    torch.testing.assert_close(step.gradient, awm_gradient(policy, replace(batch, advantage=advantage)))


@pytest.mark.parametrize("beta", [0.5, 20.0])
def test_the_gradient_is_that_of_the_published_loss_over_pairs(beta: float) -> None:
    """One prompt of four has no pair, one has lost its best image's score."""
    policy, batch = make_policy("reference"), make_groups(groups=4)
    advantage, valid = batch.advantage.clone(), batch.valid.clone()
    advantage[:4], valid[pairs_of(batch)[2][0]] = 0.0, False
    batch = replace(batch, advantage=advantage.where(valid, 0.0), valid=valid)
    assert len(pairs_of(batch)) == 3
    step = take_step(DiffusionDPO(forward=forward(), dpo_beta=beta), policy, split(batch))
    loss = whole_loss(policy, batch, pairs_of(batch), beta)
    assert step.metrics["dpo/loss"] == pytest.approx(loss.item(), rel=1e-12)
    expected = torch.autograd.grad(loss, policy.model.weight)[0]
    torch.testing.assert_close(step.gradient, expected, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize(("ranks", "size"), SPLITS)
def test_pairs_over_micro_batches_and_ranks_are_as_good_as_whole(ranks: int, size: int) -> None:
    policy, batch = make_policy("reference", "anchor"), make_groups()
    batch = replace(batch, valid=batch.valid & (torch.arange(12) != 7))
    dpo = DiffusionDPO(forward=forward(beta=0.1, ema_beta=0.2), dpo_beta=20.0)
    assert_same(take_step(dpo, policy, split(batch, ranks, size)), take_step(dpo, policy, split(batch)))


def test_what_an_invalid_image_is_does_not_matter() -> None:
    policy, batch = make_policy("reference"), make_groups()
    batch = replace(batch, valid=batch.valid & (torch.arange(12) != PAIRS[0][0]))
    broken = replace(batch, x_0=batch.x_0.clone(), advantage=batch.advantage.clone())
    broken.x_0[PAIRS[0][0]], broken.advantage[PAIRS[0][0]] = math.nan, 1e6
    dpo = DiffusionDPO(forward=forward(), dpo_beta=20.0)
    assert_same(take_step(dpo, policy, split(broken, 1, 5)), take_step(dpo, policy, split(batch)))


def test_the_kl_terms_are_means_over_the_pairs() -> None:
    policy, batch = make_policy("reference"), make_groups()
    plain = take_step(DiffusionDPO(forward=forward(), dpo_beta=20.0), policy, split(batch))
    pulled = take_step(DiffusionDPO(forward=forward(beta=0.3), dpo_beta=20.0), policy, split(batch))
    noised = forward().noised(batch.take(torch.tensor(PAIRS).flatten()), **NOISE)
    with policy.using("reference"):
        reference = noised.velocity(policy, 1.0)
    kl = velocity_mse(noised.velocity(policy, 1.0), reference).mean().item()
    assert pulled.loss - plain.loss == pytest.approx(0.3 * kl, rel=1e-9)
    assert pulled.metrics["loss/kl_reference"] == pytest.approx(kl, rel=1e-9)


def test_a_step_without_a_pair_has_no_gradient() -> None:
    policy, batch = make_policy("reference"), make_groups()
    step = take_step(
        DiffusionDPO(forward=forward()), policy, split(replace(batch, advantage=0 * batch.advantage), 2, 4)
    )
    assert step.loss == 0 and not step.gradient.any()
    assert all(value == 0 for value in step.metrics.values())


class TestWhoIsCompared:
    def roles(self, advantage: list[float], *, group: Tensor | None = None, invalid: tuple[int, ...] = ()) -> list[int]:
        group = torch.zeros(len(advantage), dtype=torch.int64) if group is None else group
        valid = torch.tensor([row not in invalid for row in range(len(advantage))])
        return pair_roles(group, torch.tensor(advantage), valid).int().tolist()

    def test_the_best_against_the_worst_of_each_prompt(self) -> None:
        assert self.roles([0.1, 0.3, -0.4, 2.0, 1.0], group=torch.tensor([5, 5, 5, 1, 1])) == [0, 1, -1, 1, -1]

    def test_the_first_of_the_best_and_the_last_of_the_worst(self) -> None:
        assert self.roles([-1.0, 1.0, 0.0, 1.0, -1.0]) == [0, 1, 0, 0, -1]

    def test_images_that_are_all_worth_the_same_are_no_pair(self) -> None:
        assert self.roles([0.5, 0.5, 0.5]) == [0, 0, 0]
        assert self.roles([0.5]) == [0]

    def test_images_without_a_score_do_not_count(self) -> None:
        assert self.roles([0.9, 0.1, 0.0, -0.9], invalid=(0, 3)) == [0, 1, -1, 0]
        assert self.roles([0.9, 0.1, 0.1], invalid=(0,)) == [0, 0, 0]
        assert self.roles([0.9, 0.1], invalid=(0, 1)) == [0, 0]


@pytest.mark.parametrize(
    ("options", "used"),
    [({}, []), ({"beta": 0.1}, ["reference"]), ({"beta": 0.1, "ema_beta": 1.0}, ["reference", "anchor"])],
)
def test_no_forward_and_no_row_that_is_not_needed(options: dict[str, Any], used: list[str]) -> None:
    policy, dpo = make_policy(), DiffusionDPO(forward=forward(**options))
    assert isinstance(dpo, PreparesStep) and dpo.needs.whole_groups
    # 0 to 2 hold a pair, 3 to 5 nobody, so that one row is run for the sake of other ranks, then three and one.
    (ready,) = prepare(dpo, policy, split(make_groups(), 1, 3))
    assert policy.used == ["reference", "current"] * 4
    assert policy.model.calls == [(3 * rows, False) for rows in (2, 2, 1, 1, 3, 3, 1, 1)]
    policy.used.clear()
    policy.model.calls.clear()
    dpo(policy, ready[2], **KEY)
    assert policy.used == used
    assert policy.model.calls == [(9, False)] * len(used) + [(9, True)]


def test_the_reference_may_have_guidance_of_its_own() -> None:
    policy, batch = make_policy(), make_groups()
    step = take_step(DiffusionDPO(forward=forward(reference_guidance_scale=3.0), dpo_beta=5.0), policy, split(batch))
    assert abs(step.metrics["dpo/loss"] - math.log(2)) > 1e-3


def test_mistakes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"'dpo' compares the images .* set train\.group_noise=True"):
        DiffusionDPO(forward=forward(group_noise=False))
    with pytest.raises(ValueError, match=r"train\.dpo_beta=0 is not valid"):
        DiffusionDPO(forward=forward(), dpo_beta=0.0)
    with pytest.raises(ValueError, match="samples of 'dpo' have no group terms"):
        DiffusionDPO(forward=forward())(make_policy(), make_groups(), **KEY)
