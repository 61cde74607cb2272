"""Tables and curves over seeds, by hand."""

from __future__ import annotations

import pytest

from awm.lab.control.figure import mean_curve, returns_figure
from awm.lab.control.results import Evaluation, RunRecord, merged, summary, table
from awm.lab.control.settings import preset


def record(seed: int, means: list[float], **changes: str) -> RunRecord:
    settings = preset("quick", "Pendulum-v1", **changes)
    points = [Evaluation(1000 * i, (mean - 1, mean + 1), 2.0 * i + 1) for i, mean in enumerate(means)]
    return RunRecord.of(settings, seed, points)


def test_the_summary_averages_the_last_three_evaluations_over_seeds() -> None:
    rows = summary([record(0, [-9, -8, 1, 2, 3]), record(1, [-7, 9, 3, 4, 5]), record(0, [-1], weighting="exp")])
    linear, exponential = rows
    assert linear["variant"] == "SiMPO linear, flow" and linear["seeds"] == 2 and linear["steps"] == 4000
    assert (linear["first"], linear["final"], linear["best"]) == (-8, 3, 6)
    assert linear["final_std"] == pytest.approx(2**0.5)
    assert linear["steps_per_second"] == pytest.approx(4000 / 9)
    assert exponential["final"] == -1 and exponential["final_std"] is None
    assert len(table(rows).splitlines()) == 3


def test_a_new_run_replaces_an_old_one_and_empty_ones_vanish() -> None:
    runs = merged([record(0, [1.0]), record(1, [2.0])], [record(0, [5.0]), record(2, [])])
    assert [(run.seed, run.final) for run in runs] == [(0, 5.0), (1, 2.0)]


def test_curves_are_means_over_seeds_as_far_as_all_of_them_went() -> None:
    runs = [record(0, [0.0, 4.0, 6.0]).evaluations, record(1, [2.0, 8.0]).evaluations]
    step, mean, spread = mean_curve(runs)
    assert (step, mean) == ([0.0, 1000.0], [1.0, 6.0])
    assert spread == pytest.approx([2**0.5, 8**0.5])
    assert mean_curve(runs[:1]) == ([0.0, 1000.0, 2000.0], [0.0, 4.0, 6.0], None)


def test_the_figure_has_a_panel_per_family_with_a_line_per_variant_and_one_that_was_not_trained() -> None:
    runs = [
        *(record(0, [0.0, 1.0]), record(1, [0.0, 2.0]), record(0, [0.0, 2.0], weighting="exp")),
        *(record(0, [0.0, 3.0], algorithm="rfm"), record(0, [0.0, 0.0], algorithm="frozen")),
    ]
    axes = returns_figure(runs, "Pendulum-v1").axes
    assert [a.get_title() for a in axes] == ["SiMPO, Pendulum-v1", "RFM, Pendulum-v1"]
    simpo, rfm = ([line.get_color() for line in a.lines] for a in axes)
    assert len(simpo) == 3 and len(rfm) == 2
    assert len({*simpo, *rfm}) == 4 and simpo[-1] == rfm[-1]
    # Bands: only where there are two seeds.
    assert [len(a.collections) for a in axes] == [1, 0]


def test_a_figure_of_policies_that_were_not_trained_has_one_panel() -> None:
    (axes,) = returns_figure([record(0, [0.0, 1.0], algorithm="frozen")], "Pendulum-v1").axes
    assert axes.get_title() == "Pendulum-v1" and len(axes.lines) == 1
