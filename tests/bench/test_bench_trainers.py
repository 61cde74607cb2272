"""A job as a process: its record, its failure, its interruption, and what is left on disk."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from made_up import GRID, ORIGIN, an_arm, settings

from awm.bench.jobs import Record, final_jobs, tuning_jobs
from awm.bench.records import Records
from awm.bench.trainers import TrainerProcess, Trainers, last_words
from awm.bench.work import Work

ARM = an_arm("awm")
SETTINGS = settings(images=16, evaluations=2, seeds=(0, 9))
LOW, HIGH = tuning_jobs("a", ARM, SETTINGS)
FINAL = final_jobs("a", ARM, GRID[0], SETTINGS)
FAKE = (sys.executable, str(Path(__file__).with_name("fake_trainer.py")))


def trainers(folder: Path, **values: Any) -> Trainers:
    work = {("a", setting.name): Work(images=4, operations=1e9) for setting in GRID}
    options: dict[str, Any] = {"keep": False, "origin": ORIGIN, "program": FAKE} | values
    return Trainers(SETTINGS, Records(folder), work, lambda: "http://fake:1", folder / "logs", **options)


def wait(process: TrainerProcess, seconds: float = 60.0) -> Record:
    deadline = time.monotonic() + seconds
    while (record := process.finished()) is None:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return record


def test_a_run_leaves_its_record_and_pictures_and_nothing_big(tmp_path: Path):
    record = wait(trainers(tmp_path).start(FINAL[0]))
    assert record["status"] == "finished" and record["epochs"] == 4 and record["commit"] == "abc123"
    assert [point["images"] for point in record["curve"]] == [0, 8, 16]
    assert Records(tmp_path).read() == {FINAL[0].name: record}
    assert {path.name for path in (tmp_path / "runs").iterdir()} == {
        f"{FINAL[0].name}.json",
        f"{FINAL[0].name}.png",
        "untrained.png",
    }
    assert list((tmp_path / "logs").iterdir()) == []


def test_run_folders_stay_if_asked_for(tmp_path: Path):
    wait(trainers(tmp_path, keep=True).start(LOW))
    assert (tmp_path / "logs" / LOW.name / "metrics.jsonl").exists()


def test_the_command_in_the_record_names_no_server_of_the_moment(tmp_path: Path):
    record = wait(trainers(tmp_path).start(LOW))
    assert record["command"].startswith("awm-train --config=config/awm.py:quickstart")
    assert "http" not in record["command"] and "curve" not in record


def test_a_failure_says_what_the_trainer_said_last_and_keeps_its_log(tmp_path: Path):
    record = wait(trainers(tmp_path).start(HIGH))
    assert record["status"] == "failed"
    assert record["message"] == "exit status 1: awm-train: the loss of step 3 is not finite"
    assert Records(tmp_path).read()[HIGH.name] == record
    assert "starting" in (tmp_path / "logs" / f"{HIGH.name}.log").read_text()


def test_a_trainer_that_ends_well_but_too_early_has_failed(tmp_path: Path):
    record = wait(trainers(tmp_path, program=(sys.executable, "-c", "")).start(LOW))
    assert record["status"] == "failed" and "4 of 4 epochs are missing" in record["message"]


def test_an_interrupted_run_leaves_no_record_and_is_continued(tmp_path: Path):
    waiting = FINAL[1]
    process = trainers(tmp_path).start(waiting)
    while not (tmp_path / "logs" / waiting.name / "checkpoint").exists():
        time.sleep(0.02)
    assert process.finished() is None and not process.ended()
    process.interrupt(at_once=False)
    while not process.ended():
        time.sleep(0.02)
    assert Records(tmp_path).read() == {}
    assert wait(trainers(tmp_path).start(waiting))["status"] == "finished"


def test_a_trainer_that_must_end_at_once_is_gone_when_interrupt_returns(tmp_path: Path):
    process = trainers(tmp_path, program=(sys.executable, "-c", "import time; time.sleep(600)")).start(LOW)
    process.interrupt(at_once=True)
    assert process.ended()


def test_progress_is_that_of_the_epochs(tmp_path: Path):
    process = trainers(tmp_path, program=(sys.executable, "-c", "import time; time.sleep(600)")).start(LOW)
    try:
        assert process.progress() == 0.0
        (tmp_path / "logs" / LOW.name).mkdir()
        (tmp_path / "logs" / LOW.name / "metrics.jsonl").write_text('{"epoch": 0}\n{"epoch": 1}\n{"epo')
        assert process.progress() == 0.25
    finally:
        process.interrupt(at_once=True)


def test_a_trainer_does_not_outlive_a_benchmark_that_is_killed(tmp_path: Path):
    child = "from reward_server.process import exit_with_parent; exit_with_parent(); import time; time.sleep(600)"
    code = (
        f"import subprocess, sys, time; print(subprocess.Popen([sys.executable, '-c', {child!r}], "
        "start_new_session=True).pid, flush=True); time.sleep(600)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as benchmark:
        assert benchmark.stdout is not None
        trainer = int(benchmark.stdout.readline())
        time.sleep(1.0)
        benchmark.kill()
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        try:
            os.kill(trainer, 0)
        except ProcessLookupError:
            return
        if Path(f"/proc/{trainer}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
            return
        time.sleep(0.1)
    os.kill(trainer, signal.SIGKILL)
    pytest.fail("it is still there")


@pytest.mark.parametrize(
    "text, said",
    [("a\nb\n\n", "b"), ("10%\r20%\rwhat broke\n", "what broke"), ("", "it said nothing"), ("x" * 900, "x" * 400)],
)
def test_last_words(tmp_path: Path, text: str, said: str):
    (tmp_path / "log").write_text(text)
    assert last_words(tmp_path / "log") == said


def test_without_a_log_nothing_was_said(tmp_path: Path):
    assert last_words(tmp_path / "log") == "it said nothing"
