"""What the experiment on clean and noisy targets promises, and the identities it rests on."""

from __future__ import annotations

import json
import math
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor

from awm.flow.path import interpolate
from awm.flow.rng import SampleNoise
from awm.lab import matching
from awm.lab.boltzmann.mixture import GaussianMixture
from awm.lab.matching.convergence import LAGS, draw, learn_linear, learn_mlp, ring
from awm.lab.matching.features import CosineFeatures
from awm.lab.matching.gradients import Moments, fit_policy, matching_noise, policy_gradient_noise
from awm.lab.matching.tables import largest_z
from awm.lab.matching.targets import (
    added_variance,
    bridge,
    clean_target,
    noisy_target,
    step_variance,
    step_weight,
)
from awm.lab.matching.variances import mean_clean_variance, step_variances
from awm.lab.networks import seed_generators
from awm.samplers.flow_sde import transitions
from awm.samplers.transition import matching_target, transition_log_prob, transition_mean

NUM = 200_000


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def line(weights: tuple[float, ...], means: tuple[float, ...], stds: tuple[float, ...]) -> GaussianMixture:
    values = [torch.tensor(v, dtype=torch.float64) for v in (weights, means, stds)]
    return GaussianMixture(values[0], values[1].unsqueeze(-1), values[2])


def test_added_variance_by_hand() -> None:
    assert added_variance(0.4, 0.5) == pytest.approx(3.2)
    assert added_variance(0.85, 0.9) == pytest.approx(65.681818, abs=5e-7)
    assert added_variance(0.0, 0.5) == 0


def test_the_clean_target_is_noise_minus_data() -> None:
    x_0, eps, t = normal(0, 5, 2), normal(1, 5, 2), torch.rand(5, dtype=torch.float64)
    torch.testing.assert_close(clean_target(x_0, interpolate(x_0, eps, t), t), eps - x_0)


def test_the_bridge_is_the_noising_process() -> None:
    """x_s has its own marginal, and x_t minus its share of x_s is independent noise of the right size."""
    s, t, std = 0.3, 0.8, 0.6
    early, late = (torch.full((NUM,), value, dtype=torch.float64) for value in (s, t))
    x_0 = 1 + std * normal(0, NUM, 1)
    x_t = interpolate(x_0, normal(1, NUM, 1), late)
    x_s = bridge(x_0, x_t, early, late, normal(2, NUM, 1))
    shrink = (1 - t) / (1 - s)
    rest = x_t - shrink * x_s
    assert x_s.mean().item() == pytest.approx(1 - s, abs=0.01)
    assert x_s.var().item() == pytest.approx((1 - s) ** 2 * std**2 + s**2, rel=0.015)
    assert rest.var().item() == pytest.approx(t**2 - shrink**2 * s**2, rel=0.015)
    assert (rest * (x_s - x_s.mean())).mean().item() == pytest.approx(0, abs=0.005)


def test_all_targets_have_the_same_mean_given_the_state() -> None:
    """The errors of each target against the true velocity are uncorrelated with functions of x_t."""
    data = line((0.3, 0.7), (-1.0, 1.0), (0.3, 0.3))
    x_0 = data.sample(NUM, torch.Generator().manual_seed(3))
    early, late = (torch.full((NUM,), value, dtype=torch.float64) for value in (0.4, 0.5))
    x_t = interpolate(x_0, normal(4, NUM, 1), late)
    velocity = data.prediction(x_t, late)
    noisy = noisy_target(bridge(x_0, x_t, early, late, normal(5, NUM, 1)), x_t, early, late)
    for target in (clean_target(x_0, x_t, late), noisy):
        for function in (torch.ones_like(x_t), x_t, (3 * x_t).sin()):
            products = (target - velocity) * function
            assert abs(products.mean()) < 4 * products.std() / math.sqrt(NUM)


def test_a_noise_free_state_gives_the_clean_target() -> None:
    x_0, x_t, t = normal(0, 9, 2), normal(1, 9, 2), torch.full((9,), 0.7, dtype=torch.float64)
    s = torch.zeros_like(t)
    torch.testing.assert_close(bridge(x_0, x_t, s, t, normal(2, 9, 2)), x_0)
    torch.testing.assert_close(noisy_target(x_0, x_t, s, t), clean_target(x_0, x_t, t))


def test_a_steps_likelihood_is_matching_its_target() -> None:
    """log N(x_s; mean(v), std^2) = -w ||v - y||^2 + constant, exactly, for the steps of the sampler itself."""
    (first, *_) = transitions((0.5, 0.43, 0.0), noise_level=0.7)
    assert step_weight(first) == pytest.approx(0.110716, abs=5e-7)
    assert step_variance(first) == pytest.approx(4.516056, abs=5e-7)
    x_t, x_s = normal(0, 6, 1, 2, 2), normal(1, 6, 1, 2, 2)
    y = matching_target(x_s, x_t, first)
    constants = []
    for seed in (2, 3):
        v = normal(seed, 6, 1, 2, 2)
        matched = -step_weight(first) * (v - y).square().flatten(1).mean(1)
        constants.append(transition_log_prob(x_s, x_t, v, first) - matched)
    torch.testing.assert_close(constants[0], constants[1], rtol=0, atol=1e-12)
    torch.testing.assert_close(matching_target(transition_mean(x_t, v, first), x_t, first), v)
    assert step_weight(transitions((0.5, 0.0), noise_level=0.0)[0]) == math.inf


def test_the_table_of_variances() -> None:
    """Values at a = 0.7 on the 14-step grid, and Monte Carlo agrees with all of them."""
    rows = step_variances(line((1.0,), (0.0,), (1.0,)), torch.Generator().manual_seed(0), num_samples=20_000)
    assert len(rows) == 13
    by_time = {round(row.t, 4): (row.clean, row.noisy - row.clean, row.sampler[0.7]) for row in rows}
    assert by_time[0.8715] == pytest.approx((1.289, 62.04, 49.64), abs=0.005)
    assert by_time[0.7213] == pytest.approx((1.672, 14.70, 12.145), abs=0.005)
    assert by_time[0.4769] == pytest.approx((1.996, 2.17, 2.411), abs=0.005)
    assert rows[-1].noisy == rows[-1].clean
    assert largest_z({"N(0, 1)": rows}) < 4.5


@pytest.mark.parametrize("t", [0.05, 0.5, 0.95])
def test_clean_variance_of_gaussian_data(t: float) -> None:
    std = 0.4
    assert mean_clean_variance(line((1.0,), (1.5,), (std,)), t) == pytest.approx(
        std**2 / ((1 - t) ** 2 * std**2 + t**2), rel=1e-6
    )


def test_moments_are_unbiased() -> None:
    gradient = torch.randn(1, 50, 3, 2, generator=torch.Generator().manual_seed(0)).double() + 0.5
    moments = Moments()
    moments.add(gradient[:, :20])
    moments.add(gradient[:, 20:])
    flat = gradient[0].flatten(1)
    trace = flat.var(0).sum()
    torch.testing.assert_close(moments.noise, trace.reshape(1))
    torch.testing.assert_close(moments.signal, (flat.mean(0).square().sum() - trace / 50).reshape(1))
    torch.testing.assert_close(moments.dot(moments), flat.mean(0).square().sum().reshape(1))


def test_all_targets_share_the_states() -> None:
    noise = [SampleNoise(0, "test", 0, [0, 1]) for _ in range(2)]
    first, second = draw(ring(), noise[0], 7), draw(ring(), noise[1], 7, lags=(math.inf, 0.1))
    assert torch.equal(first.x_t, second.x_t) and torch.equal(first.targets[0], second.targets[0])
    assert first.targets.shape == (len(LAGS), 2, 7, 2)


def test_gradients_of_noisier_targets_are_noisier() -> None:
    seeds = [0, 1]
    features = CosineFeatures(2, seed_generators(seeds, "test"), num_features=64)
    noise = matching_noise(seeds, features, torch.zeros(2, 64, 2), num_samples=2048, lags=(math.inf, 0.2, 0.05))
    assert (noise[0] < noise[1]).all() and (4 * noise[1] < noise[2]).all()
    policy = fit_policy(features, seeds, num_samples=4096)
    result = policy_gradient_noise(seeds, features, policy, level=0.7, num_samples=2048)
    assert (4 * result.noise["clean"] < result.noise["likelihood"]).all()
    assert (result.cosine["likelihood, equal weights"] > 0.8).all()


def test_noisier_targets_are_learned_more_slowly() -> None:
    linear, kept = learn_linear([0], steps=(60, 120), learning_rates=(0.4,))
    assert linear.error.shape == (2, 4, 1, 1) and kept.shape == (2, 1, 512, 4, 1, 2)
    final = linear.error[-1, :, 0, 0]
    assert (final[1:] > final[:-1]).all() and (linear.error[1, 0] < linear.error[0, 0]).all()
    mlp = learn_mlp([0], steps=(150,)).error[0, :, 0, 0]
    assert mlp[0] < 0.9 * mlp[-1]


def test_the_best_rate_is_chosen_per_target() -> None:
    linear, _ = learn_linear([0], steps=(80,), learning_rates=(0.01, 0.4, 50.0))
    assert linear.best().tolist() == [1, 1, 1, 1]


def test_the_command_writes_its_record_and_figure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(matching, "EARLY", 10)
    monkeypatch.setattr(matching, "STEPS", (5, 10))
    monkeypatch.setattr(matching, "SHOWN", (10,))
    monkeypatch.setattr(matching, "LEVELS", (0.7,))
    monkeypatch.setattr(matching, "fit_policy", partial(fit_policy, num_samples=1024))
    arguments = ["--seeds", "2", "--samples", "512", "--steps", "10", "--out", str(tmp_path)]
    assert matching.main(arguments, "awm-lab matching") == 0
    results = json.loads((tmp_path / "matching.json").read_text())["results"]
    assert results["matching_gradient"]["lags"][0] is None
    assert results["convergence"]["linear"]["steps"] == [5, 10]
    assert results["policy_gradient"][0]["level"] == 0.7
    assert (tmp_path / "matching.png").stat().st_size > 10_000
    assert "kappa_v" in capsys.readouterr().out


def test_too_few_steps_are_refused() -> None:
    with pytest.raises(ValueError, match="--steps=100 and --samples=8192 must be at least 500 and 512"):
        matching.main(["--steps", "100"], "awm-lab matching")


@pytest.mark.slow
def test_clean_targets_win_at_every_targets_best_rate() -> None:
    linear, _ = learn_linear(range(5), steps=(1000,))
    best = linear.error[-1].gather(1, linear.best()[:, None, None].expand(-1, -1, 5)).squeeze(1)
    assert (best[1:] > best[:-1]).all()
