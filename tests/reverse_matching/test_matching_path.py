"""Both paths are Gaussian paths, and the straight one is the path of the image trainer."""

from __future__ import annotations

import math

import pytest
import torch

from awm.flow import path as flow
from awm.reverse_matching import STRAIGHT, Path, cosine_path

PATHS = [STRAIGHT, cosine_path(), cosine_path(0.0)]


def pair() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    x_0, eps = torch.randn(2, 6, 3, generator=generator, dtype=torch.float64)
    return x_0, eps, torch.linspace(0.05, 0.95, 6, dtype=torch.float64)


def test_the_straight_path_is_the_one_of_awm_flow():
    x_0, eps, t = pair()
    x_t, time = flow.interpolate(x_0, eps, t), t[:, None]
    a, b = STRAIGHT.reading(time, "velocity")
    torch.testing.assert_close(STRAIGHT.interpolate(x_0, eps, time), x_t, rtol=0, atol=1e-15)
    torch.testing.assert_close(a * x_0 + b * eps, flow.target_velocity(x_0, eps), rtol=0, atol=1e-15)
    torch.testing.assert_close(STRAIGHT.at(time, "velocity").coupling, torch.ones_like(time))
    assert torch.equal(STRAIGHT.time_from_straight(t), t)


@pytest.mark.parametrize("path", PATHS)
def test_data_and_noise_are_read_back(path: Path):
    x_0, eps, t = pair()
    time = t[:, None]
    x_t = path.interpolate(x_0, eps, time)
    torch.testing.assert_close(path.noise(x_t, x_0, time), eps, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(path.data(x_t, eps, time), x_0, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("path", PATHS)
def test_rates_are_the_derivatives(path: Path):
    t = torch.linspace(0.01, 0.99, 9, dtype=torch.float64, requires_grad=True)
    for schedule, rate in ((path.alpha, path.alpha_rate), (path.sigma, path.sigma_rate)):
        (derivative,) = torch.autograd.grad(schedule(t).sum(), t)
        torch.testing.assert_close(rate(t), derivative, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("offset", [0.0, 0.008])
def test_the_cosine_path_preserves_the_variance_and_is_the_published_schedule(offset: float):
    path, t = cosine_path(offset), torch.linspace(0, 1, 21, dtype=torch.float64)
    torch.testing.assert_close(path.alpha(t).square() + path.sigma(t).square(), torch.ones_like(t))
    published = torch.cos((t + offset) / (1 + offset) * math.pi / 2) ** 2
    torch.testing.assert_close(path.alpha(t).square(), published / published[0])
    assert path.sigma(t[:1]) == 0


def test_sigma_near_the_data_does_not_cancel_in_float32():
    t = torch.tensor([1e-7, 1e-5, 1e-3])
    torch.testing.assert_close(cosine_path().sigma(t), cosine_path().sigma(t.double()).float(), rtol=1e-5, atol=0)


@pytest.mark.parametrize("path", PATHS)
def test_a_time_of_the_straight_path_finds_its_own(path: Path):
    t = torch.linspace(0, 1, 21, dtype=torch.float64)
    straight = path.sigma(t) / (path.alpha(t) + path.sigma(t))
    torch.testing.assert_close(path.time_from_straight(straight), t, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("path", PATHS)
def test_nothing_is_infinite_at_the_ends(path: Path):
    t = torch.tensor([0.0, 1e-6, 1 - 1e-6, 1.0])[:, None]
    for prediction in ("velocity", "noise", "data"):
        point = path.at(t, prediction)  # type: ignore[arg-type]
        assert all(c.isfinite().all() for c in (point.a, point.b, point.alpha, point.sigma, point.coupling))
    assert path.noise(torch.ones(4, 2), torch.zeros(4, 2), t).isfinite().all()
    assert path.data(torch.ones(4, 2), torch.zeros(4, 2), t).isfinite().all()


def test_mistakes_are_told():
    with pytest.raises(ValueError, match="unknown prediction 'speed'; known: velocity, noise, data"):
        STRAIGHT.reading(torch.ones(1), "speed")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="at least 0, not -1"):
        cosine_path(-1)
