"""Which run comes next follows from the results so far."""

from __future__ import annotations

import pytest
from made_up import GRID, an_arm, failed, finished, settings, tuned

from awm.bench.jobs import (
    Record,
    best_setting,
    final_jobs,
    jobs_to_run,
    num_jobs_left,
    trainer_arguments,
    tuning_jobs,
    tuning_score,
)
from awm.command_line import parse

ARMS = {"a": an_arm("awm"), "b": an_arm("simpo", GRID[:1])}
SETTINGS = settings()
BOTH = ("tune", "final")
LOW, HIGH = tuning_jobs("a", ARMS["a"], SETTINGS)


def names(records: dict[str, Record], stages: tuple = BOTH) -> list[str]:
    return [job.name for job in jobs_to_run(ARMS, SETTINGS, records, stages)]


def test_at_first_grids_are_tried_and_an_arm_without_a_choice_begins():
    assert names({}) == ["a-low-seed100", "a-high-seed100", *(f"b-low-seed{seed}" for seed in range(4))]


def test_an_arm_is_reported_once_its_grid_is_tried_with_the_best_point():
    records = {LOW.name: tuned(LOW, [0.9, 0.1])}
    assert not any(name.startswith("a-") and "seed100" not in name for name in names(records))
    records[HIGH.name] = tuned(HIGH, [0.1, 0.2])
    assert [name for name in names(records) if name.startswith("a")] == [f"a-high-seed{seed}" for seed in range(4)]


def test_runs_with_a_record_are_not_made_again():
    records = {HIGH.name: tuned(HIGH, [0.5]), LOW.name: failed(LOW)}
    job = final_jobs("a", ARMS["a"], GRID[1], SETTINGS)[1]
    records[job.name] = finished(job, [0.5, 0.6])
    assert [name for name in names(records) if name.startswith("a")] == [f"a-high-seed{seed}" for seed in (0, 2, 3)]


def test_a_failed_point_of_the_grid_is_not_chosen_and_an_arm_of_failures_is_not_run():
    records = {LOW.name: failed(LOW), HIGH.name: tuned(HIGH, [0.1])}
    assert best_setting("a", ARMS["a"], SETTINGS, records) == GRID[1]
    records[HIGH.name] = failed(HIGH)
    assert best_setting("a", ARMS["a"], SETTINGS, records) is None
    assert not any(name.startswith("a") for name in names(records))


def test_a_held_out_score_decides_nothing():
    # Only runs that were never evaluated are looked at: the tuning runs, which have no curve.
    low, high = (trainer_arguments(job, SETTINGS, logdir="x", epochs=2) for job in (LOW, HIGH))
    assert all("--config.eval_freq=0" in words for words in (low, high))


def test_of_equal_points_the_first():
    records = {LOW.name: tuned(LOW, [0.5]), HIGH.name: tuned(HIGH, [0.5])}
    assert best_setting("a", ARMS["a"], SETTINGS, records) == GRID[0]


def test_the_tuning_score_is_that_of_the_second_half():
    assert tuning_score(tuned(LOW, [9.0, 0.1, 0.3])) == pytest.approx(0.2)
    assert tuning_score(tuned(LOW, [9.0, 9.0, 0.1, 0.3])) == pytest.approx(0.2)


def test_stages_are_kept_apart():
    records = {LOW.name: tuned(LOW, [0.5]), HIGH.name: tuned(HIGH, [0.1])}
    assert names(records, ("tune",)) == []
    assert names({}, ("final",)) == [f"b-low-seed{seed}" for seed in range(4)]


def test_the_number_left_counts_runs_whose_setting_is_still_to_be_chosen():
    assert num_jobs_left(ARMS, SETTINGS, {}, BOTH) == 2 + 4 + 4
    assert num_jobs_left(ARMS, SETTINGS, {}, ("tune",)) == 2
    records = {LOW.name: tuned(LOW, [0.5])}
    assert num_jobs_left(ARMS, SETTINGS, records, BOTH) == 1 + 4 + 4
    records[HIGH.name] = tuned(HIGH, [0.1])
    assert num_jobs_left(ARMS, SETTINGS, records, BOTH) == 4 + 4


def test_what_is_fixed_stands_after_what_an_arm_or_the_user_may_choose():
    # A word that came later would win: nobody may train on another reward or evaluate other prompts.
    words = ("--config.seed=7", "--config.reward_fn=geneval=1", "--config.train.beta=0.5")
    job = final_jobs("a", ARMS["a"], GRID[0], SETTINGS)[0]
    config = parse(
        trainer_arguments(job, settings(overrides=words), logdir="x", epochs=10), program="awm-bench", purpose=""
    )
    assert config.seed == 0 and config.train.beta == 0.5 and config.train.learning_rate == 1e-3
    assert config.reward_fn.to_dict() == {"geneval.strict": 1.0, "jpeg_compressibility": 0.0}
    assert (config.num_epochs, config.eval_freq) == (10, 2)
    assert config.evaluation.max_prompts * config.evaluation.num_images_per_prompt == config.evaluation.num_saved_images


def test_only_one_run_of_an_arm_keeps_its_pictures():
    assert [job.pictures for job in final_jobs("a", ARMS["a"], GRID[0], SETTINGS)] == [True, False, False, False]
