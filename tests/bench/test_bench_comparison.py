"""What the page says of an arm, by hand from made-up runs."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
from made_up import GRID, an_arm, broken, diverged, finished, settings, tuned

from awm.bench.arms import Setting
from awm.bench.comparison import Comparison, compare
from awm.bench.jobs import Record, final_jobs, tuning_jobs
from awm.bench.settings import Settings

SETTINGS = settings(seeds=(0, 1), second_seeds=(2,))
ARMS = {name: an_arm(name, GRID[:1]) for name in ("a", "b", "c")}


def runs(arm: str, finals: list[float], settings: Settings = SETTINGS, **values: Any) -> dict[str, Record]:
    """One run per reported seed: half-way to its last score after the first epoch."""
    jobs = final_jobs(arm, ARMS[arm], GRID[0], settings)
    return {
        job.name: finished(job, [(0.4 + last) / 2, last], **values) for job, last in zip(jobs, finals, strict=False)
    }


def compared(*groups: dict[str, Record], settings: Settings = SETTINGS) -> Comparison:
    return compare(ARMS, settings, {name: record for group in groups for name, record in group.items()})


def test_score_is_the_mean_over_seeds_with_its_error_and_the_best_is_first():
    result = compared(runs("a", [0.5, 0.6, 0.7]), runs("b", [0.8, 0.8, 0.8]))
    assert [row.arm for row in result.rows] == ["b", "a"]
    assert result.rows[1].score.mean == pytest.approx(0.6)
    assert result.rows[1].score.standard_error == pytest.approx(0.1 / math.sqrt(3))
    assert result.base == 0.4 and result.same_base


def test_area_is_the_mean_score_on_the_way():
    row = compared(runs("a", [0.6])).rows[0]
    # 0.4, 0.5, 0.6 at equal distances: (0.45 + 0.55) / 2.
    assert row.height.mean == pytest.approx(0.5)


def test_equal_seconds_are_the_median_run_of_the_fastest_arm():
    slow = runs("b", [0.8, 0.8, 0.8], seconds=20.0)
    fast = runs("a", [0.6, 0.7, 0.8])
    for record, seconds in zip(fast.values(), (1.0, 20.0, 22.0), strict=True):
        for point in record["curve"]:
            point["seconds"] = point["epoch"] * seconds / 2
    result = compared(fast, slow)
    # One lucky run of 1 s would otherwise have been the horizon of all.
    assert result.seconds == 20.0
    rows = {row.arm: row for row in result.rows}
    assert rows["a"].seconds == (20.0, 1.0, 22.0) and rows["b"].seconds == (40.0, 40.0, 40.0)
    assert rows["b"].at_seconds == pytest.approx(0.6)  # half-way: after its first epoch
    # The run that ended before counts with its end, the last is read off at 20 of its 22 s.
    assert rows["a"].at_seconds == pytest.approx((0.6 + 0.7 + 0.6 + 0.2 * 9 / 11) / 3)


def test_equal_operations_are_those_of_the_cheapest_run():
    result = compared(runs("a", [0.6], flops=1e9), runs("b", [0.8], flops=4e9))
    b, a = result.rows
    assert result.flops == 2e9
    assert a.at_flops == pytest.approx(0.6) and b.at_flops == pytest.approx(0.5)


def test_given_seconds_leave_out_arms_that_ended_before():
    result = compared(
        runs("a", [0.6], seconds=10.0), runs("b", [0.8], seconds=20.0), settings=replace(SETTINGS, seconds=30.0)
    )
    b, a = result.rows
    assert math.isnan(a.at_seconds) and b.at_seconds == pytest.approx(0.7)


def test_a_run_that_diverged_keeps_its_last_score_to_the_end_of_the_budget():
    records = runs("a", [0.6, 0.6])
    job = final_jobs("a", ARMS["a"], GRID[0], SETTINGS)[2]
    records[job.name] = diverged(job, [0.5], epochs=2)
    row = compared(records).rows[0]
    assert row.diverged == (2,) and row.missing == () and row.mark == "1 run diverged"
    assert row.scores == {0: 0.6, 1: 0.6, 2: 0.5} and row.curve.score[-1] == pytest.approx(1.7 / 3)
    # (0.4 + 0.5) / 2 over the first half, 0.5 over the second.
    assert row.height.mean == pytest.approx((0.5 + 0.5 + 0.475) / 3)
    assert row.at_seconds == pytest.approx(1.7 / 3) and row.at_flops == pytest.approx(1.7 / 3)
    assert row.seconds == (20.0, 20.0, 20.0)


def test_an_arm_of_which_all_runs_diverged_at_once_scores_as_the_untrained_model():
    lost = {j.name: diverged(j, [], epochs=2) for j in final_jobs("a", ARMS["a"], GRID[0], SETTINGS)}
    result = compared(lost, runs("b", [0.8, 0.8, 0.8]))
    b, a = result.rows
    assert result.seconds == 20.0 and a.score.mean == a.height.mean == a.at_seconds == pytest.approx(0.4)
    assert math.isnan(a.seconds[0]) and a.reach_seconds == (math.inf,) * 3 and math.isnan(a.guards.velocity)
    assert result.unfinished[0]["message"] == "non-finite loss" and b.mark == ""
    alone = compared(lost)
    assert math.isnan(alone.seconds) and alone.thresholds == ()


def test_thresholds_lie_between_the_untrained_model_and_the_best_arm():
    result = compared(runs("a", [0.6, 0.6, 0.6]), runs("b", [0.88, 0.88, 0.88]))
    assert result.thresholds == pytest.approx((0.52, 0.64, 0.76))
    b, a = result.rows
    assert b.reach_images == pytest.approx((128, 256, 384)) and b.reach_seconds == pytest.approx((5, 10, 15))
    assert a.reach_images == pytest.approx((256 * 1.2, math.inf, math.inf))


def test_a_threshold_that_most_seeds_never_reach_is_not_reached():
    result = compared(runs("a", [0.8, 0.5, 0.5]), runs("b", [0.8, 0.8, 0.8]))
    assert result.rows[1].reach_images[2] == math.inf


def test_no_thresholds_where_nobody_learnt():
    assert compared(runs("a", [0.3])).thresholds == ()


def test_gain_is_paired_by_image_and_clustered_by_prompt():
    # Two prompts with two images; prompt 0 gains 1 and 0, prompt 1 nothing: mean 1/4, SE^2 = 2/1 * 2 * (1/2)^2 / 16.
    row = compared(runs("a", [0.6, 0.6], images_right=((0, 1, 0, 1), (1, 1, 0, 1)))).rows[0]
    assert row.gain.gain == pytest.approx(0.25)
    assert row.gain.standard_error == pytest.approx(0.25)


def test_an_image_without_a_score_in_some_run_is_left_out_of_the_gain():
    records = runs("a", [0.6, 0.6])
    next(iter(records.values()))["last"][0] = None
    assert compared(records).rows[0].gain.n == 3


def test_guards_compare_with_the_untrained_model():
    guards = compared(runs("a", [0.6, 0.6], velocity=1.3, second=(-2.0, -2.5), diversity=(0.2, 0.1))).rows[0].guards
    assert guards.velocity == pytest.approx(1.3) and (guards.velocity_low, guards.velocity_high) == (1.0, 1.3)
    assert guards.second == pytest.approx(-0.5) and guards.diversity == pytest.approx(0.5)


def test_guards_that_were_not_measured_are_unknown_not_zero():
    records = runs("a", [0.6])
    for record in records.values():
        record["velocity_norm_ratio"] = [None, None]
        for point in record["curve"]:
            point["second"] = point["diversity"] = None
    guards = compared(records).rows[0].guards
    assert all(math.isnan(value) for value in (guards.velocity, guards.second, guards.diversity))


def test_missing_and_broken_runs_are_named():
    records = runs("a", [0.5, 0.6])
    job = final_jobs("a", ARMS["a"], GRID[0], SETTINGS)[2]
    records[job.name] = broken(job, "out of memory")
    result = compared(records)
    row = result.rows[0]
    assert row.missing == (2,) and row.named == "a (1 run missing)" and list(row.scores) == [0, 1]
    assert [record["message"] for record in result.unfinished] == ["out of memory"] and result.absent == ("b", "c")


def test_an_arm_without_a_setting_that_works_says_so():
    arm = an_arm("a")
    records = {job.name: diverged(job, [0.5], epochs=2) for job in tuning_jobs("a", arm, SETTINGS)}
    result = compare({"a": arm, "b": an_arm("b")}, SETTINGS, records)
    assert result.absent == ("a (every setting diverged)", "b")
    assert result.tunings[0].tried == {"low": "diverged", "high": "diverged"} and result.tunings[0].chosen is None


def test_a_choice_at_the_edge_of_a_grid_is_noticed():
    grid = (*GRID, Setting("higher", ("--config.train.learning_rate=4e-3",)))
    arm = an_arm("a", grid)
    for best in range(3):
        jobs = tuning_jobs("a", arm, SETTINGS)
        records = {job.name: tuned(job, [float(place == best)]) for place, job in enumerate(jobs)}
        assert compare({"a": arm}, SETTINGS, records).tunings[0].at_edge == (best != 1)


def test_runs_of_a_setting_that_was_not_chosen_do_not_count():
    arm = an_arm("a")
    low, high = tuning_jobs("a", arm, SETTINGS)
    records = {low.name: tuned(low, [0.2, 0.2]), high.name: tuned(high, [0.3, 0.3])}
    for setting, score in zip(GRID, (0.9, 0.5), strict=True):
        for job in final_jobs("a", arm, setting, SETTINGS):
            records[job.name] = finished(job, [0.45, score])
    result = compare({"a": arm}, SETTINGS, records)
    assert result.rows[0].setting == "high" and result.rows[0].score.mean == pytest.approx(0.5)
    assert result.tunings[0].tried == {"low": pytest.approx(0.2), "high": pytest.approx(0.3)}
    assert result.tunings[0].chosen == "high" and not result.tunings[0].at_edge


def test_seeds_that_are_not_asked_for_do_not_count():
    records = runs("a", [0.5, 0.6, 0.7])
    assert compare(ARMS, replace(SETTINGS, second_seeds=()), records).rows[0].score.mean == pytest.approx(0.55)


def test_another_untrained_score_is_noticed():
    assert not compared(runs("a", [0.6]), runs("b", [0.6], base=0.41)).same_base


def test_nothing_yet():
    result = compared()
    assert result.rows == () and math.isnan(result.base) and result.thresholds == ()
