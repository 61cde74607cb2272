"""What the solver of the temperature promises: the asked divergence, or the limit that stopped it."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from awm.temperature import bisect_temperature, mpo_dual, solve_temperature
from awm.weightings import Weighting, exp_weights, kl_from_uniform, weight_entropy

QUANTILES = torch.special.ndtri((torch.arange(1, 33, dtype=torch.float64) - 0.5) / 32)


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize(
    ("weighting", "temperature", "largest", "gain"),
    [
        (Weighting("exp"), 0.463424, 14.619, 1.606),
        (Weighting("square"), 0.618576, 10.652, 1.560),
        (Weighting("linear"), 0.187504, 8.705, 1.511),
        (Weighting("linear", floor=-0.5), 0.139548, 11.697, 2.206),
        (Weighting("linear", floor=-1.0), 0.111781, 14.603, 2.890),
    ],
    ids=["exp", "square", "linear", "linear-0.5", "linear-1"],
)
def test_normal_scores_at_the_papers_divergence(weighting: Weighting, temperature: float, largest: float, gain: float):
    solved = solve_temperature(QUANTILES, weighting, kl=1.5, minimum=1e-4)
    weights = weighting(QUANTILES, solved.value)
    assert solved.value == pytest.approx(temperature, abs=1e-6)
    assert weights.max().item() == pytest.approx(largest, abs=1e-3)
    assert (weights * QUANTILES).mean().item() == pytest.approx(gain, abs=1e-3)
    assert not solved.at_minimum and not solved.at_maximum


@pytest.mark.parametrize(
    "weighting",
    [Weighting("exp"), Weighting("linear", floor=-0.5), Weighting("square", floor=-0.5), Weighting("power", power=3.0)],
    ids=lambda weighting: weighting.name,
)
def test_the_mean_over_groups_hits_the_target(weighting: Weighting):
    score = randn(12, 24) * torch.linspace(0.5, 2, 12)[:, None]
    solved = solve_temperature(score, weighting, kl=1.2, minimum=1e-3)
    kl = kl_from_uniform(weighting(score, solved.value))
    assert kl.mean().item() == pytest.approx(1.2, abs=1e-6) == solved.kl
    assert kl.std() > 0.1


def test_an_entropy_is_a_divergence_from_the_other_end():
    by_entropy = solve_temperature(QUANTILES, Weighting("exp"), entropy=math.log(32) - 1.5, minimum=1e-4)
    assert by_entropy == solve_temperature(QUANTILES, Weighting("exp"), kl=1.5, minimum=1e-4)
    weights = exp_weights(QUANTILES, by_entropy.value)
    assert weight_entropy(weights).item() == pytest.approx(math.log(32) - 1.5, abs=1e-6)


def test_missing_samples_and_groups_do_not_count():
    score, valid = randn(4, 16), torch.ones(4, 16, dtype=torch.bool)
    valid[0, 9:], valid[1], valid[2, 1:] = False, False, False
    solved = solve_temperature(
        score.masked_fill(~valid, torch.nan), Weighting("exp"), kl=1.0, minimum=1e-3, valid=valid
    )
    kl = [kl_from_uniform(exp_weights(row, solved.value)).item() for row in (score[0, :9], score[3])]
    assert sum(kl) / 2 == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize("successes", [12, 24, 0])
def test_tied_winners_stop_at_the_minimum(successes: int):
    score = torch.tensor([1.0] * successes + [0.0] * (24 - successes))
    solved = solve_temperature(score, Weighting("linear"), kl=1.5, minimum=0.05)
    cap = math.log(24 / successes) if successes else 0.0
    assert solved.value == 0.05 and solved.at_minimum and not solved.at_maximum
    assert solved.kl == pytest.approx(cap, abs=1e-3)


@pytest.mark.parametrize(("successes", "reached"), [(4, True), (6, False)])
def test_binary_rewards_cap_the_divergence(successes: int, reached: bool):
    """log(24 / 4) = 1.79 is above the target of 1.5, log(24 / 6) = 1.39 below it."""
    score = torch.tensor([1.0] * successes + [0.0] * (24 - successes))
    assert solve_temperature(score, Weighting("exp"), kl=1.5, minimum=0.01).at_minimum is not reached


def test_a_target_of_nothing_stops_at_the_maximum():
    solved = solve_temperature(QUANTILES, Weighting("exp"), kl=0.0, minimum=0.1, maximum=100.0)
    assert solved.value == 100.0 and solved.at_maximum and not solved.at_minimum


def test_only_lonely_samples_stop_at_the_minimum():
    assert solve_temperature(randn(5, 1), Weighting("linear"), kl=1.0, minimum=0.2).value == 0.2
    assert solve_temperature(randn(5, 1), Weighting("linear"), entropy=1.0, minimum=0.2).at_minimum


def test_several_sets_are_solved_at_once():
    score = randn(3, 5, 16)
    together = bisect_temperature(score, Weighting("square"), kl=torch.tensor([0.5, 1.0, 1.5]), minimum=1e-3)
    assert together.shape == (3, 1, 1)
    for index, kl in enumerate((0.5, 1.0, 1.5)):
        alone = solve_temperature(score[index], Weighting("square"), kl=kl, minimum=1e-3)
        assert together[index].item() == pytest.approx(alone.value, rel=1e-12)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "give one target, kl or entropy; got neither"),
        ({"kl": 1.0, "entropy": 1.0}, "give one target, kl or entropy; got kl, entropy"),
        ({"kl": -1.0}, "kl=-1 is not valid"),
        ({"entropy": math.nan}, "entropy=nan is not valid"),
        ({"kl": 1.0, "minimum": 0.0}, "must satisfy 0 < minimum < maximum"),
        ({"kl": 1.0, "minimum": 2.0, "maximum": 1.0}, "must satisfy 0 < minimum < maximum"),
    ],
)
def test_nonsense_is_refused(options: dict[str, float], message: str):
    with pytest.raises(ValueError, match=message):
        solve_temperature(QUANTILES, Weighting("exp"), **{"minimum": 0.1, **options})


def test_a_score_that_is_not_finite_is_refused():
    with pytest.raises(ValueError, match="not valid"):
        solve_temperature(torch.tensor([1.0, torch.nan]), Weighting("exp"), kl=0.5, minimum=0.1)


def test_weights_without_mass_have_no_target():
    with pytest.raises(ValueError, match="the weights of 'wd1' have mean 0 and thus no target"):
        solve_temperature(QUANTILES, Weighting("wd1"), kl=1.0, minimum=0.1)


def test_the_dual_has_the_derivative_of_lemma_g1_and_its_minimum_at_the_solution():
    score = randn(2, 16)
    temperature = torch.full((2, 1), 0.6, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(mpo_dual(score, temperature, kl=1.1).sum(), temperature)
    step = 1e-5
    difference = (mpo_dual(score, temperature + step, kl=1.1) - mpo_dual(score, temperature - step, kl=1.1)) / (
        2 * step
    )
    lemma = 1.1 - math.log(16) + weight_entropy(exp_weights(score, temperature))
    torch.testing.assert_close(gradient.squeeze(-1), difference, atol=1e-7, rtol=0)
    torch.testing.assert_close(gradient.squeeze(-1), lemma, atol=1e-4, rtol=0)  # the entropy clamps p at 1e-6
    for row in score:
        best = solve_temperature(row, Weighting("exp"), kl=1.1, minimum=1e-3).value
        around = mpo_dual(row, torch.tensor([[0.99 * best], [best], [1.01 * best]]).double(), kl=1.1)
        assert around.argmin() == 1


def test_the_dual_leaves_out_missing_samples():
    score, valid = torch.tensor([1.0, torch.nan, 0.2]), torch.tensor([True, False, True])
    expected = mpo_dual(torch.tensor([1.0, 0.2]), torch.tensor([0.5]), kl=0.3)
    torch.testing.assert_close(mpo_dual(score, torch.tensor([0.5]), kl=0.3, valid=valid), expected)
