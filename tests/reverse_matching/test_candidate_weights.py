"""Every way to propose candidates estimates the same posterior mean, and the pairs are exact."""

from __future__ import annotations

import math

import pytest
import torch

from awm.lab.boltzmann.mixture import unequal_mixture
from awm.reverse_matching import (
    STRAIGHT,
    Candidates,
    GaussianProposal,
    Path,
    atom_candidates,
    cosine_path,
    data_log_likelihood,
    mixture_candidates,
    normalised_weights,
    policy_candidates,
    reverse_candidates,
)

WIDE = GaussianProposal(torch.tensor([0.3, 0.1]).double(), torch.tensor([2.0, 1.5]).double())
NUM = 200_000


def proposals(path: Path, t: float, num: int = NUM) -> dict[str, Candidates]:
    generator = torch.Generator().manual_seed(2)
    noise = torch.randn(1, num, 2, generator=generator, dtype=torch.float64)
    x_0 = WIDE.sample(torch.randn(1, num, 2, generator=generator, dtype=torch.float64))
    x_t, time = torch.tensor([[0.3, 0.4]]).double(), torch.tensor([t]).double()
    part = num // 4
    return {
        "reverse": reverse_candidates(x_t, time, noise, path=path),
        "policy": policy_candidates(x_t, time, x_0, WIDE.log_density(x_0), path=path),
        "mixture": mixture_candidates(x_t, time, noise[:, :part], x_0[:, part:], WIDE.log_density, path=path),
    }


@pytest.mark.parametrize("path", [STRAIGHT, cosine_path()], ids=lambda path: path.name)
@pytest.mark.parametrize("t", [0.35, 0.6])
def test_all_proposals_find_the_posterior_mean(path: Path, t: float):
    target, x_t, time = unequal_mixture(), torch.tensor([[0.3, 0.4]]).double(), torch.tensor([t]).double()
    truth = target.prediction(x_t, time, path=path, prediction="data")
    for name, found in proposals(path, t).items():
        weight, _ = normalised_weights(found.log_weight + target.log_density(found.x_0))
        mean = (weight[..., None] * found.x_0).sum(1)
        error = (weight.square()[..., None] * (found.x_0 - mean).square()).sum(1).sqrt()
        assert ((mean - truth) / error).abs().max() < 4, name
        assert error.max() < 0.04, name


@pytest.mark.parametrize("path", [STRAIGHT, cosine_path()], ids=lambda path: path.name)
def test_data_and_noise_make_up_the_point_they_explain(path: Path):
    time = torch.tensor([[[0.4]]]).double()
    for found in proposals(path, 0.4, num=64).values():
        x_t = path.interpolate(found.x_0, found.eps, time)
        torch.testing.assert_close(x_t, torch.tensor([0.3, 0.4]).double().expand_as(x_t), rtol=1e-12, atol=1e-12)


def test_the_likelihood_is_the_normal_density_of_the_data():
    t, x_t, x_0 = torch.tensor([0.3]).double(), torch.tensor([[0.2, -1.0]]).double(), torch.randn(1, 5, 2).double()
    normal = torch.distributions.Normal(x_t / 0.7, torch.tensor(0.3 / 0.7).double())
    got = data_log_likelihood(STRAIGHT.noise(x_t[:, None], x_0, t[:, None, None]), t)
    torch.testing.assert_close(got, normal.log_prob(x_0).sum(-1))


def test_the_gaussian_proposal_knows_its_density():
    x_0 = torch.randn(2, 3, 2, dtype=torch.float64)
    normal = torch.distributions.Normal(WIDE.mean, WIDE.std)
    torch.testing.assert_close(WIDE.log_density(x_0), normal.log_prob(x_0).sum(-1))
    torch.testing.assert_close(WIDE.sample(torch.zeros(1, 1, 2).double()).squeeze(), WIDE.mean)
    torch.testing.assert_close(
        GaussianProposal(0.0, 1.0).log_density(torch.zeros(1, 1, 2)), torch.tensor([[-math.log(2 * math.pi)]])
    )


@pytest.mark.parametrize(("num", "without"), [(2, 1.18), (16, 0.09)])
def test_the_generator_has_to_stay_among_the_atoms(num: int, without: float):
    target, rows, t = unequal_mixture(), 30_000, 0.5
    generator = torch.Generator().manual_seed(4)
    x_0 = target.sample(rows * (num + 1), generator).reshape(rows, num + 1, 2)
    time = torch.full((rows,), t, dtype=torch.float64)
    # Only points that the generator itself explains are used: those near one x_t, found by its exact posterior.
    x_t = ((1 - t) * torch.tensor([[0.4, 0.6]]) + t * torch.tensor([[0.2, -0.1]])).double().expand(rows, 2)
    x_0[:, 0] = target.posterior_sample(x_t[:1], time[:1], rows, generator)[0]
    eps = STRAIGHT.noise(x_t, x_0[:, 0], time[:, None])
    truth = target.prediction(x_t[:1], time[:1])
    kept = atom_candidates(x_t, time, x_0[:, :num], generator_eps=eps)
    left_out = atom_candidates(x_t, time, x_0[:, 1:])
    biases = []
    for found in (kept, left_out):
        weight, _ = normalised_weights(found.log_weight)
        draws = (weight[..., None] * (found.eps - found.x_0)).sum(1) - truth
        biases.append(draws.mean(0))
        if found is kept:
            assert (draws.mean(0) / draws.std(0) * rows**0.5).abs().max() < 4
    assert biases[1].norm() > 10 * biases[0].norm()
    assert biases[1].norm().item() == pytest.approx(without, abs=0.03)


def test_the_noise_of_the_generator_is_kept_to_the_bit():
    eps, x_0 = torch.randn(3, 2), torch.randn(3, 4, 2)
    found = atom_candidates(torch.randn(3, 2), torch.full((3,), 0.1), x_0, generator_eps=eps)
    assert torch.equal(found.eps[:, 0], eps)
    assert torch.equal(found.x_0, x_0)
