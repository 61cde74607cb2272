"""What a person watches: nested progress bars on a terminal, and how long the rest will take."""

from __future__ import annotations

import statistics
import sys
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from tqdm import tqdm

from awm.training.settings import Schedule

RECENT = 20  # epochs whose median predicts the next one


@contextmanager
def progress_bar(label: str, total: int, shown: bool) -> Iterator[Callable[[int], object]]:
    """Yields a function to call with the number of images done since the last call; draws on terminals only."""
    with tqdm(total=total, desc=label, unit="img", leave=False, disable=None if shown else True) as bar:
        yield bar.update


class RunProgress:
    """A bar over the run's epochs, with the bar of the phase it is in below; nothing where no terminal is.

    Args:
        num_epochs: of the run.
        shown: whether this rank may draw.
    """

    def __init__(self, num_epochs: int, shown: bool) -> None:
        self._num_epochs, self._shown = num_epochs, shown and sys.stderr.isatty()
        self._epochs: tqdm[object] | None = None

    @contextmanager
    def phase(self, epoch: int, what: str, total: int) -> Iterator[Callable[[int], object]]:
        """A bar over ``total`` images in ``epoch`` (counted from 1)."""
        if self._shown and self._epochs is None:
            self._epochs = tqdm(
                total=self._num_epochs,
                initial=max(epoch - 1, 0),
                desc="epochs",
                leave=False,
                bar_format="{desc} {n_fmt}/{total_fmt} |{bar}| {elapsed} gone{postfix}",
            )
        with progress_bar(f"{what:>10}", total, self._shown) as advance:
            yield advance

    def epoch_done(self, epoch: int, remaining_s: float | None) -> None:
        """Move the upper bar to ``epoch`` completed epochs."""
        if self._epochs is not None:
            if remaining_s is not None:
                self._epochs.set_postfix_str(f"{duration(remaining_s)} left", refresh=False)
            self._epochs.n = epoch
            self._epochs.refresh()

    def close(self) -> None:
        """Leave the terminal to others."""
        if self._epochs is not None:
            self._epochs.close()
            self._epochs = None


class Pace:
    """Predicts the rest of a run from what its epochs, evaluations and checkpoints have taken so far.

    Args:
        schedule: what is still to come.
    """

    def __init__(self, schedule: Schedule) -> None:
        self._schedule = schedule
        self._epochs: deque[float] = deque(maxlen=RECENT)
        self._evaluation = self._saving = 0.0

    def note(self, metrics: Mapping[str, float | int | None]) -> None:
        """Learn from the times in one epoch's metrics."""
        if (seconds := metrics.get("time/epoch_s")) is not None:
            self._epochs.append(seconds)
        self._evaluation = metrics.get("time/eval_s") or self._evaluation
        self._saving = metrics.get("time/save_s") or self._saving

    def remaining_s(self, epoch: int) -> float | None:
        """Seconds until the end after ``epoch`` completed epochs; None before the first one is over."""
        if not self._epochs:
            return None
        schedule, total = self._schedule, self._schedule.num_epochs
        evaluations = _events(epoch, total, schedule.eval_freq) if schedule.evaluates else 0
        return (
            (total - epoch) * statistics.median(self._epochs)
            + evaluations * self._evaluation
            + _events(epoch, total, schedule.save_freq) * self._saving
        )


def duration(seconds: float) -> str:
    """Seconds as a person says them: 4.2s, 42s, 7m05s, 1h23m, 3d04h."""
    if seconds < 10:
        return f"{seconds:.1f}s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02}s"
    minutes = whole // 60
    if minutes < 24 * 60:
        return f"{minutes // 60}h{minutes % 60:02}m"
    return f"{minutes // 1440}d{minutes % 1440 // 60:02}h"


def _events(epoch: int, total: int, every: int) -> int:
    """Multiples of ``every`` among the epochs after ``epoch``, and the last epoch in any case."""
    return total // every - epoch // every + (total % every != 0 and epoch < total)
