"""The Boltzmann experiment: its targets are right, its measures measure, its flows learn, its command writes."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from awm.lab.boltzmann.accuracy import Accuracy, _accuracy, draw_candidates, measure, true_fisher
from awm.lab.boltzmann.batches import BatchSettings, DensityBatches
from awm.lab.boltzmann.command import main
from awm.lab.boltzmann.figure import draw_bias
from awm.lab.boltzmann.flows import FlowSettings, train_flow
from awm.lab.boltzmann.judging import describe, judge, sample_flow, true_velocity_samples
from awm.lab.boltzmann.mixture import GaussianMixture, triangle_mixture, unequal_mixture
from awm.lab.boltzmann.summary import accuracy_row, mean_and_error
from awm.lab.figures import new_figure

TARGETS = [unequal_mixture(), triangle_mixture()]


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("target", TARGETS)
def test_the_density_is_normalised_and_the_score_is_its_gradient(target: GaussianMixture) -> None:
    line = torch.linspace(-7, 7, 281, dtype=torch.float64)
    grid = torch.cartesian_prod(line, line)
    assert float(target.log_density(grid).exp().sum() * 0.05**2) == pytest.approx(1, abs=1e-6)
    x = torch.randn(20, 2, generator=rng(), dtype=torch.float64).requires_grad_()
    (gradient,) = torch.autograd.grad(target.log_density(x).sum(), x)
    torch.testing.assert_close(target.score(x), gradient)


@pytest.mark.parametrize(
    ("t", "velocity"), [(0.3, (-1.6234, -0.7699)), (0.5, (-0.8998, -1.1148)), (0.7, (0.2704, -0.8097))]
)
def test_the_true_velocity_is_the_posterior_mean(t: float, velocity: tuple[float, float]) -> None:
    target, time = unequal_mixture(), torch.tensor([t], dtype=torch.float64)
    x_t = (1 - t) * torch.tensor([[0.4, 0.6]]).double() + t * torch.tensor([[0.2, -0.1]]).double()
    assert target.prediction(x_t, time)[0].tolist() == pytest.approx(velocity, abs=1e-4)
    x_0 = target.posterior_sample(x_t, time, 100_000, rng())[0]
    draws = (x_t - x_0) / t
    z = (draws.mean(0) - target.prediction(x_t, time)[0]) / draws.std(0) * 100_000**0.5
    assert z.abs().max() < 4


def test_the_true_velocity_leads_to_the_target() -> None:
    target = unequal_mixture(torch.float32)
    exact = describe(target, target.sample(20_000, rng()))
    solved = true_velocity_samples(target, 20_000, steps=48)
    assert exact["mode_shares"] == pytest.approx([0.5, 0.3, 0.2], abs=0.01)
    assert solved["mode_shares"] == pytest.approx([0.5, 0.3, 0.2], abs=0.015)
    assert exact["mean_log_density"] == pytest.approx(-2.58, abs=0.03)
    assert solved["mean_log_density"] == pytest.approx(exact["mean_log_density"], abs=0.06)


def test_fisher_information_of_the_targets() -> None:
    assert true_fisher(unequal_mixture()) == pytest.approx(3.67, rel=0.02)
    one = GaussianMixture(*(torch.tensor(v, dtype=torch.float64) for v in ([1.0], [[0.5, 1.0]], [0.5])))
    assert true_fisher(one) == pytest.approx(4, rel=0.02)


def test_every_even_slice_of_the_mixture_has_both_kinds() -> None:
    t = torch.full((3,), 0.05)
    found = draw_candidates("mixture", torch.zeros(3, 2), t, 8, rng())
    near = found.eps.norm(dim=-1) < 5  # reverse candidates have standard noise, wide ones explain x_t badly at t = .05
    assert near[:, ::2].all() and not near[:, 1::2].all()
    torch.testing.assert_close(0.95 * found.x_0 + 0.05 * found.eps, torch.zeros(3, 8, 2), rtol=0, atol=1e-5)


def test_squared_bias_and_variance_are_told_apart() -> None:
    errors = torch.tensor([0.3, -0.4]) + 0.5 * torch.randn(4000, 8, 2, generator=rng())
    cell = _accuracy(errors, torch.ones(3))
    assert cell.squared_bias == pytest.approx(0.25, abs=0.01)
    assert cell.variance == pytest.approx(0.5, abs=0.01)
    assert cell.squared_error == pytest.approx(0.75, abs=0.02)


def test_accuracy_on_the_mixture() -> None:
    target = unequal_mixture(torch.float32)
    cells = measure(target, t=0.3, proposal="reverse", sizes=(4, 16), seed=0, fisher=3.67, points=400, budget=128)
    for size in (4, 16):
        noise, gradient, combined = (cells[size, name].squared_error for name in ("noise", "gradient", "combined"))
        assert combined < 0.5 * min(noise, gradient)
    assert cells[16, "noise"].squared_error == pytest.approx(0.357, rel=0.15)
    assert cells[16, "noise"].ess == pytest.approx(9.2, rel=0.1)
    for name in ("noise", "gradient", "combined"):
        assert cells[16, name].squared_bias < 0.3 * cells[4, name].squared_bias


def test_a_gaussian_leaves_the_combined_estimator_no_error() -> None:
    one = GaussianMixture(*(torch.tensor(v, dtype=torch.float64) for v in ([1.0], [[0.5, 1.0]], [0.5])))
    cells = measure(one, t=0.6, proposal="mixture", sizes=(4,), seed=0, fisher=4.0, points=20, budget=16)
    assert cells[4, "combined"].squared_error < 1e-20
    assert cells[4, "noise"].squared_error > 0.01


def test_sizes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="12 candidates do not fit a budget of 64"):
        measure(TARGETS[0], t=0.3, proposal="reverse", sizes=(12,), seed=0, fisher=1.0, budget=64)


def test_rows_keep_a_bias_too_small_to_see_apart() -> None:
    row = accuracy_row({"t": 0.1}, [Accuracy(0.04, 0.01, 3.0), Accuracy(0.06, -0.03, 5.0)])
    assert row["rmse"] == pytest.approx(math.sqrt(0.05))
    assert row["bias"] is None and row["squared_bias"] == pytest.approx(-0.01)
    assert row["ess"] == 4
    assert row["squared_error_se"] == pytest.approx(0.01)
    assert math.isnan(mean_and_error([1.0])[1])


def test_a_bias_below_its_noise_is_a_gap_in_the_line() -> None:
    keys = ({"t": 0.3, "num_candidates": size, "estimator": "noise", "proposal": "reverse"} for size in (4, 16, 64))
    cells = ((1.0, 1.1), (0.5, -0.4), (0.2, 0.21))
    rows = [accuracy_row(key, [Accuracy(2, b, 3.0) for b in pair]) for key, pair in zip(keys, cells, strict=True)]
    (axes,) = new_figure(1, 1)[1].flat
    draw_bias(axes, rows, 0.3)
    drawn = next(line for line in axes.lines if len(line.get_xdata()) == 3)
    assert np.isfinite(np.asarray(drawn.get_ydata(), dtype=float)).tolist() == [True, False, True]


SMALL = FlowSettings(steps=100, own=512, sampling_steps=16, width=64, batch=BatchSettings(128, 16))


def test_a_flow_learns_from_the_density_alone_and_repeats_itself() -> None:
    target = unequal_mixture(torch.float32)
    one_step = train_flow(target, "noise", replace(SMALL, steps=1), seed=0)
    untrained = judge(target, one_step.velocity, steps=16, seed=0)
    trained = train_flow(target, "combined", SMALL, seed=0)
    found = judge(target, trained.velocity, steps=16, seed=0)
    assert isinstance(found["velocity_error"], float) and isinstance(untrained["velocity_error"], float)
    assert found["velocity_error"] < 0.5 * untrained["velocity_error"]
    assert trained.clipped_share < 0.01
    again = train_flow(target, "combined", SMALL, seed=0)
    assert torch.equal(sample_flow(trained.velocity, 8, rng(), steps=4), sample_flow(again.velocity, 8, rng(), steps=4))


def test_a_batch_is_matched_with_the_velocity_of_the_tempered_target() -> None:
    one = GaussianMixture(*(torch.tensor(v) for v in ([1.0], [[0.5, 1.0]], [0.5])))
    batches = DensityBatches(one, "combined", BatchSettings(first_temperature=4.0), rng())
    # The curvature is right at once if the running mean forgets: then a Gaussian target leaves no error at all.
    batches.fisher = replace(batches.fisher, value=torch.tensor(1.0))
    batch = batches(one.sample(64, rng(1)), 0.0)
    warm = GaussianMixture(one.weights, one.means, 2 * one.stds)
    torch.testing.assert_close(batch.target, warm.prediction(batch.x_t, batch.t), rtol=1e-4, atol=1e-4)
    assert batch.weight.max() == 1 and 0 < batch.ess_share < 1 and batch.clipped_share == 0
    cold = batches(one.sample(64, rng(1)), 0.5)
    assert batches.fisher.temperature == 1.0
    torch.testing.assert_close(cold.target, one.prediction(cold.x_t, cold.t), rtol=0.05, atol=0.05)


@pytest.mark.slow
def test_the_estimators_are_ranked_by_the_flows_they_train() -> None:
    target, settings = unequal_mixture(torch.float32), FlowSettings(steps=1000)
    found = {
        method: judge(target, train_flow(target, method, settings, seed=0).velocity, steps=48, seed=0)
        for method in ("noise", "gradient", "combined")
    }
    error = {method: numbers["velocity_error"] for method, numbers in found.items()}
    density = {method: numbers["mean_log_density"] for method, numbers in found.items()}
    assert error["combined"] < error["noise"] < error["gradient"]
    assert density["combined"] > density["noise"] > density["gradient"]


def test_the_command_writes_numbers_and_a_figure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--quick", "--seeds", "1", "--out", str(tmp_path)], "awm-lab boltzmann") == 0
    record = json.loads((tmp_path / "boltzmann.json").read_text())
    assert record["command"].startswith("awm-lab boltzmann --quick --seeds 1 --out ")
    assert record["settings"]["flow"]["steps"] == 30
    accuracy, flows = record["results"]["accuracy"], record["results"]["flows"]
    assert len(accuracy) == 2 * 2 * 3 * 2 * 6
    assert {row["method"] for row in flows} == {"noise", "gradient", "combined", "samples"}
    assert all(math.isfinite(row["velocity_error"]) for row in flows)
    assert (tmp_path / "boltzmann.png").read_bytes().startswith(b"\x89PNG")
    out = capsys.readouterr().out
    assert "unequal mixture, reverse candidates" in out and "trained with" in out
