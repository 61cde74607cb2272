"""What the weights of a group promise: a mean of one, the paper's shape, and one answer for every odd group."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from awm.weightings import (
    Weighting,
    exp_weights,
    kl_from_uniform,
    linear_weights,
    power_weights,
    square_weights,
    wd1_weights,
    weight_entropy,
)

SCORE = torch.tensor([2.0, 1.0, 0.5, 0.0, -1.0], dtype=torch.float64)
MEAN_ONE = [
    Weighting("exp"),
    *(Weighting(name, floor=floor) for name, floor in itertools.product(("linear", "square"), (0.0, -0.7, -2.0))),
    *(Weighting("power", floor=floor, power=power) for floor, power in ((0.0, 0.5), (0.0, 3.0), (-0.7, 3.0))),
]
ALL = [*MEAN_ONE, Weighting("wd1")]


def label(weighting: Weighting) -> str:
    return f"{weighting.name}{weighting.floor:g}p{weighting.power:g}"


each = pytest.mark.parametrize("weighting", ALL, ids=label)
each_mean_one = pytest.mark.parametrize("weighting", MEAN_ONE, ids=label)
scores = st.lists(st.floats(-50, 50), min_size=1, max_size=24).map(lambda v: torch.tensor(v, dtype=torch.float64))
temperatures = st.floats(0.01, 50)


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize(
    ("weighting", "expected"),
    [
        (Weighting("exp"), (4.146223, 0.561130, 0.206428, 0.075941, 0.010277)),
        (Weighting("linear"), (10 / 3, 4 / 3, 1 / 3, 0, 0)),
        (Weighting("linear", floor=-0.5), (3.625, 1.625, 0.625, -0.375, -0.5)),
        (Weighting("linear", floor=-1.0), (3.75, 1.75, 0.75, -0.25, -1)),
        (Weighting("square"), (4.949490, 0.050510, 0, 0, 0)),
        (Weighting("square", floor=-0.5), (6.071797, 0.215390, -0.287187, -0.5, -0.5)),
    ],
    ids=lambda value: label(value) if isinstance(value, Weighting) else "",
)
def test_values_worked_out_by_hand(weighting: Weighting, expected: tuple[float, ...]):
    torch.testing.assert_close(weighting(SCORE, 0.5), torch.tensor(expected).double(), atol=1e-6, rtol=0)


def test_binary_rewards_give_each_success_its_share():
    successes = torch.tensor([1.0] * 4 + [0.0] * 20)
    expected = {0.0: (6.0, 0.0), -0.5: (8.5, -0.5)}
    for floor, (success, failure) in expected.items():
        weights = linear_weights(successes, 0.1, floor=floor)
        torch.testing.assert_close(weights, torch.tensor([success] * 4 + [failure] * 20))


def test_wd1_weighs_like_its_paper_and_has_no_mass():
    advantage = torch.tensor([1.0, 0.5, 0.0, -0.5, -1.0], dtype=torch.float64)
    expected = 5 * torch.tensor([0.370643, 0.164347, 0, -0.164347, -0.370643], dtype=torch.float64)
    weights = wd1_weights(advantage)
    torch.testing.assert_close(weights, expected, atol=5e-6, rtol=0)
    assert abs(weights.sum().item()) < 1e-12
    torch.testing.assert_close(Weighting("wd1")(advantage, 0.25), wd1_weights(advantage, psi=4.0))


@each_mean_one
@pytest.mark.parametrize("temperature", [0.01, 0.1, 1.0, 50.0])
@pytest.mark.parametrize("scale", [0.1, 1.0, 10.0])
def test_mean_is_one_far_from_zero_and_at_every_scale(weighting: Weighting, temperature: float, scale: float):
    weights = weighting(100 + scale * randn(8, 24), temperature)
    torch.testing.assert_close(weights.mean(-1), torch.ones(8, dtype=torch.float64), atol=1e-12, rtol=0)


def check_shape(score: Tensor, weights: Tensor, inverse: Callable[[Tensor], Tensor], temperature: float, floor: float):
    """All weights above the floor are g((q - nu) / temperature) with one nu, and the others belong on the floor."""
    assert torch.all(weights >= floor)
    above = weights > floor + 1e-9
    nu = score[above] - temperature * inverse(weights[above])
    torch.testing.assert_close(nu, nu[:1].expand_as(nu), atol=1e-6 * max(1, temperature), rtol=1e-9)
    lowest = nu[0] + temperature * inverse(torch.tensor(floor, dtype=torch.float64))
    assert torch.all(score[~above] <= lowest + 1e-4 * max(1, temperature))


@settings(deadline=None, max_examples=60)
@given(score=scores, temperature=temperatures, floor=st.sampled_from([0.0, -0.3, -2.0]))
def test_linear_is_the_scores_above_one_threshold(score: Tensor, temperature: float, floor: float):
    weights = linear_weights(score, temperature, floor=floor)
    assert weights.mean().item() == pytest.approx(1, abs=1e-12)
    check_shape(score, weights, lambda w: w, temperature, floor)


@settings(deadline=None, max_examples=60)
@given(score=scores, temperature=temperatures, floor=st.sampled_from([0.0, -0.3, -2.0]))
def test_square_is_the_squared_scores_above_one_threshold(score: Tensor, temperature: float, floor: float):
    weights = square_weights(score, temperature, floor=floor)
    assert weights.mean().item() == pytest.approx(1, abs=1e-11)
    check_shape(score, weights, lambda w: w.sign() * w.abs().sqrt(), temperature, floor)


@settings(deadline=None, max_examples=60)
@given(score=scores, temperature=temperatures, floor=st.sampled_from([0.0, -0.3, -2.0]))
def test_closed_forms_are_the_powers_one_and_two(score: Tensor, temperature: float, floor: float):
    for closed, power in ((linear_weights, 1.0), (square_weights, 2.0)):
        expected = power_weights(score, temperature, power=power, floor=floor)
        torch.testing.assert_close(closed(score, temperature, floor=floor), expected, atol=1e-9, rtol=1e-9)


@each
def test_better_scores_never_weigh_less(weighting: Weighting):
    score = randn(20, 24).sort(-1).values
    assert torch.all(weighting(score, 0.3).diff(dim=-1) >= -1e-12)


@each
def test_order_offset_and_units_of_the_scores_do_not_matter(weighting: Weighting):
    score, order = randn(5, 12), torch.randperm(12, generator=torch.Generator().manual_seed(1))
    weights = weighting(score, 0.3)
    torch.testing.assert_close(weighting(score[:, order], 0.3), weights[:, order])
    torch.testing.assert_close(weighting(score + 7, 0.3), weights)
    torch.testing.assert_close(weighting(5 * score, 1.5), weights)


@each
def test_groups_do_not_touch_each_other(weighting: Weighting):
    score, temperature = randn(2, 3, 9), torch.tensor([[[0.2], [0.5], [3.0]], [[0.1], [1.0], [2.0]]]).double()
    weights = weighting(score, temperature)
    for row, column in itertools.product(range(2), range(3)):
        alone = weighting(score[row, column], temperature[row, column].item())
        torch.testing.assert_close(weights[row, column], alone)


@each
def test_a_missing_sample_is_as_if_it_had_never_been_there(weighting: Weighting):
    score, valid = randn(6, 9), torch.rand(6, 9, generator=torch.Generator().manual_seed(3)) > 0.4
    valid[:, 0], valid[5] = True, False
    weights = weighting(score.masked_fill(~valid, torch.nan), 0.4, valid=valid)
    for row in range(5):
        torch.testing.assert_close(weights[row][valid[row]], weighting(score[row][valid[row]], 0.4))
    assert not weights[~valid].any()


@each_mean_one
@pytest.mark.parametrize("count", [1, 2, 24])
def test_equal_scores_weigh_one(weighting: Weighting, count: int):
    weights = weighting(torch.full((3, count), 0.3), 0.05)
    torch.testing.assert_close(weights, torch.ones(3, count))


def test_equal_advantages_have_no_wd1_weight():
    assert not wd1_weights(torch.full((4,), 0.3)).any()


@each_mean_one
def test_a_small_temperature_leaves_the_best_and_a_large_one_all(weighting: Weighting):
    score = randn(24)
    most = 24 - 23 * weighting.floor
    assert weighting(score, 1e-8).max().item() == pytest.approx(most, rel=1e-6)
    torch.testing.assert_close(weighting(score, 1e8), torch.ones(24).double(), atol=1e-6, rtol=0)


@each
@pytest.mark.parametrize("missing", [False, True])
def test_gradients_are_those_of_finite_differences(weighting: Weighting, missing: bool):
    score, temperature = randn(2, 7).requires_grad_(), torch.full((2, 1), 0.7).double().requires_grad_()
    valid = torch.ones(2, 7, dtype=torch.bool)
    valid[0, 2:4] = not missing
    assert torch.autograd.gradcheck(lambda q, lam: weighting(q, lam, valid=valid), (score, temperature))


@each
def test_no_gradient_is_nan_where_samples_or_whole_groups_are_missing(weighting: Weighting):
    score = torch.tensor([[1.0, torch.nan, 0.5], [torch.nan] * 3, [2.0, 2.0, 2.0]]).requires_grad_()
    temperature = torch.tensor(0.5, requires_grad=True)
    weights = weighting(score, temperature, valid=~score.isnan())
    weights.square().sum().backward()
    assert weights[1].tolist() == [0, 0, 0]
    assert score.grad is not None and score.grad.isfinite().all()
    assert temperature.grad is not None and temperature.grad.isfinite()


@each
@pytest.mark.parametrize(
    ("given", "returned"),
    [(torch.bfloat16, torch.float32), (torch.float32, torch.float32), (torch.float64, torch.float64)],
)
def test_at_least_single_precision_comes_back(weighting: Weighting, given: torch.dtype, returned: torch.dtype):
    score = torch.tensor([1.0, 0.5, 0.0]).to(given)
    assert weighting(score, 0.5).dtype == returned


@each
@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan, math.inf])
def test_a_temperature_is_a_finite_number_above_zero(weighting: Weighting, temperature: float):
    with pytest.raises(ValueError, match=r"temperature=.*must be a finite number above 0"):
        weighting(SCORE, temperature)
    with pytest.raises(ValueError, match="finite number above 0"):
        weighting(SCORE, torch.tensor([temperature]))


def test_psi_is_a_number_above_zero():
    for psi in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match="psi="):
            wd1_weights(SCORE, psi=psi)


@each
@pytest.mark.parametrize("score", [math.nan, math.inf])
def test_a_score_that_is_not_finite_must_be_marked(weighting: Weighting, score: float):
    with pytest.raises(ValueError, match="mark scores that could not be computed as not valid"):
        weighting(torch.tensor([1.0, score, 0.0]), 0.5)


@pytest.mark.parametrize("floor", [0.5, 1.0, -math.inf, math.nan])
def test_a_floor_is_finite_and_not_above_zero(floor: float):
    for make in (
        lambda: Weighting("linear", floor=floor),
        lambda: linear_weights(SCORE, 0.5, floor=floor),
        lambda: square_weights(SCORE, 0.5, floor=floor),
        lambda: power_weights(SCORE, 0.5, power=3, floor=floor),
    ):
        with pytest.raises(ValueError, match="floor="):
            make()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "cubic"}, "unknown weighting 'cubic'; known: exp, linear, square, power, wd1"),
        ({"name": "exp", "floor": -0.5}, "floor=-0.5 has no meaning for weighting 'exp', which is positive"),
        ({"name": "wd1", "floor": -0.5}, "floor=-0.5 has no meaning for weighting 'wd1'"),
        ({"name": "linear", "power": 3.0}, "power=3 is an option of weighting 'power'"),
        ({"name": "power", "power": 0.0}, "power=0 is not valid"),
        ({"name": "power", "power": math.nan}, "power=nan is not valid"),
    ],
)
def test_nonsense_is_refused_when_a_weighting_is_made(options: dict[str, object], message: str):
    with pytest.raises(ValueError, match=message):
        Weighting(**options)  # type: ignore[arg-type]


def test_entropy_and_divergence_are_complements():
    uniform, best = torch.ones(4), torch.tensor([4.0, 0, 0, 0])
    torch.testing.assert_close(weight_entropy(uniform), torch.tensor(4.0).log())
    assert kl_from_uniform(uniform).item() == pytest.approx(0, abs=1e-6)
    assert kl_from_uniform(best).item() == pytest.approx(math.log(4), abs=1e-3)
    weights = exp_weights(randn(3, 8), 0.5)
    torch.testing.assert_close(kl_from_uniform(weights), math.log(8) - weight_entropy(weights))


def test_entropy_counts_valid_samples_only():
    valid = torch.tensor([[True, True, False, True], [False] * 4])
    weights = torch.tensor([[2.0, 0.5, 0.0, 0.5], [0.0] * 4])
    torch.testing.assert_close(weight_entropy(weights, valid=valid)[0], weight_entropy(torch.tensor([2.0, 0.5, 0.5])))
    assert weight_entropy(weights, valid=valid)[1] == 0
    assert kl_from_uniform(weights, valid=valid)[1] == 0


def test_exp_weights_ignore_what_would_overflow():
    weights = exp_weights(torch.tensor([1e6, 0.0, -1e6]), 1e-3)
    torch.testing.assert_close(weights, torch.tensor([3.0, 0.0, 0.0]))
