"""Targets with a reward gradient, judged by quadrature in one dimension: p ~ p_old exp(r / T), p_old known."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from awm.reverse_matching import gaussian_share, image_target_exact, image_target_gaussian

GRID = torch.linspace(-9, 9, 40_001, dtype=torch.float64)
TEMPERATURE = 0.7
TIMES = (0.05, 0.2, 0.4, 0.6, 0.8)


def mixture(x: Tensor) -> Tensor:
    """Log density of two modes, up to a constant."""
    modes = [
        weight.log() - 0.5 * ((x - m) / 0.4).square()
        for weight, m in ((torch.tensor(0.6), -0.7), (torch.tensor(0.4), 0.8))
    ]
    return torch.stack(modes).logsumexp(0)


def gaussian(x: Tensor) -> Tensor:
    return -0.5 * ((x - 0.3) / 0.8).square()


def reward(x: Tensor) -> Tensor:
    return 0.8 * torch.sin(2 * x) + 0.3 * x


def slope(f: object, x: Tensor) -> Tensor:
    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(f(leaf).sum(), leaf)  # type: ignore[operator]
    return gradient


class Case:
    """Everything about one x_t: old posterior on the grid, weights exp(r / T) and the true velocity of p."""

    def __init__(self, old: object, x_t: float, t: float, temperature: float = TEMPERATURE) -> None:
        self.temperature = temperature
        self.t = torch.full_like(GRID, t)
        self.eps = (x_t - (1 - t) * GRID) / t
        self.u = self.eps - GRID
        posterior = (old(GRID) - 0.5 * self.eps.square()).softmax(0)  # type: ignore[operator]
        self.gradient, self.score_old = slope(reward, GRID), slope(old, GRID)
        self.velocity_old = (posterior * self.u).sum().expand_as(GRID)
        weight = posterior * (reward(GRID) / temperature).exp()
        self.weight = weight / weight.sum()
        self.truth = float((self.weight * self.u).sum())

    def mean(self, target: Tensor) -> float:
        return float((self.weight * target).sum())

    def variance(self, target: Tensor) -> float:
        return float((self.weight * (target - self.mean(target)).square()).sum())

    def exact(self, **options: float) -> Tensor:
        return image_target_exact(self.u, self.t, self.eps, self.gradient, self.score_old, self.temperature, **options)

    def score_free(self, **options: float) -> Tensor:
        return image_target_gaussian(self.u, self.t, self.velocity_old, self.gradient, self.temperature, **options)


@pytest.mark.parametrize("t", TIMES)
@pytest.mark.parametrize("data_std", [0.4, 1.0])
def test_the_exact_target_has_the_true_velocity_as_mean_whatever_the_scale(t: float, data_std: float):
    for x_t in (-0.8, 0.1, 0.9):
        case = Case(mixture, x_t, t)
        assert case.mean(case.exact(data_std=data_std)) == pytest.approx(case.truth, abs=1e-8)


@pytest.mark.parametrize(("temperature", "ratios"), [(0.7, (100, 5, 1.5, 1)), (2.0, (100, 5, 2, 1))])
def test_it_varies_less_than_plain_weighted_matching(temperature: float, ratios: tuple[float, ...]):
    for t, ratio in zip((0.05, 0.2, 0.4, 0.6), ratios, strict=True):
        cases = [Case(mixture, x_t, t, temperature) for x_t in (-0.6, 0.0, 0.6)]
        plain = sum(case.variance(case.u) for case in cases)
        assert plain / sum(case.variance(case.exact(data_std=0.4)) for case in cases) > ratio, t


def test_a_scale_wider_than_the_modes_can_make_it_worse():
    case = Case(mixture, 0.6, 0.8)
    assert case.variance(case.exact(data_std=0.9)) > case.variance(case.u) > case.variance(case.exact(data_std=0.4))


def test_without_the_score_of_the_old_policy_it_is_biased_by_its_mean():
    case, t = Case(mixture, 0.6, 0.4), 0.4
    bias = case.mean(case.score_old) * t / ((1 - t) ** 2 + t**2)
    case.score_old = torch.zeros_like(GRID)
    assert case.mean(case.exact()) - case.truth == pytest.approx(bias, abs=1e-8)
    assert abs(bias) > 0.1


def test_the_exact_target_is_the_formula_with_xi():
    case, t, s = Case(mixture, 0.3, 0.4), 0.4, 0.9
    xi = s**2 * t**2 / ((1 - t) ** 2 * s**2 + t**2)
    stein = case.score_old + case.gradient / TEMPERATURE + (1 - t) / t * case.eps
    torch.testing.assert_close(case.exact(data_std=s), case.u - xi / t * stein, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("t", TIMES)
@pytest.mark.parametrize("eta", [None, 0.0, 0.5, 1.0])
def test_the_score_free_target_is_exact_for_gaussian_data(t: float, eta: float | None):
    for x_t in (-1.0, 0.4):
        case = Case(gaussian, x_t, t)
        options = {} if eta is None else {"eta": eta}
        assert case.mean(case.score_free(data_std=0.8, **options)) == pytest.approx(case.truth, abs=1e-7)


def test_its_bias_on_a_mixture_is_small_near_the_data_and_grows():
    bias = {}
    for t in (0.1, 0.4, 0.7):
        for eta in (None, 1.0):
            options = {} if eta is None else {"eta": eta}
            cases = [Case(mixture, x_t, t) for x_t in (-0.7, 0.7)]
            bias[t, eta] = max(abs(c.mean(c.score_free(data_std=0.4, **options)) - c.truth) for c in cases)
    assert bias[0.1, None] < 0.01 and bias[0.1, 1.0] < 0.01
    assert bias[0.1, 1.0] < bias[0.4, 1.0] < bias[0.7, 1.0]
    assert bias[0.7, None] < 0.2 * bias[0.7, 1.0]


def test_eta_zero_is_weighted_matching_and_the_share_runs_from_one_to_zero():
    case = Case(mixture, 0.3, 0.4)
    assert torch.equal(case.score_free(eta=0.0), case.u)
    share = gaussian_share(torch.tensor([0.0, 0.2, 0.5, 0.8, 1.0], dtype=torch.float64), 0.7)
    assert share.tolist() == pytest.approx([1, 0.886878, 0.328859, 0.029715, 0], abs=1e-6)


def test_image_shapes_and_the_ends_of_time():
    generator = torch.Generator().manual_seed(0)
    u, eps, v_old = torch.randn(3, 3, 2, 4, 5, 5, generator=generator)
    gradient, score = torch.randn(2, 2, 4, 5, 5, generator=generator)
    t = torch.tensor([[0.0, 0.3], [0.5, 0.6], [1.0, 1e-6]])
    exact = image_target_exact(u, t, eps, gradient, score, 0.5)
    free = image_target_gaussian(u, t, v_old, gradient, 0.5)
    assert exact.shape == free.shape == u.shape
    assert exact.isfinite().all() and free.isfinite().all()
    # At t = 0 the point is the data: the velocity's noise is all removed, and v_old is exact.
    torch.testing.assert_close(exact[0, 0], u[0, 0] - eps[0, 0])
    torch.testing.assert_close(free[0, 0], v_old[0, 0])
    one = image_target_exact(u[1], t[1], eps[1], gradient, score, 0.5)
    torch.testing.assert_close(one, exact[1])
