"""Which run comes next follows from the results so far."""

from __future__ import annotations

import math

import pytest
from made_up import GRID, an_arm, broken, diverged, finished, settings, tuned

from awm.bench.jobs import (
    Job,
    Record,
    all_jobs,
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
    records = {HIGH.name: tuned(HIGH, [0.5]), LOW.name: tuned(LOW, [0.4])}
    job = final_jobs("a", ARMS["a"], GRID[1], SETTINGS)[1]
    records[job.name] = finished(job, [0.5, 0.6])
    assert [name for name in names(records) if name.startswith("a")] == [f"a-high-seed{seed}" for seed in (0, 2, 3)]


def lost(job: Job) -> Record:
    return diverged(job, [0.5], epochs=2)


def test_a_point_that_diverged_is_not_chosen_and_never_tried_again():
    # It had a higher reward before it did.
    records = {LOW.name: lost(LOW) | {"training_reward": [9.0]}, HIGH.name: tuned(HIGH, [0.1])}
    assert best_setting("a", ARMS["a"], SETTINGS, records) == GRID[1]
    assert not {LOW.name, HIGH.name} & set(names(records))


def test_an_arm_that_always_diverged_is_not_run():
    records = {job.name: lost(job) for job in (LOW, HIGH)}
    assert best_setting("a", ARMS["a"], SETTINGS, records) is None
    assert not any(name.startswith("a") for name in names(records))


def test_a_broken_point_says_nothing_and_its_arm_waits():
    # Choosing among the others would let an accident of the machine decide.
    records = {LOW.name: broken(LOW), HIGH.name: tuned(HIGH, [0.1])}
    assert best_setting("a", ARMS["a"], SETTINGS, records) is None
    assert not any(name.startswith("a") for name in names(records))
    assert num_jobs_left(ARMS, SETTINGS, records, BOTH) == 4


def test_rewards_that_are_missing_choose_nothing():
    records = {LOW.name: tuned(LOW, [0.5, None]), HIGH.name: tuned(HIGH, [None, 0.1])}
    assert best_setting("a", ARMS["a"], SETTINGS, records) == GRID[1]
    assert math.isnan(tuning_score(records[LOW.name]))


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


def test_all_jobs_are_those_of_any_choice():
    found = all_jobs(ARMS, SETTINGS)
    assert len(found) == 2 + 2 * 4 + 4 and all(job.name == name for name, job in found.items())
    assert found["a-high-seed3"].stage == "final" and found["a-low-seed100"] == LOW
