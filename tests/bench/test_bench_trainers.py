"""A job as a process: its record, its failure, its interruption, and what is left on disk."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from made_up import GRID, ORIGIN, an_arm, settings, write_run

from awm.bench.arms import Setting
from awm.bench.identity import digest
from awm.bench.jobs import Record, final_jobs, tuning_jobs
from awm.bench.records import Records
from awm.bench.trainers import MADE_WITH, TrainerProcess, Trainers, last_words, non_finite, prepare
from awm.bench.work import Work

BREAKS = Setting("breaks", ("--config.train.learning_rate=3e-3",))
ARM = an_arm("awm", (*GRID, BREAKS))
SETTINGS = settings(images=16, evaluations=2, seeds=(0, 9))
LOW, HIGH, BROKEN = tuning_jobs("a", ARM, SETTINGS)
FINAL = final_jobs("a", ARM, GRID[0], SETTINGS)
FAKE = (sys.executable, str(Path(__file__).with_name("fake_trainer.py")))


def trainers(folder: Path, **values: Any) -> Trainers:
    work = {("a", setting.name): Work(images=4, operations=1e9) for setting in ARM.grid}
    options: dict[str, Any] = {"keep": False, "origin": ORIGIN, "program": FAKE} | values
    return Trainers(SETTINGS, Records(folder), work, lambda: "http://fake:1", folder / "logs", **options)


def read(folder: Path) -> dict[str, Record]:
    jobs = {job.name: job for job in (LOW, HIGH, BROKEN, *FINAL)}
    return Records(folder).read(jobs, lambda job: digest(job, SETTINGS))


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
    assert read(tmp_path) == {FINAL[0].name: record}
    assert {path.name for path in (tmp_path / "records").iterdir()} == {
        f"{FINAL[0].name}.json",
        f"{FINAL[0].name}.jpg",
        "untrained.jpg",
    }
    assert list((tmp_path / "logs").iterdir()) == []


def test_run_folders_stay_if_asked_for(tmp_path: Path):
    wait(trainers(tmp_path, keep=True).start(LOW))
    assert (tmp_path / "logs" / LOW.name / "metrics.jsonl").exists()


def test_the_command_in_the_record_names_no_server_of_the_moment(tmp_path: Path):
    record = wait(trainers(tmp_path).start(LOW))
    assert record["command"].startswith("awm-train --config=config/awm.py:quickstart")
    assert "http" not in record["command"] and "curve" not in record


def test_a_tuning_run_has_half_of_the_images(tmp_path: Path):
    assert wait(trainers(tmp_path).start(LOW))["training_reward"] == [0.1, 0.2]


def test_a_broken_run_says_what_the_trainer_said_last_and_keeps_its_log(tmp_path: Path):
    record = wait(trainers(tmp_path).start(BROKEN))
    assert record["status"] == "broken"
    assert record["message"] == "exit status 1: awm-train: no more memory"
    assert read(tmp_path)[BROKEN.name] == record
    assert "starting" in (tmp_path / "logs" / f"{BROKEN.name}.log").read_text()


def test_a_run_that_diverged_is_a_result_with_its_last_evaluation(tmp_path: Path):
    job = final_jobs("a", ARM, GRID[1], SETTINGS)[0]
    record = wait(trainers(tmp_path).start(job))
    assert record["status"] == "diverged" and record["message"] == "non-finite loss on rank 0 in epoch 2"
    assert record["epochs"] == 4 and [point["score"] for point in record["curve"]] == [0.4]
    assert (tmp_path / "records" / f"{job.name}.jpg").exists() and list((tmp_path / "logs").iterdir()) == []


def test_what_the_real_trainer_says_of_a_loss_that_is_not_finite_is_understood(tmp_path: Path):
    code = (
        "import sys; from awm.training.ending import report; from awm.training.update import NonFiniteLossError; "
        "error = NonFiniteLossError('non-finite loss in epoch 3 (norm 0.5; nan). The epoch was abandoned. Do better'); "
        "sys.exit(report(error, None, '; saved'))"
    )
    with (tmp_path / "log").open("wb") as log:
        assert subprocess.run([sys.executable, "-c", code], stdout=log, stderr=log).returncode == 1
    assert non_finite(tmp_path / "log") == "non-finite loss in epoch 3 (norm 0.5; nan)"
    assert non_finite(tmp_path / "nothing") is None


def test_a_trainer_that_ends_well_but_too_early_is_broken(tmp_path: Path):
    record = wait(trainers(tmp_path, program=(sys.executable, "-c", "")).start(LOW))
    assert record["status"] == "broken" and "2 of 2 epochs are missing" in record["message"]


@pytest.mark.parametrize("name, value", [("digest", "another"), ("commit", "another"), ("clean", False)])
def test_a_run_folder_of_other_code_or_another_configuration_is_not_continued(tmp_path: Path, name: str, value: object):
    now = {"commit": "abc123", "clean": True, "digest": "d"}
    run, log = tmp_path / LOW.name, tmp_path / f"{LOW.name}.log"
    prepare(run, now)
    (run / "checkpoint").touch()
    log.write_text("NonFiniteLossError: of that run")
    prepare(run, now)
    assert (run / "checkpoint").exists() and log.exists()
    prepare(run, now | {name: value})
    assert not (run / "checkpoint").exists() and not log.exists()


def test_a_run_folder_that_says_nothing_of_its_origin_is_not_continued(tmp_path: Path):
    old = write_run(tmp_path / LOW.name) / "checkpoint"
    old.touch()
    prepare(tmp_path / LOW.name, {"commit": None})
    assert not old.exists()


def test_a_run_folder_says_what_it_is_made_with_from_the_start(tmp_path: Path):
    process = trainers(tmp_path, program=(sys.executable, "-c", "import time; time.sleep(600)")).start(LOW)
    process.interrupt(at_once=True)
    made_with = json.loads((tmp_path / "logs" / LOW.name / MADE_WITH).read_text())
    assert made_with == {"commit": "abc123", "clean": True, "digest": digest(LOW, SETTINGS)}


def test_an_interrupted_run_leaves_no_record_and_is_continued(tmp_path: Path):
    waiting = FINAL[1]
    process = trainers(tmp_path).start(waiting)
    while not (tmp_path / "logs" / waiting.name / "checkpoint").exists():
        time.sleep(0.02)
    assert process.finished() is None and not process.ended()
    process.interrupt(at_once=False)
    while not process.ended():
        time.sleep(0.02)
    assert read(tmp_path) == {}
    assert wait(trainers(tmp_path).start(waiting))["status"] == "finished"


def test_a_trainer_that_must_end_at_once_is_gone_when_interrupt_returns(tmp_path: Path):
    process = trainers(tmp_path, program=(sys.executable, "-c", "import time; time.sleep(600)")).start(LOW)
    process.interrupt(at_once=True)
    assert process.ended()


def test_progress_is_that_of_the_epochs(tmp_path: Path):
    process = trainers(tmp_path, program=(sys.executable, "-c", "import time; time.sleep(600)")).start(LOW)
    try:
        assert process.progress() == 0.0
        (tmp_path / "logs" / LOW.name / "metrics.jsonl").write_text('{"epoch": 0}\n{"epoch": 1}\n{"epo')
        assert process.progress() == 0.5
    finally:
        process.interrupt(at_once=True)


def test_a_trainer_does_not_outlive_a_benchmark_that_is_killed(tmp_path: Path):
    # The trainer's main function is replaced by one that waits; the rest is the module that benchmarks start.
    child = (
        "import sys, time, types; trainer = types.ModuleType('awm.train'); trainer.main = lambda: time.sleep(600); "
        "sys.modules['awm.train'] = trainer; import runpy; runpy.run_module('awm.bench.child', run_name='__main__')"
    )
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
