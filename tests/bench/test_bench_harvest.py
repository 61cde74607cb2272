"""What is kept of a run folder, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from made_up import write_evaluation, write_run

from awm.bench.diversity import read_image
from awm.bench.harvest import PICTURES, UnfinishedError, harvest, keep_pictures
from awm.bench.work import Work

WORK = Work(images=8, operations=5e9)


def test_the_curve_has_the_budget_spent_at_every_evaluation(tmp_path: Path):
    record = harvest(write_run(tmp_path), WORK, 4, evaluated=True)
    assert [point["epoch"] for point in record["curve"]] == [0, 2, 4]
    assert [point["images"] for point in record["curve"]] == [0, 16, 32]
    assert [point["flops"] for point in record["curve"]] == [0, 1e10, 2e10]
    # Training alone: the evaluations' 1000 s do not count.
    assert [point["seconds"] for point in record["curve"]] == [0.0, 11.0 + 12.0, 11.0 + 12.0 + 13.0 + 14.0]
    assert [point["score"] for point in record["curve"]] == pytest.approx([0.4, 0.42, 0.44])
    assert [point["second"] for point in record["curve"]] == [-2.0, -4.0, -6.0]


def test_the_processor_s_seconds_count_where_there_are_some(tmp_path: Path):
    run = write_run(tmp_path)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        if "time/epoch_s" in line:
            line["time/processor_s"] = 1.0
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert [point["seconds"] for point in harvest(run, WORK, 4, evaluated=True)["curve"]] == [0.0, 2.0, 4.0]


def test_guards_and_training_rewards_are_there_for_every_epoch(tmp_path: Path):
    record = harvest(write_run(tmp_path), WORK, 4, evaluated=True)
    assert record["training_reward"] == [0.1, 0.2, 0.3, 0.4]
    assert record["velocity_norm_ratio"] == [1.01, 1.02, 1.03, 1.04]
    assert [point["diversity"] for point in record["curve"]] == pytest.approx([0.2, 0.2 / 3, 0.2 / 5], abs=2 / 255)


def test_every_images_score_before_and_after(tmp_path: Path):
    record = harvest(write_run(tmp_path, prompts=3), WORK, 4, evaluated=True)
    assert record["first"] == [1, 0, 0, 1, 0, 0] and record["last"] == [1] * 6


def test_a_tuning_run_has_no_held_out_score(tmp_path: Path):
    record = harvest(write_run(tmp_path), WORK, 4, evaluated=False)
    assert record["training_reward"] == [0.1, 0.2, 0.3, 0.4] and not {"curve", "first", "last"} & record.keys()


def test_a_run_that_is_not_over_is_no_result(tmp_path: Path):
    run = write_run(tmp_path / "run")
    with pytest.raises(UnfinishedError, match="2 of 6 epochs are missing"):
        harvest(run, WORK, 6, evaluated=True)
    with pytest.raises(UnfinishedError, match="4 of 4 epochs"):
        harvest(tmp_path / "nothing", WORK, 4, evaluated=True)


def test_a_run_without_its_last_evaluation_is_no_result(tmp_path: Path):
    with pytest.raises(UnfinishedError, match="after the last epoch is missing"):
        harvest(write_run(tmp_path, epochs=3), WORK, 3, evaluated=True)


def test_an_evaluation_that_the_metrics_do_not_know_is_left_out(tmp_path: Path):
    run = write_run(tmp_path)
    write_evaluation(run / "eval" / "epoch_000003", 3, 12)
    assert [point["epoch"] for point in harvest(run, WORK, 4, evaluated=True)["curve"]] == [0, 2, 4]


def test_pictures_are_the_first_image_of_spread_out_prompts(tmp_path: Path):
    run = write_run(tmp_path / "run")
    keep_pictures(run, 4, tmp_path / "strip.jpg")
    assert read_image(tmp_path / "strip.jpg").shape == (8, 8 * PICTURES, 3)
    shown = harvest(run, WORK, 4, evaluated=True)["captions"]
    assert len(set(shown)) == PICTURES and shown[0] == "prompt 0" and shown[-1] == "prompt 11"


def test_fewer_prompts_than_pictures(tmp_path: Path):
    record = harvest(write_run(tmp_path, prompts=3), WORK, 4, evaluated=True)
    assert record["captions"] == ["prompt 0", "prompt 1", "prompt 2"]


def test_a_run_that_diverged_keeps_what_it_had_reached(tmp_path: Path):
    record = harvest(write_run(tmp_path, epochs=3, prompts=3), WORK, 6, evaluated=True, diverged=True)
    assert record["epochs"] == 6 and record["training_reward"] == [0.1, 0.2, 0.3]
    assert [point["epoch"] for point in record["curve"]] == [0, 2] and record["last"] == [1] * 6


def test_a_run_that_diverged_at_once_has_the_untrained_models_score(tmp_path: Path):
    record = harvest(write_run(tmp_path, epochs=0, prompts=3), WORK, 6, evaluated=True, diverged=True)
    assert [point["score"] for point in record["curve"]] == [0.4] and record["last"] == record["first"]
    assert record["training_reward"] == []


def test_a_score_that_is_null_is_no_evaluation(tmp_path: Path):
    run = write_run(tmp_path)
    text = (run / "metrics.jsonl").read_text()
    (run / "metrics.jsonl").write_text(text.replace('"eval/geneval.strict": 0.44', '"eval/geneval.strict": null'))
    with pytest.raises(UnfinishedError, match="after the last epoch is missing"):
        harvest(run, WORK, 4, evaluated=True)
