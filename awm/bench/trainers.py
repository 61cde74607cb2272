"""A job as a process of the real trainer, in a run folder that is gone once its record is written."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from awm.bench.harvest import UnfinishedError, harvest, keep_pictures
from awm.bench.identity import changes, digest
from awm.bench.jobs import Job, Record, trainer_arguments
from awm.bench.records import Records
from awm.bench.settings import Settings
from awm.bench.work import Work, num_epochs
from awm.training.metrics import read_metrics

MAX_MESSAGE = 400
MADE_WITH = "made_with.json"
DIVERGED = re.compile(r"NonFiniteLossError: (.*?)(?:\. The epoch was abandoned.*)?$", re.MULTILINE)
"""What awm-train says of a loss or gradient that is not finite: a result, not an accident."""


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
        epochs = num_epochs(work, self.settings, job.arm, job.stage)
        arguments = trainer_arguments(job, self.settings, logdir=str(self.logs), epochs=epochs)
        address = f"--config.reward_server.urls=('{self.url()}',)"
        made_with = {name: self.origin.get(name) for name in ("commit", "clean")} | {
            "digest": digest(job, self.settings)
        }
        prepare(self.logs / job.name, made_with)
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
        self._process, self._command = process, command
        self._run = trainers.logs / job.name
        self._log = trainers.logs / f"{job.name}.log"

    def finished(self) -> Record | None:
        """See ``awm.bench.schedule.Running``."""
        status = self._process.poll()
        if status is None:
            return None
        settings = self._trainers.settings
        made = {"command": self._command, **self._trainers.origin, "digest": digest(self.job, settings)}
        diverged = non_finite(self._log) if status else None
        try:
            if status and diverged is None:
                raise UnfinishedError(f"exit status {status}: {last_words(self._log)}")
            outcome = {"status": "finished"} if diverged is None else {"status": "diverged", "message": diverged}
            made["changes"] = changes(self.job, settings)
            result = {**outcome, **made, **self._harvested(diverged=diverged is not None)}
        except (UnfinishedError, OSError, ValueError, KeyError) as error:
            result = {"status": "broken", "message": _message(error), **made}
        record = self._trainers.records.write(self.job, result)
        if record["status"] != "broken" and not self._trainers.keep:
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

    def _harvested(self, *, diverged: bool) -> dict[str, Any]:
        evaluated = self.job.stage == "final"
        result = harvest(self._run, self._work, self._epochs, evaluated=evaluated, diverged=diverged)
        if evaluated:
            records = self._trainers.records
            keep_pictures(self._run, result["curve"][-1]["epoch"], records.pictures(self.job.name))
            keep_pictures(self._run, 0, records.pictures("untrained"))
        return result


def prepare(run: Path, made_with: Mapping[str, Any]) -> None:
    """Leave in ``run`` and its log only what the same code and configuration began, which the trainer continues."""
    stamp = run / MADE_WITH
    text = json.dumps(made_with) + "\n"
    if not stamp.exists() or stamp.read_text() != text:
        shutil.rmtree(run, ignore_errors=True)
        run.with_name(f"{run.name}.log").unlink(missing_ok=True)
        run.mkdir(parents=True)
        stamp.write_text(text)


def non_finite(log: Path) -> str | None:
    """What the trainer said if its loss or gradient was not finite."""
    found = DIVERGED.search(log.read_text(errors="replace")) if log.exists() else None
    return found[1][:MAX_MESSAGE] if found else None


def last_words(log: Path) -> str:
    """The last line of a log that says something: the trainer's own message, or the exception it died of."""
    lines = log.read_text(errors="replace").replace("\r", "\n").splitlines() if log.exists() else []
    said = next((line.strip() for line in reversed(lines) if line.strip()), "it said nothing")
    return said[:MAX_MESSAGE]


def _message(error: Exception) -> str:
    return str(error) if isinstance(error, UnfinishedError) else f"{type(error).__name__}: {error}"
