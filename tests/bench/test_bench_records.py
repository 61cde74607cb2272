"""Results on disk."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from made_up import GRID, an_arm, failed, finished, settings

from awm.bench.jobs import final_jobs
from awm.bench.records import Records, check_same_arms

JOB = final_jobs("a", an_arm("awm"), GRID[0], settings())[0]


def test_what_is_written_is_read_again(tmp_path: Path):
    written = Records(tmp_path).write(JOB, finished(JOB, [0.5, 0.6]))
    assert Records(tmp_path).read() == {JOB.name: written}
    assert written["curve"][2]["score"] == 0.6


def test_numbers_are_short_and_what_is_not_finite_is_null(tmp_path: Path):
    record = Records(tmp_path).write(JOB, {"status": "finished", "x": 1 / 3, "y": [math.nan, math.inf], "z": 10**12})
    assert record["x"] == 0.333333 and record["y"] == [None, None] and record["z"] == 10**12


def test_a_point_of_the_curve_is_a_line(tmp_path: Path):
    Records(tmp_path).write(JOB, finished(JOB, [0.5, 0.6]))
    lines = (tmp_path / "runs" / f"{JOB.name}.json").read_text().splitlines()
    assert sum('"epoch":' in line for line in lines) == 3


@pytest.mark.parametrize("text", ["{", "[]", '{"status": "finished"}', '{"status": "?", "name": "x"}'])
def test_a_damaged_file_is_named_with_what_to_do(tmp_path: Path, text: str):
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "x.json").write_text(text)
    with pytest.raises(ValueError, match=r"x\.json is damaged; remove it"):
        Records(tmp_path).read()


def test_results_of_another_configuration_under_the_same_name_are_refused(tmp_path: Path):
    record = finished(JOB, [0.5]) | {"changes": {"train.learning_rate": 1e-3, "train.beta": 1 / 3}}
    records = {JOB.name: Records(tmp_path).write(JOB, record)}
    same = {"train.learning_rate": 1e-3, "train.beta": 1 / 3}
    check_same_arms(records, {("a", "low"): same}, tmp_path)
    check_same_arms(records, {("another", "low"): {}}, tmp_path)
    for now, why in (
        (same | {"train.beta": 0.5}, "train.beta was 0.333333, now 0.5"),
        ({"train.beta": 1 / 3}, "train.learning_rate was 0.001, now as there"),
        (same | {"train.cfg": True}, "train.cfg was as in the quickstart, now True"),
    ):
        with pytest.raises(ValueError, match=rf"{why}\); to run them again: rm {tmp_path}/runs/{JOB.name}\.\*"):
            check_same_arms(records, {("a", "low"): now}, tmp_path)


def test_failed_runs_belong_to_no_configuration(tmp_path: Path):
    check_same_arms({JOB.name: failed(JOB)}, {("a", "low"): {"train.beta": 1.0}}, tmp_path)


def test_the_file_is_json(tmp_path: Path):
    written = Records(tmp_path).write(JOB, finished(JOB, [0.5]))
    assert json.loads((tmp_path / "runs" / f"{JOB.name}.json").read_text()) == written
