"""How the learning rules are related: on the first step of an epoch, most of them are AWM with another weight.

At v = v_old = v_ref, with advantages that are not clipped and sum to zero in a group, the gradient with respect to one
sample's velocity is 2 A w e / D for AWM with the weight w, e = v - u and D features. The others differ from it by the
factor and the weight in ``TIES``; where they differ, they do so after the first step, or in what they need for it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from awm.flow.times import shifted_grid
from awm.interfaces import PreparesStep
from awm.objectives.awm import AWM, awm_loss
from awm.objectives.awr import AWR
from awm.objectives.crd import CRD, bounded_reward, crd_loss, matching_score
from awm.objectives.dgpo import DGPO, dgpo_loss
from awm.objectives.dpmd import DPMD
from awm.objectives.dpo import DiffusionDPO, dpo_loss
from awm.objectives.flow_awr import FlowAWR, flow_awr_loss
from awm.objectives.forward_process import ForwardProcess
from awm.objectives.nft import DiffusionNFT, nft_loss
from awm.objectives.qvpo import QVPO
from awm.objectives.rwr import RWR
from awm.objectives.simpo import SiMPO, simpo_loss
from awm.objectives.terms import velocity_mse
from awm.objectives.v_grpo import VGRPO, v_grpo_loss
from awm.objectives.weighted_regression import weighted_matching_loss
from awm.types import Experience, Needs
from awm.weightings import linear_weights, wd1_weights
from tests.helpers import FakePolicy, TinyFlow, make_experience

DOUBLE = torch.float64
GROUP = torch.arange(8) // 4


def randn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)


def by_group(values: Tensor) -> Tensor:
    """[8] in rows of a prompt's four images."""
    return values.reshape(2, 4)


V, U = randn(3, 8, 2, 3, 2, seed=0), randn(3, 8, 2, 3, 2, seed=1)
E = V - U
D = E[0, 0].numel()
T = torch.linspace(0.1, 0.9, 24, dtype=DOUBLE).reshape(3, 8)
REWARD = randn(8, seed=2)
A = (by_group(REWARD) - by_group(REWARD).mean(1, keepdim=True)).flatten()
A = A / A.abs().max()
MEAN_ABS = E.abs().flatten(2).mean(2)
RMS = E.square().flatten(2).mean(2).sqrt()
ONE = torch.ones_like(T)


def gradient(loss: Callable[[Tensor], Tensor]) -> Tensor:
    """Of the sum over samples, at v = v_old = v_ref."""
    v = V.clone().requires_grad_()
    return torch.autograd.grad(loss(v).sum(), v)[0]


def awm(advantage: Tensor, weight: Tensor) -> Tensor:
    """2 A w e / D at each of the three times a sample's loss is averaged over."""
    return (2 * advantage * weight / D / len(T))[..., None, None, None] * E


def relative(actual: Tensor, expected: Tensor) -> float:
    return ((actual - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize(("weighting", "power"), [("Uniform", 0), ("t", 1), ("t**2", 2)])
@pytest.mark.parametrize("loss_type", ["exp_first", "sum_first"])
def test_awm_itself(weighting: str, power: int, loss_type: str) -> None:
    actual = gradient(lambda v: awm_loss(v, U, T, A, weighting=weighting, loss_type=loss_type)[0])
    assert relative(actual, awm(A, T**power)) < 1e-9


def nft(v: Tensor, beta: float, advantage_max: float) -> Tensor:
    return nft_loss(v, V, U, T, A, beta=beta, advantage_max=advantage_max)[0]


def crd(v: Tensor, adaptive: bool, beta: float, advantage_max: float) -> Tensor:
    """Bars over the four images of each prompt, at each time."""
    score, anchor = matching_score(v, U, adaptive=adaptive), matching_score(V, U, adaptive=adaptive)
    reward = bounded_reward(A, advantage_max)
    bars = [
        values.reshape(-1, 2, 4).mean(2, keepdim=True).expand(-1, -1, 4).flatten(1)
        for values in (score - anchor, reward.expand(3, 8))
    ]
    options: dict[str, Any] = {"kind": "mse", "crd_beta": beta, "advantage_max": advantage_max}
    return crd_loss(score, anchor, reward, [(bars[0], bars[1])], **options)[0]


def dgpo(v: Tensor, beta: float) -> Tensor:
    excess = (A * (velocity_mse(v, U) - velocity_mse(V, U))).reshape(-1, 2, 4).mean(2, keepdim=True)
    return dgpo_loss(v, U, A, (beta * excess).expand(-1, -1, 4).flatten(1), dgpo_beta=beta)[0]


TIES: dict[str, tuple[Callable[[Tensor], Tensor], float, Tensor]] = {
    "NFT": (lambda v: nft(v, 1.0, 1.0), 1.0, T / MEAN_ABS),
    "NFT, small b, large A_max": (lambda v: nft(v, 0.1, 5.0), 1.0, T / MEAN_ABS),
    "V-GRPO": (lambda v: v_grpo_loss(v, V, U, T, A, clip_range=0.01)[0], 1.0, T / MEAN_ABS),
    "CRD, not adaptive": (lambda v: crd(v, False, 1.0, 1.0), 1.0, ONE),
    "CRD, adaptive": (lambda v: crd(v, True, 1.0, 1.0), 1.0, 1 / MEAN_ABS),
    "CRD, other b and A_max": (lambda v: crd(v, True, 0.2, 5.0), 1.0, 1 / MEAN_ABS),
    "DGPO": (lambda v: dgpo(v, 10.0), 0.5, ONE),
    "FlowAWR": (lambda v: flow_awr_loss(v, V, U, A)[0], 1.0, ONE),
    "SiMPO, weights minus one": (lambda v: simpo_loss(v, U, T, A, velocity_old=V, pull=1.0)[0], 1.0, ONE),
    "AWM, huber": (lambda v: awm_loss(v, U, T, A, weighting="huber")[0], 0.5, T / RMS),
}


@pytest.mark.parametrize("name", TIES)
def test_the_first_step_is_awm_s_with_a_weight(name: str) -> None:
    loss, factor, weight = TIES[name]
    assert relative(gradient(loss), factor * awm(A, weight)) < 1e-9


def test_nft_and_v_grpo_are_awm_s_huber_up_to_a_number_that_is_nearly_constant() -> None:
    huber = gradient(lambda v: awm_loss(v, U, T, A, weighting="huber")[0])
    ratio = (2 * RMS / MEAN_ABS)[..., None, None, None]
    assert relative(gradient(TIES["NFT"][0]), ratio * huber) < 1e-9
    error = randn(100_000, seed=3)  # of many features, the number is that of a Gaussian
    assert (2 * error.square().mean().sqrt() / error.abs().mean()).item() == pytest.approx(2.507, abs=0.01)


@pytest.mark.parametrize("beta", [2.0, 100.0])
def test_a_pair_of_dpo_is_awm_s_with_a_quarter_of_beta(beta: float) -> None:
    error_reference = velocity_mse(V, U)[:, :2]

    def margin(v: Tensor) -> Tensor:
        excess = velocity_mse(v, U)[:, :2] - error_reference
        return -beta / 2 * (excess[:, 0] - excess[:, 1])

    expected = awm(torch.tensor([beta / 4, -beta / 4, 0, 0, 0, 0, 0, 0], dtype=DOUBLE), ONE)
    assert relative(gradient(lambda v: -logsigmoid(margin(v)).mean(0)), expected) < 1e-9

    def surrogate(v: Tensor) -> Tensor:
        role = torch.tensor([1.0, -1.0], dtype=DOUBLE)
        z = margin(v).unsqueeze(1).expand(-1, 2)
        return dpo_loss(v[:, :2], U[:, :2], role, z, error_reference, dpo_beta=beta)[0].mean()

    assert relative(gradient(surrogate), expected) < 1e-9


EXPONENTS = {"rwr": A, "awr": A, "dpmd": (A - A.mean()) / (A.std(correction=0) + 1e-4)}


class TestExponentialWeights:
    """RWR, AWR, DPMD, FlowAWR: AWM plus fine-tuning on one's own samples, which is at rest on average."""

    valid = torch.ones(8, dtype=torch.bool)

    def weight(self, name: str, temperature: float) -> Tensor:
        kind: Any = {"rwr": RWR, "awr": AWR, "dpmd": DPMD}[name]
        rule = kind(forward=ForwardProcess(grid=shifted_grid(14)), **{f"{name}_temperature": temperature})
        return rule.weigh(A, GROUP, self.valid).value.double()

    @pytest.mark.parametrize("name", ["rwr", "awr", "dpmd"])
    def test_weighted_regression_is_awm_s_with_weights_for_advantages(self, name: str) -> None:
        weight = self.weight(name, 0.5)
        assert relative(gradient(lambda v: weighted_matching_loss(v, U, weight)[0]), awm(weight, ONE)) < 1e-9

    @pytest.mark.parametrize("name", ["rwr", "awr", "dpmd"])
    def test_to_first_order_it_is_fine_tuning_and_awm_s_over_the_temperature(self, name: str) -> None:
        gaps = []
        for temperature in (5.0, 50.0):
            weight = self.weight(name, temperature)
            actual = gradient(lambda v, w=weight: weighted_matching_loss(v, U, w)[0])
            gaps.append(relative(actual - awm(torch.ones_like(A), ONE), awm(EXPONENTS[name] / temperature, ONE)))
        assert gaps[0] < 0.3 and gaps[1] == pytest.approx(gaps[0] / 10, rel=0.2)

    def test_flow_awr_has_rwr_s_weights_less_one_in_units_of_the_std(self) -> None:
        rule = FlowAWR(forward=ForwardProcess(grid=shifted_grid(14)))
        advantage = rule.weigh(REWARD, GROUP, self.valid).value.double()
        expected = 4 * (by_group(REWARD) / REWARD.std(correction=0)).softmax(1).flatten() - 1
        torch.testing.assert_close(advantage, expected, rtol=1e-6, atol=1e-6)
        assert relative(gradient(lambda v: flow_awr_loss(v, V, U, expected)[0]), awm(expected, ONE)) < 1e-9

    def test_qvpo_is_awm_s_without_the_negative_half(self) -> None:
        weight = QVPO(forward=ForwardProcess(grid=shifted_grid(14))).weigh(A, GROUP, self.valid).value.double()
        torch.testing.assert_close(weight, A.clamp(min=0), rtol=1e-6, atol=0)
        assert relative(gradient(lambda v: weighted_matching_loss(v, U, weight)[0]), awm(weight, ONE)) < 1e-9


class TestSignedWeights:
    def test_simpo_with_one_plus_the_advantage_is_awm_s_plus_fine_tuning(self) -> None:
        expected = awm(A, ONE) + awm(torch.ones_like(A), ONE)
        assert relative(gradient(lambda v: simpo_loss(v, U, T, 1 + A)[0]), expected) < 1e-9

    def test_its_linear_weights_are_one_plus_the_advantage_where_none_is_at_the_floor(self) -> None:
        weight = linear_weights(by_group(REWARD), 0.5, floor=-100.0).flatten()
        above = (by_group(REWARD) - by_group(REWARD).mean(1, keepdim=True)).flatten()
        torch.testing.assert_close(weight, 1 + above / 0.5, rtol=1e-12, atol=1e-12)

    @staticmethod
    def wd1_gap(size: float) -> float:
        weight = wd1_weights(size * by_group(A)).flatten()
        return relative(gradient(lambda v: simpo_loss(v, U, T, weight, error_clip=math.inf)[0]), 2 * awm(size * A, ONE))

    def test_wd1_is_twice_awm_s_up_to_third_order(self) -> None:
        assert self.wd1_gap(1e-5) < 1e-9
        assert self.wd1_gap(0.01) / self.wd1_gap(0.1) == pytest.approx(0.01, rel=0.05)

    def test_wd1_by_hand(self) -> None:
        share = wd1_weights(torch.tensor([1.0, 0.0, -1.0], dtype=DOUBLE)) / 3
        torch.testing.assert_close(share, torch.tensor([0.575210, 0, -0.575210]).double(), atol=1e-6, rtol=0)
        assert (share * torch.tensor([0.5, 1.0, 2.0])).sum().item() == pytest.approx(-0.862816, abs=1e-6)


KEY: dict[str, Any] = {"seed": 0, "epoch": 3, "inner_epoch": 0, "on_policy": True}
GRID = shifted_grid(14)


def epoch_of_eight() -> Experience:
    return replace(make_experience(batch=8, dtype=DOUBLE), group=GROUP, advantage=A)


def step(objective: Any, batch: Experience) -> Tensor:
    """Gradient of an optimizer step of the trainer, in micro-batches that split the groups."""
    policy = FakePolicy(TinyFlow(dtype=DOUBLE))
    parts = [batch.take(rows) for rows in torch.arange(8).split(3)]
    if isinstance(objective, PreparesStep):
        assert objective.needs == Needs(whole_groups=True)
        terms = objective.prepare_step(policy, parts, **KEY, gather=lambda x: x.detach().cpu())
        parts = [replace(part, group_terms=term) for part, term in zip(parts, terms, strict=True)]
    loss = torch.cat([objective(policy, part, **KEY).loss for part in parts]).mean()
    return torch.autograd.grad(loss, policy.model.weight)[0]


def forward() -> ForwardProcess:
    return ForwardProcess(grid=GRID, group_noise=True)


class TestWholeObjectives:
    """The classes, from the same epoch at the same times and noise to the gradient of the model's weights."""

    awm = AWM(forward=forward(), weighting="Uniform")

    @pytest.mark.parametrize(
        ("make", "factor", "weight"),
        [
            (lambda: CRD(forward=forward(), crd_adaptive=False), 1.0, None),
            (lambda: CRD(forward=forward(), crd_adaptive=False, crd_beta=0.3, advantage_max=5.0), 1.0, None),
            (lambda: DGPO(forward=forward()), 0.5, None),
            (lambda: DGPO(forward=forward(), dgpo_clip=0.01), 0.5, None),
            (lambda: FlowAWR(forward=forward()), 1.0, A),
            (lambda: SiMPO(forward=forward()), 1.0, 1 + A),
        ],
        ids=["crd", "crd-other-scales", "dgpo", "dgpo-clipped", "flow_awr", "simpo"],
    )
    def test_are_awm(self, make: Callable[[], Any], factor: float, weight: Tensor | None) -> None:
        batch = epoch_of_eight()
        assert relative(step(make(), replace(batch, weight=weight)), factor * step(self.awm, batch)) < 1e-9

    @pytest.mark.parametrize("weight", [1 + A / 2, A.clamp(min=0)])
    @pytest.mark.parametrize("kind", [RWR, AWR, DPMD, QVPO])
    def test_weighted_regression_is_awm_with_weights_for_advantages(self, kind: Any, weight: Tensor) -> None:
        batch = epoch_of_eight()
        actual = step(kind(forward=forward()), replace(batch, weight=weight))
        assert relative(actual, step(self.awm, replace(batch, advantage=weight))) < 1e-9

    def test_dpo_is_awm_on_the_best_and_the_worst(self) -> None:
        batch = epoch_of_eight()
        rows = by_group(A)
        pair = (rows == rows.amax(1, keepdim=True)).double() - (rows == rows.amin(1, keepdim=True)).double()
        # Mean over the two pairs there, over the eight images here.
        advantage = 100 / 4 * pair.flatten() * 8 / 2
        actual = step(DiffusionDPO(forward=forward()), batch)
        assert relative(actual, step(self.awm, replace(batch, advantage=advantage))) < 1e-9

    @pytest.mark.parametrize("options", [{}, {"nft_beta": 0.1, "advantage_max": 5.0}])
    def test_nft_and_v_grpo_are_one(self, options: dict[str, float]) -> None:
        batch = epoch_of_eight()
        nft, v_grpo = DiffusionNFT(forward=forward(), **options), VGRPO(forward=forward(), clip_range=0.01)
        assert relative(step(nft, batch), step(v_grpo, batch)) < 1e-9
