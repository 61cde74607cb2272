"""What MetricsWriter promises: one line per epoch on disk, once, whatever interrupted the run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from awm.training.metrics import MetricsWriter, read_metrics


def writer(folder: Path, **options: Any) -> MetricsWriter:
    return MetricsWriter(folder, config={"seed": 0}, run_name="test", **options)


def epochs(folder: Path) -> list[int]:
    return [record["epoch"] for record in read_metrics(folder / "metrics.jsonl")]


def test_each_epoch_is_one_line_that_reads_back_the_same(tmp_path: Path) -> None:
    log = writer(tmp_path / "new" / "run", trackers=("none",))
    records = [{"epoch": 0, "eval/x": 0.5}, {"epoch": 1, "step": 6, "loss/policy": -0.25}]
    for record in records:
        log.write(record)
    assert read_metrics(tmp_path / "new" / "run" / "metrics.jsonl") == records


def test_nan_and_infinity_become_null_so_that_every_reader_takes_the_file(tmp_path: Path) -> None:
    writer(tmp_path).write({"epoch": 1, "a": float("nan"), "b": float("inf"), "c": None, "d": 1})
    assert json.loads((tmp_path / "metrics.jsonl").read_text()) == {"epoch": 1, "a": None, "b": None, "c": None, "d": 1}


def test_resuming_writes_no_epoch_twice_and_drops_an_unfinished_line(tmp_path: Path) -> None:
    first = writer(tmp_path)
    for epoch in range(5):
        first.write({"epoch": epoch, "run": 1})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"epoch": 5, "rewa')  # killed in the middle of a line
    second = writer(tmp_path, resume_epoch=3)
    assert epochs(tmp_path) == [0, 1, 2]
    second.write({"epoch": 3, "run": 2})
    assert [r["run"] for r in read_metrics(tmp_path / "metrics.jsonl")] == [1, 1, 1, 2]
    assert not list(tmp_path.glob("*.tmp"))


def test_the_last_epoch_can_be_added_to_also_after_resuming(tmp_path: Path) -> None:
    first = writer(tmp_path)
    for epoch in range(3):
        first.write({"epoch": epoch, "loss": 1.0})
    second = writer(tmp_path, resume_epoch=2)
    assert not second.has(1, "eval/")
    second.write({"epoch": 1, "eval/a": 0.5})
    assert second.has(1, "eval/") and not second.has(2, "loss")
    second.write({"epoch": 2, "loss": 2.0})
    expected = [{"epoch": 0, "loss": 1.0}, {"epoch": 1, "loss": 1.0, "eval/a": 0.5}, {"epoch": 2, "loss": 2.0}]
    assert read_metrics(tmp_path / "metrics.jsonl") == expected


def test_a_new_run_in_an_old_folder_starts_empty(tmp_path: Path) -> None:
    writer(tmp_path).write({"epoch": 0})
    writer(tmp_path)
    assert epochs(tmp_path) == []


def test_reading_ignores_an_unfinished_line_but_not_a_broken_one(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"epoch": 0}\n{"epoch": 1')
    assert read_metrics(path) == [{"epoch": 0}]
    path.write_text('{"epoch": 0}\n{"epo\n{"epoch": 2}\n')
    with pytest.raises(ValueError, match=r"line 2 of .*metrics\.jsonl is not JSON"):
        read_metrics(path)
