"""The running Fisher information: its mean, its median over points, and what a change of temperature does."""

from __future__ import annotations

import pytest
import torch

from awm.flow.path import interpolate
from awm.lab.boltzmann.mixture import unequal_mixture
from awm.reverse_matching import FisherInformation, reverse_candidates, velocity_target

UNIFORM = torch.full((3, 2), 0.5)
GRADIENT = torch.tensor([1.0, 2.0, 9.0])[:, None, None].expand(3, 2, 4)


def test_an_update_moves_toward_the_median_over_points():
    start = FisherInformation(torch.tensor(2.0))
    once = start.updated(UNIFORM, GRADIENT, temperature=1.0)
    assert once.value.item() == pytest.approx(0.98 * 2 + 0.02 * 4)
    assert start.value.item() == 2.0
    for _ in range(600):
        once = once.updated(UNIFORM, GRADIENT, temperature=1.0)
    assert once.value.item() == pytest.approx(4.0, abs=1e-3)


def test_dropped_rows_do_not_count():
    start = FisherInformation(torch.tensor(2.0), decay=0.0)
    valid = torch.tensor([True, False, False])
    assert start.updated(UNIFORM, GRADIENT, temperature=1.0, valid=valid).value.item() == pytest.approx(1.0)
    none = torch.zeros(3, dtype=torch.bool)
    assert start.updated(UNIFORM, GRADIENT, temperature=1.0, valid=none).value.item() == 2.0


def test_candidates_without_weight_do_not_count_even_if_infinite():
    gradient = GRADIENT.clone()
    gradient[:, 1] = torch.inf
    weight = torch.tensor([[1.0, 0.0]]).expand(3, 2)
    got = FisherInformation(torch.tensor(2.0), decay=0.0).updated(weight, gradient, temperature=1.0)
    assert got.value.item() == pytest.approx(4.0)


def test_a_new_temperature_rescales_first():
    start = FisherInformation(torch.tensor(2.0), temperature=4.0)
    assert start.at(1.0).value.item() == pytest.approx(8.0)
    assert start.at(4.0) is start
    got = start.updated(UNIFORM, GRADIENT, temperature=1.0)
    assert got.value.item() == pytest.approx(0.98 * 8 + 0.02 * 4)
    assert got.temperature == 1.0


def test_a_quadratic_q_keeps_its_value_under_the_rescaling():
    for temperature in (4.0, 1.0):
        x_0 = temperature**0.5 * torch.randn(200_000, 2, generator=torch.Generator().manual_seed(0))
        information = (x_0 / temperature).square().mean()
        assert information.item() == pytest.approx(
            FisherInformation(torch.tensor(0.25), 4.0).at(temperature).value.item(), rel=0.01
        )


def test_the_floor_holds():
    start = FisherInformation(torch.tensor(1.0), decay=0.0)
    assert start.updated(UNIFORM, 0 * GRADIENT, temperature=1.0).value.item() == pytest.approx(1e-3)
    assert start.at(1e9).value.item() == pytest.approx(1e-3)


def test_one_number_for_each_dimension():
    gradient = torch.tensor([1.0, 3.0]).expand(5, 2, 2)
    start = FisherInformation(torch.ones(2), decay=0.0)
    got = start.updated(torch.full((5, 2), 0.5), gradient, temperature=1.0)
    assert got.value.tolist() == pytest.approx([1.0, 9.0])


def test_the_first_guess_is_exact_for_a_gaussian():
    x_0 = torch.tensor([0.5, 2.0]) * torch.randn(100_000, 2, generator=torch.Generator().manual_seed(0))
    assert FisherInformation.from_data(x_0, per_dimension=True).value.tolist() == pytest.approx([4, 0.25], rel=0.02)
    assert FisherInformation.from_data(x_0).value.item() == pytest.approx(2 / 4.25, rel=0.02)


def test_it_finds_the_information_of_a_mixture_where_a_mean_would_not():
    target, generator = unequal_mixture(), torch.Generator().manual_seed(0)
    fisher, plain = FisherInformation(torch.tensor(1.0).double(), decay=0.9), []
    for step in range(60):
        t = torch.rand(256, generator=generator, dtype=torch.float64) * 0.96 + 0.02
        noise = torch.randn(256, 65, 2, generator=generator, dtype=torch.float64)
        x_t = interpolate(target.sample(256, generator), noise[:, 0], t)
        found = reverse_candidates(x_t, t, noise[:, 1:])
        gradient = target.score(found.x_0)
        got = velocity_target(found.x_0, found.eps, gradient, target.log_density(found.x_0), t, fisher=1.0)
        fisher = fisher.updated(got.weight, gradient, temperature=1.0, valid=got.valid)
        plain += [(got.weight[..., None] * gradient.square()).sum(1).mean()] if step > 10 else []
    assert fisher.value.item() == pytest.approx(3.67, rel=0.35)
    assert torch.stack(plain).mean() > 1.5 * 3.67


def test_nonsense_is_refused():
    with pytest.raises(ValueError, match="temperature > 0, decay in"):
        FisherInformation(torch.tensor(1.0), temperature=0.0)
