"""What the terminal shows: a line when a run starts or ends, and one that says how far everything is."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from typing import TextIO

from awm.bench.jobs import SCORE, Job, Record, tuning_score
from awm.bench.schedule import Running
from awm.report.text import count, duration

QUIET_S = 60.0  # between status lines where nothing can be redrawn
BAR = 12  # characters
NO_SPEED_S = 20.0  # before this, an estimate would be a guess


class Board:
    """Events as lines; below them, on a terminal, a bar for each running job and the time left.

    Args:
        total: jobs of this call.
        file: where to write; None for stderr.
        clock: seconds.
    """

    def __init__(self, total: int, file: TextIO | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._total, self._file, self._clock = total, file or sys.stderr, clock
        self._live = self._file.isatty()
        self._drawn = 0  # lines of the live part
        self._begun, self._spoke = clock(), -QUIET_S
        self._over = 0
        self._first: dict[str, float] = {}  # job -> how far an earlier call had brought it

    def started(self, job: Job) -> None:
        """See ``awm.bench.schedule.Display``."""
        self._say(f"started  {job.name}")

    def ended(self, job: Job, record: Record) -> None:
        """See ``awm.bench.schedule.Display``."""
        self._over += 1
        if record["status"] != "finished":
            self._say(f"{record['status'].upper():<8} {job.name}: {record['message']}")
        elif job.stage == "tune":
            self._say(f"tuned    {job.name}: training reward {tuning_score(record):.3f}")
        else:
            before, after = record["curve"][0]["score"], record["curve"][-1]["score"]
            self._say(f"finished {job.name}: held-out {SCORE} {before:.3f} -> {after:.3f}")

    def show(self, running: Sequence[Running], left: int) -> None:
        """See ``awm.bench.schedule.Display``."""
        parts = {each.job.name: each.progress() for each in running}
        summary = self._summary(parts, left)
        if self._live:
            self._erase()
            lines = [f"{_bar(part)} {part:4.0%}  {name}" for name, part in parts.items()]
            print("\n".join([*lines, summary]), file=self._file, flush=True)
            self._drawn = len(lines) + 1
        elif self._clock() - self._spoke >= QUIET_S:
            self._spoke = self._clock()
            doing = ", ".join(f"{name} {part:.0%}" for name, part in parts.items())
            print(f"{summary}; now {doing}", file=self._file, flush=True)

    def stopping(self) -> None:
        """See ``awm.bench.schedule.Display``."""
        self._say(
            "stopping: the running jobs save; once more ends them at once. The same command goes on where this stopped."
        )

    def _summary(self, parts: dict[str, float], left: int) -> str:
        for name, part in parts.items():
            self._first.setdefault(name, part)
        elapsed = self._clock() - self._begun
        done = self._over + sum(part - self._first[name] for name, part in parts.items())
        remaining = left + sum(1 - part for part in parts.values())
        rest = f"about {duration(remaining * elapsed / done)} left" if done > 0 and elapsed > NO_SPEED_S else "started"
        return f"{self._over} of {count(max(self._total, self._over), 'run')} done, {rest}"

    def _say(self, line: str) -> None:
        self._erase()
        print(line, file=self._file, flush=True)

    def _erase(self) -> None:
        if self._drawn:
            self._file.write(f"\x1b[{self._drawn}A\x1b[J")
            self._drawn = 0


def _bar(part: float) -> str:
    full = round(part * BAR)
    return "█" * full + "░" * (BAR - full)
