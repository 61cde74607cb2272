"""What a run logs: ``metrics.jsonl``, one JSON object per epoch, and optionally TensorBoard or Weights & Biases."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from awm.training.trackers import Trackers

Metrics = Mapping[str, float | int | None]


class MetricsWriter:
    """Writes each epoch's metrics to ``<folder>/metrics.jsonl`` and to the trackers; for the main rank only.

    No epoch is there twice: opening it removes what an interrupted run left from ``resume_epoch`` on, and writing
    the last epoch again adds to its line.

    Args:
        folder: the run folder; created if missing.
        trackers: any of tensorboard, wandb, none.
        config: resolved configuration, shown by wandb.
        run_name: name shown by wandb.
        resume_epoch: first epoch that this process will write; 0 for a new run.
    """

    def __init__(
        self,
        folder: Path,
        *,
        trackers: Sequence[str] = (),
        config: Mapping[str, Any],
        run_name: str,
        resume_epoch: int = 0,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / "metrics.jsonl"
        self._trackers = Trackers(trackers, folder, config=config, run_name=run_name, resume_epoch=resume_epoch)
        kept = _keep_epochs_before(self.path, resume_epoch)
        self._last: Metrics = kept[-1] if kept else {}

    def has(self, epoch: int, prefix: str) -> bool:
        """Whether ``epoch`` is the last one written, with a metric whose name starts with ``prefix``."""
        return self._last.get("epoch") == epoch and any(name.startswith(prefix) for name in self._last)

    def write(self, metrics: Metrics) -> None:
        """Append one epoch, or add to the last one; on disk when this returns. NaN and infinity become null.

        Args:
            metrics: name -> number; must have ``epoch``.
        """
        record = {name: _finite(value) for name, value in metrics.items()}
        known = {name: value for name, value in record.items() if value is not None}
        if self._last.get("epoch") == record["epoch"]:
            record = {**self._last, **record}
            _rewrite(self.path, [*_epochs_before(self.path, int(metrics["epoch"] or 0)), record])
        else:
            with self.path.open("a", encoding="utf-8") as file:
                _write_lines(file, [record])
        self._last = record
        self._trackers.write(int(metrics["epoch"] or 0), known)

    def close(self) -> None:
        """Close the trackers; ``metrics.jsonl`` is complete after every ``write``."""
        self._trackers.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """All complete JSON lines of ``path``, in order; an unfinished last line, left by a kill, is ignored."""
    lines = path.read_bytes().split(b"\n")
    records = []
    for number, line in enumerate(lines[:-1], start=1):  # whatever follows the last newline is unfinished
        try:
            records.append(json.loads(line))
        except ValueError as error:
            raise ValueError(f"line {number} of {path} is not JSON ({error}). Repair or delete that line.") from error
    return records


def _keep_epochs_before(path: Path, epoch: int) -> list[dict[str, Any]]:
    """Drop later epochs and an unfinished line; returns the others."""
    if not path.exists():
        return []
    kept = _epochs_before(path, epoch)
    _rewrite(path, kept)
    return kept


def _epochs_before(path: Path, epoch: int) -> list[dict[str, Any]]:
    return [record for record in read_metrics(path) if record["epoch"] < epoch]


def _rewrite(path: Path, records: Iterable[Metrics]) -> None:
    """The old file or the new one survives a kill, never a mixture."""
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("w", encoding="utf-8") as file:
        _write_lines(file, records)
    os.replace(temporary, path)


def _write_lines(file: TextIO, records: Iterable[Metrics]) -> None:
    file.writelines(json.dumps(record, allow_nan=False) + "\n" for record in records)
    file.flush()
    os.fsync(file.fileno())


def _finite(value: float | int | None) -> float | int | None:
    if value is None or isinstance(value, int):
        return value
    number = float(value)
    return number if math.isfinite(number) else None
