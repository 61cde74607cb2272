"""The estimators against targets whose velocity is known: one Gaussian by hand, and mixtures."""

from __future__ import annotations

from typing import get_args

import pytest
import torch
from torch import Tensor

from awm.flow.path import interpolate
from awm.lab.boltzmann.mixture import GaussianMixture, triangle_mixture, unequal_mixture
from awm.reverse_matching import (
    STRAIGHT,
    Estimate,
    Estimator,
    GaussianProposal,
    Path,
    atom_candidates,
    cap_norm,
    cosine_path,
    mixture_candidates,
    policy_candidates,
    reverse_candidates,
    velocity_target,
)
from awm.reverse_matching.proposals import Candidates

WIDE = GaussianProposal(0.3, 2.0)
FISHER = 3.67


def rng(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def randn(*shape: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=rng(seed), dtype=dtype)


def candidates(kind: str, x_t: Tensor, t: Tensor, num: int, seed: int, path: Path = STRAIGHT) -> Candidates:
    noise, other = torch.randn(2, len(x_t), num, x_t.shape[1], generator=rng(seed), dtype=x_t.dtype)
    if kind == "reverse":
        return reverse_candidates(x_t, t, noise, path=path)
    x_0 = WIDE.sample(other)
    if kind == "policy":
        return policy_candidates(x_t, t, x_0, WIDE.log_density(x_0), path=path)
    half = num // 2
    return mixture_candidates(x_t, t, noise[:, :half], x_0[:, half:], WIDE.log_density, path=path)


def estimate(
    target: GaussianMixture, found: Candidates, t: Tensor, estimator: Estimator, *, fisher: float = FISHER
) -> Estimate:
    log_weight = found.log_weight + target.log_density(found.x_0)
    return velocity_target(
        found.x_0, found.eps, target.score(found.x_0), log_weight, t, estimator=estimator, fisher=fisher
    )


def squared_errors(
    target: GaussianMixture, kind: str, t: float, num: int, *, seed: int = 0, points: int = 3000, fisher: float = FISHER
) -> dict[str, float]:
    """Mean of |v_hat - v*|^2 over points of p_t, for the three estimators on the same candidates."""
    time = torch.full((points,), t, dtype=torch.float64)
    x_t = interpolate(target.sample(points, rng(seed)), randn(points, 2, seed=seed + 100), time)
    found, truth = candidates(kind, x_t, time, num, seed + 200), target.prediction(x_t, time)
    names: tuple[Estimator, ...] = ("noise", "gradient", "combined")
    return {
        name: float((estimate(target, found, time, name, fisher=fisher).velocity - truth).square().sum(1).mean())
        for name in names
    }


def gaussian_case(t: float, kind: str, num: int, dtype: torch.dtype = torch.float32) -> tuple[Estimate, float]:
    """p = N(.7, .5^2) at x_t = .2: the combined estimate, and the velocity worked out by hand."""
    mean, variance = 0.7, 0.25
    x_t, time = torch.full((1, 1), 0.2, dtype=dtype), torch.full((1,), t, dtype=dtype)
    found = candidates(kind, x_t, time, num, seed=5)
    log_density = -0.5 * (found.x_0 - mean).square().sum(-1) / variance
    gradient = (mean - found.x_0) / variance
    s = 1 - t
    truth = (t - s * variance) * (0.2 - s * mean) / (s**2 * variance + t**2) - mean
    got = velocity_target(found.x_0, found.eps, gradient, found.log_weight + log_density, time, fisher=1 / variance)
    return got, truth


@pytest.mark.parametrize(("t", "velocity"), [(0.1, -0.447059), (1 / 3, -0.9), (0.5, -0.88), (0.9, -0.56)])
@pytest.mark.parametrize("num", [1, 16])
def test_the_combined_estimate_of_a_gaussian_is_exact_with_any_candidates(t: float, velocity: float, num: int):
    for kind in ("reverse", "policy"):
        got, truth = gaussian_case(t, kind, num)
        assert truth == pytest.approx(velocity, abs=1e-6)
        assert got.velocity.item() == pytest.approx(velocity, abs=1e-5)


@pytest.mark.parametrize("t", [0.0, 1e-6, 1 - 1e-6, 1.0])
def test_it_is_exact_at_both_ends_too(t: float):
    for num in (1, 16):
        got, truth = gaussian_case(t, "reverse" if t < 0.5 else "policy", num)
        assert got.velocity.item() == pytest.approx(truth, abs=1e-5)


@pytest.mark.parametrize(
    ("t", "noise", "gradient"),
    [(0.1, 1.17647, 0.002869), (1 / 3, 1.125, 1.125), (0.5, 0.8, 12.8), (0.9, 0.30769, 32300.3)],
)
def test_variance_of_a_single_exact_draw_of_a_gaussian(t: float, noise: float, gradient: float):
    target = GaussianMixture(*(torch.tensor(v, dtype=torch.float64) for v in ([1.0], [[0.7]], [0.5])))
    time = torch.full((40_000,), t, dtype=torch.float64)
    x_t = torch.full((40_000, 1), 0.2, dtype=torch.float64)
    found = atom_candidates(x_t, time, target.posterior_sample(x_t, time, 1, rng(1)))
    got = {
        name: estimate(target, found, time, name, fisher=4.0).velocity.var().item() for name in ("noise", "gradient")
    }
    assert got == pytest.approx({"noise": noise, "gradient": gradient}, rel=0.03)


@pytest.mark.parametrize(("t", "share"), [(0.2, 0.886878), (0.5, 0.328859), (0.8, 0.029715)])
def test_the_noise_and_the_data_form_are_one_estimator_and_exact_for_a_gaussian(t: float, share: float):
    std = 0.7
    assert (1 - t) ** 2 * std**2 / ((1 - t) ** 2 * std**2 + t**2) == pytest.approx(share, abs=1e-6)
    x_t, time = randn(5, 2, seed=1), torch.full((5,), t, dtype=torch.float64)
    found = candidates("reverse", x_t, time, 1, seed=2)
    gradient, column = (0.4 - found.x_0) / std**2, time[:, None]
    got = {
        kind: velocity_target(
            found.x_0, found.eps, gradient, found.log_weight, time, fisher=std**-2, prediction=kind
        ).target
        for kind in ("velocity", "noise", "data")
    }
    torch.testing.assert_close((got["noise"] - x_t) / (1 - column), got["velocity"], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close((x_t - got["data"]) / column, got["velocity"], rtol=1e-12, atol=1e-12)
    stein = -found.eps - column[..., None] / (1 - column[..., None]) * gradient
    by_hand = (found.eps + share * stein).squeeze(1)
    torch.testing.assert_close(got["noise"], by_hand, rtol=1e-5, atol=1e-5)
    truth = 0.4 + (1 - column) * std**2 / ((1 - column) ** 2 * std**2 + column**2) * (x_t - (1 - column) * 0.4)
    torch.testing.assert_close(got["data"], truth, rtol=1e-12, atol=1e-12)


MIXTURE_ROWS = [  # kind, t, squared error with 16 candidates: noise, gradient, combined
    ("mixture", 0.1, 0.308, 8.5e-4, 1.8e-4),
    ("mixture", 0.3, 0.572, 0.310, 0.0568),
    ("mixture", 0.5, 1.39, 10.2, 0.719),
    ("mixture", 0.7, 2.91, 184, 2.44),
    ("mixture", 0.9, 2.87, 2.7e4, 2.55),
    ("reverse", 0.1, 0.160, 4.5e-4, 1.0e-4),
    ("reverse", 0.3, 0.357, 0.189, 0.0362),
    ("reverse", 0.5, 1.22, 9.85, 0.574),
    ("reverse", 0.7, 4.47, 699, 2.65),
    ("reverse", 0.9, 42.3, 1.3e6, 11.5),
]


@pytest.mark.parametrize(("kind", "t", "noise", "gradient", "combined"), MIXTURE_ROWS)
def test_error_on_a_mixture(kind: str, t: float, noise: float, gradient: float, combined: float):
    got = squared_errors(unequal_mixture(), kind, t, 16)
    assert got["combined"] <= 1.05 * min(got["noise"], got["gradient"])
    assert got == pytest.approx({"noise": noise, "gradient": gradient, "combined": combined}, rel=0.25)


def test_the_error_falls_as_one_over_the_number_of_candidates():
    few, many = (squared_errors(unequal_mixture(), "mixture", 0.3, num, points=1500) for num in (16, 64))
    for name, error in few.items():
        assert 3 < error / many[name] < 6, name


@pytest.mark.parametrize("t", [0.1, 0.3, 0.5, 0.7, 0.9])
def test_on_the_triangle_combined_beats_both_and_the_gradient_wins_only_near_the_data(t: float):
    got = squared_errors(triangle_mixture(), "reverse", t, 32, points=2000, fisher=0.4**-2)
    assert got["combined"] < min(got["noise"], got["gradient"])
    assert (got["gradient"] < got["noise"]) == (t == 0.1)


@pytest.mark.parametrize(
    ("t", "noise", "gradient", "combined"), [(0.3, 4.17, 1.15, 1.13), (0.5, 8.75, 24.0, 6.75), (0.7, 8.26, 407, 7.15)]
)
def test_exact_posterior_draws_make_all_three_unbiased(t: float, noise: float, gradient: float, combined: float):
    target, num = unequal_mixture(), 100_000
    x_t = (1 - t) * torch.tensor([[0.4, 0.6]]).double() + t * torch.tensor([[0.2, -0.1]]).double()
    x_0 = target.posterior_sample(x_t, torch.tensor([t]).double(), num, rng(7))[0][:, None]
    time, x_t = torch.full((num,), t, dtype=torch.float64), x_t.expand(num, 2)
    found = atom_candidates(x_t, time, x_0)
    truth = target.prediction(x_t[:1], time[:1])
    for name, variance in (("noise", noise), ("gradient", gradient), ("combined", combined)):
        draws = estimate(target, found, time, name).velocity
        z = (draws.mean(0) - truth) / draws.std(0) * num**0.5
        assert z.abs().max() < 4, name
        assert draws.var(0).sum().item() == pytest.approx(variance, rel=0.05), name


@pytest.mark.parametrize("t", [0.2, 0.35, 0.5])
@pytest.mark.parametrize("share", [0.0, 0.5, 1.0, None])
def test_with_the_true_normaliser_every_coefficient_is_unbiased(t: float, share: float | None):
    target, num = triangle_mixture(), 100_000
    x_t, time = torch.tensor([[0.5, 0.3]]).double().expand(num, 2), torch.full((num,), t, dtype=torch.float64)
    variance = (1 - t) ** 2 * target.stds.square() + t**2
    if share is None:
        share = float((1 - t) ** 2 * 0.16 / variance[0])
    fisher = (1 - t) ** 2 / t**2 * (1 / share - 1) if share else 0.0
    found = candidates("reverse", x_t, time, 1, seed=11)
    got = estimate(target, found, time, "combined" if share else "noise", fisher=fisher).velocity
    noised = GaussianMixture(target.weights, (1 - t) * target.means, variance.sqrt())
    weight = (target.log_density(found.x_0[:, 0]) - noised.log_density(x_t)).exp() / (1 - t) ** 2
    draws = weight[:, None] * (got - target.prediction(x_t[:1], time[:1]))
    assert (draws.mean(0) / draws.std(0) * num**0.5).abs().max() < 4


def test_the_bias_of_self_normalised_weights_falls_as_one_over_n():
    target, t, rows = unequal_mixture(), 0.3, 15_000
    expected = {"noise": (0.346, 0.088), "gradient": (0.111, 0.032), "combined": (0.074, 0.017)}
    x_t = ((1 - t) * torch.tensor([[0.4, 0.6]]) + t * torch.tensor([[0.2, -0.1]])).double().expand(rows, 2)
    time = torch.full((rows,), t, dtype=torch.float64)
    truth = target.prediction(x_t[:1], time[:1])
    for index, num in enumerate((4, 16)):
        found = candidates("reverse", x_t, time, num, seed=21)
        for name, bias in expected.items():
            error = (estimate(target, found, time, name).velocity.mean(0) - truth).norm().item()
            assert error == pytest.approx(bias[index], abs=0.02), (name, num)


def test_noise_targets_of_a_diffusion_path_come_from_the_same_code():
    target, path, points = unequal_mixture(), cosine_path(), 2000
    for t in (0.2, 0.5):
        time = torch.full((points,), t, dtype=torch.float64)
        x_t = path.interpolate(target.sample(points, rng(1)), randn(points, 2, seed=2), time[:, None])
        found = candidates("mixture", x_t, time, 64, seed=3, path=path)
        truth = target.prediction(x_t, time, path=path, prediction="noise")
        errors = {}
        for name in ("noise", "gradient", "combined"):
            got = velocity_target(
                found.x_0,
                found.eps,
                target.score(found.x_0),
                found.log_weight + target.log_density(found.x_0),
                time,
                estimator=name,
                fisher=FISHER,
                path=path,
                prediction="noise",
            )
            errors[name] = (got.target - truth).square().sum(1).mean().item()
        assert errors["combined"] < 0.2
        assert errors["combined"] < 1.05 * min(errors["noise"], errors["gradient"])


@pytest.mark.parametrize("estimator", get_args(Estimator))
@pytest.mark.parametrize("path", [STRAIGHT, cosine_path()], ids=lambda path: path.name)
def test_extreme_times_stay_finite_in_float32(estimator: Estimator, path: Path):
    target = unequal_mixture(torch.float32)
    t = torch.tensor([0.0, 1e-6, 1e-3, 0.5, 1 - 1e-3, 1 - 1e-6, 1.0])
    x_t = randn(7, 2, seed=4, dtype=torch.float32)
    for kind in ("reverse", "mixture", "policy"):
        found = candidates(kind, x_t, t, 64, seed=6, path=path)
        log_weight = found.log_weight + target.log_density(found.x_0)
        got = velocity_target(
            found.x_0,
            found.eps,
            target.score(found.x_0),
            log_weight,
            t,
            estimator=estimator,
            fisher=FISHER,
            path=path,
            prediction="velocity" if path is STRAIGHT else "noise",
        )
        assert got.target.isfinite().all() and got.ess.isfinite().all() and got.valid.all(), kind
        if kind == "mixture" and estimator == "combined" and path is STRAIGHT:
            assert got.target.norm(dim=1).max() < 8


def test_combined_is_accurate_at_both_ends():
    target = unequal_mixture()
    near_data = squared_errors(target, "reverse", 1e-6, 64, points=500)
    near_noise = squared_errors(target, "policy", 1.0, 64, points=3000)
    assert near_data["combined"] < 1e-15
    assert near_noise["combined"] == pytest.approx(0.316, rel=0.15)
    assert near_noise["noise"] == pytest.approx(0.367, rel=0.15)


def test_a_constant_in_q_changes_nothing():
    target, t = unequal_mixture(), torch.full((8,), 0.4, dtype=torch.float64)
    found = candidates("mixture", randn(8, 2, seed=1), t, 32, seed=2)
    moved = Candidates(found.x_0, found.eps, found.log_weight + 1e6)
    one, other = (estimate(target, c, t, "combined") for c in (found, moved))
    torch.testing.assert_close(one.weight, other.weight, rtol=1e-8, atol=1e-9)
    torch.testing.assert_close(one.velocity, other.velocity, rtol=1e-7, atol=1e-7)


def test_rows_without_any_weight_are_marked_and_zero():
    x_0, eps = randn(4, 8, 2, seed=1), randn(4, 8, 2, seed=2)
    log_weight = torch.zeros(4, 8, dtype=torch.float64)
    log_weight[1], log_weight[2] = -torch.inf, torch.nan
    log_weight[3, 0] = torch.inf
    got = velocity_target(x_0, eps, -x_0, log_weight, torch.full((4,), 0.5).double(), fisher=1.0)
    assert got.valid.tolist() == [True, False, False, True]
    assert got.velocity.isfinite().all() and (got.velocity[1:3] == 0).all()
    assert got.ess.tolist() == pytest.approx([8, 0, 0, 1])
    assert got.weight[3].tolist() == [1, *[0] * 7]


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_candidate_without_finite_values_does_not_count(bad: float):
    x_0, eps = randn(2, 6, 2, seed=1), randn(2, 6, 2, seed=2)
    log_weight, gradient, t = randn(2, 6, seed=3), -x_0.clone(), torch.full((2,), 0.5).double()
    gradient[:, 2, 1] = bad
    log_weight[:, 2] = 50.0
    got = velocity_target(x_0, eps, gradient, log_weight, t, fisher=1.0)
    keep = [0, 1, 3, 4, 5]
    without = velocity_target(x_0[:, keep], eps[:, keep], gradient[:, keep], log_weight[:, keep], t, fisher=1.0)
    torch.testing.assert_close(got.velocity, without.velocity)
    assert (got.weight[:, 2] == 0).all()
    assert velocity_target(x_0, eps, gradient, log_weight, t, estimator="noise").weight[:, 2].min() > 0.9


def test_the_cap_cuts_the_correction_and_says_where():
    x_0, eps = randn(6, 4, 2, seed=1), randn(6, 4, 2, seed=2)
    log_weight, t = torch.zeros(6, 4).double(), torch.full((6,), 0.9).double()
    args = (x_0, eps, -50 * x_0, log_weight, t)
    plain = velocity_target(*args, estimator="noise")
    free = velocity_target(*args, estimator="gradient")
    cut = velocity_target(*args, estimator="gradient", cap=3.0)
    assert not free.clipped.any() and cut.clipped.all()
    correction = plain.velocity - cut.velocity
    torch.testing.assert_close(correction.norm(dim=1), torch.full((6,), 3 * 2**0.5).double())
    assert torch.nn.functional.cosine_similarity(correction, plain.velocity - free.velocity).min() > 1 - 1e-9
    loose = velocity_target(*args, estimator="gradient", cap=1e9)
    assert torch.equal(loose.velocity, free.velocity) and not loose.clipped.any()
    assert cap_norm(torch.zeros(1, 3), 1.0)[0].tolist() == [[0, 0, 0]]


def test_a_target_carries_no_gradient_and_half_precision_becomes_float32():
    x_0 = torch.randn(2, 4, 3, generator=rng(0)).bfloat16().requires_grad_()
    got = velocity_target(x_0, -x_0, -x_0, torch.zeros(2, 4).bfloat16(), torch.full((2,), 0.5), fisher=1.0)
    assert got.velocity.dtype == torch.float32
    assert not got.velocity.requires_grad


def test_mistakes_are_told():
    x, log_weight, t = torch.zeros(2, 4, 3), torch.zeros(2, 4), torch.full((2,), 0.5)
    with pytest.raises(ValueError, match="'newton'; known: noise, gradient, combined"):
        velocity_target(x, x, x, log_weight, t, estimator="newton")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r'without one, use "noise"'):
        velocity_target(x, x, None, log_weight, t, estimator="gradient")
    with pytest.raises(ValueError, match="needs fisher"):
        velocity_target(x, x, x, log_weight, t)
    with pytest.raises(ValueError, match=r"\[2, 4\] and \[4\]"):
        velocity_target(x, x, x, log_weight, torch.zeros(4), fisher=1.0)
    with pytest.raises(ValueError, match="Flatten the features"):
        reverse_candidates(torch.zeros(2, 3), t, torch.zeros(2, 4, 5))
