"""A job as a process of the real trainer, in a run folder that is gone once its record is written."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from awm.bench.harvest import UnfinishedError, captions, harvest, keep_pictures
from awm.bench.jobs import Job, Record, trainer_arguments
from awm.bench.records import Records
from awm.bench.settings import Settings
from awm.bench.work import Work, num_epochs
from awm.training.metrics import read_metrics

MAX_MESSAGE = 400


@dataclass(frozen=True, slots=True)
class Trainers:
    """Starts jobs.

    Attributes:
        settings: of the comparison.
        records: where results go.
        work: of an epoch of each arm and setting.
        url: of the reward server.
        logs: folder of the runs while they go on.
        keep: whether run folders stay.
        origin: commit, machine and versions, for the records.
        program: what is started with the words of awm-train's command line.
    """

    settings: Settings
    records: Records
    work: Mapping[tuple[str, str], Work]
    url: Callable[[], str]
    logs: Path
    keep: bool
    origin: Mapping[str, Any]
    program: tuple[str, ...] = (sys.executable, "-m", "awm.bench.child")

    def start(self, job: Job) -> TrainerProcess:
        """Start one; where an earlier call left it, if there is a checkpoint."""
        work = self.work[job.arm, job.setting]
        epochs = num_epochs(work, self.settings, job.arm)
        arguments = trainer_arguments(job, self.settings, logdir=str(self.logs), epochs=epochs)
        address = f"--config.reward_server.urls=('{self.url()}',)"
        self.logs.mkdir(parents=True, exist_ok=True)
        with (self.logs / f"{job.name}.log").open("ab") as log:
            process = subprocess.Popen(
                [*self.program, *arguments, address],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=os.environ | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"},
                start_new_session=True,
            )
        return TrainerProcess(self, job, work, epochs, process, shlex.join(["awm-train", *arguments]))


class TrainerProcess:
    """One job that goes on.

    Args:
        trainers: that started it.
        job: what it is.
        work: of its epochs.
        epochs: that it has.
        process: of the trainer.
        command: to get the run again, against a reward server of one's own.
    """

    def __init__(
        self, trainers: Trainers, job: Job, work: Work, epochs: int, process: subprocess.Popen[bytes], command: str
    ) -> None:
        self.job = job
        self._trainers, self._work, self._epochs = trainers, work, epochs
        self._process, self._command, self._started = process, command, time.monotonic()
        self._run = trainers.logs / job.name
        self._log = trainers.logs / f"{job.name}.log"

    def finished(self) -> Record | None:
        """See ``awm.bench.schedule.Running``."""
        status = self._process.poll()
        if status is None:
            return None
        values: dict[str, Any] = {"command": self._command, **self._trainers.origin}
        values["changes"] = dict(self._work.changes)
        values["wall_seconds"] = time.monotonic() - self._started
        try:
            if status:
                raise UnfinishedError(f"exit status {status}: {last_words(self._log)}")
            values = self._harvested(values)
        except (UnfinishedError, OSError, ValueError, KeyError) as error:
            values = {"status": "failed", "message": _message(error)} | values
        record = self._trainers.records.write(self.job, values)
        if record["status"] == "finished" and not self._trainers.keep:
            shutil.rmtree(self._run, ignore_errors=True)
            self._log.unlink(missing_ok=True)
        return record

    def progress(self) -> float:
        """Epochs done; the metrics are small."""
        try:
            lines = read_metrics(self._run / "metrics.jsonl")
        except (OSError, ValueError):
            return 0.0
        return lines[-1]["epoch"] / self._epochs if lines else 0.0

    def interrupt(self, *, at_once: bool) -> None:
        """See ``awm.bench.schedule.Running``."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGKILL if at_once else signal.SIGTERM)
            if at_once:
                self._process.wait()

    def ended(self) -> bool:
        """See ``awm.bench.schedule.Running``."""
        return self._process.poll() is not None

    def _harvested(self, values: Mapping[str, Any]) -> dict[str, Any]:
        evaluated = self.job.stage == "final"
        result = harvest(self._run, self._work, self._epochs, evaluated=evaluated)
        if self.job.pictures:
            pictures = self._trainers.records.pictures(self.job)
            keep_pictures(self._run, self._epochs, pictures)
            keep_pictures(self._run, 0, pictures.with_name("untrained.png"))
            result["captions"] = captions(self._run)
        return {"status": "finished", **values, **result}


def last_words(log: Path) -> str:
    """The last line of a log that says something: the trainer's own message, or the exception it died of."""
    lines = log.read_text(errors="replace").replace("\r", "\n").splitlines() if log.exists() else []
    said = next((line.strip() for line in reversed(lines) if line.strip()), "it said nothing")
    return said[:MAX_MESSAGE]


def _message(error: Exception) -> str:
    return str(error) if isinstance(error, UnfinishedError) else f"{type(error).__name__}: {error}"
