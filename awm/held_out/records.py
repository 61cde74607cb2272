"""One line of ``scores.jsonl``, and the part files it is put together from, which survive a kill at any moment."""

from __future__ import annotations

import json
import os
import shutil
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

SCORES, PARTS = "scores.jsonl", "parts"


@dataclass(frozen=True, slots=True)
class Record:
    """One scored image.

    Attributes:
        index: its place in the evaluation.
        prompt: the text.
        tag: its task, or "".
        copy: the text's image, counted from 0.
        scores: every reward and sub-score; None where it could not be computed.
        error: why some score is missing; "" if none is.
        image: file, relative to the folder of ``scores.jsonl``; None if it was not kept.
    """

    index: int
    prompt: str
    tag: str
    copy: int
    scores: Mapping[str, float | None]
    error: str = ""
    image: str | None = None

    def line(self) -> str:
        """As JSON."""
        return json.dumps(asdict(self), allow_nan=False)


def write_records(folder: Path, records: Iterable[Record]) -> None:
    """Write ``scores.jsonl`` in order: the old file or the whole new one survives a kill."""
    temporary = folder / f"{SCORES}.tmp"
    with temporary.open("w", encoding="utf-8") as file:
        file.writelines(record.line() + "\n" for record in sorted(records, key=lambda record: record.index))
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, folder / SCORES)


def read_records(folder: Path) -> list[Record]:
    """What ``scores.jsonl`` holds.

    Raises:
        ValueError: a line is not one that ``write_records`` wrote.
    """
    path = folder / SCORES
    try:
        return [Record(**json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path} is damaged ({error}); evaluate again with --restart.") from error


class PartFiles:
    """The batches finished so far, of a folder whose ``scores.jsonl`` is still to come.

    Every process of every launch has a file of its own, so that none touches what another wrote. A line holds a
    whole batch; one that a kill cut short counts as not written.

    Args:
        folder: where ``scores.jsonl`` will be.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder / PARTS

    def read(self) -> dict[int, Record]:
        """All finished images by index.

        Raises:
            ValueError: a line in the middle is not one that was written.
        """
        records = {}
        for file in sorted(self._folder.glob("*.jsonl")):
            try:
                for line in file.read_bytes().split(b"\n")[:-1]:
                    records.update({values["index"]: Record(**values) for values in json.loads(line)})
            except (ValueError, TypeError, KeyError) as error:
                raise ValueError(f"{file} is damaged ({error}); remove it, and its images are made again.") from error
        return records

    def next_launch(self) -> int:
        """A number no earlier launch has used."""
        return 1 + max((int(file.name.partition("-")[0]) for file in self._folder.glob("*.jsonl")), default=0)

    def writer(self, launch: int, rank: int) -> PartWriter:
        """Where this process writes."""
        self._folder.mkdir(parents=True, exist_ok=True)
        return PartWriter(self._folder / f"{launch:04d}-{rank:05d}.jsonl")

    def remove(self) -> None:
        """Drop them, after ``scores.jsonl`` is written."""
        shutil.rmtree(self._folder, ignore_errors=True)


class PartWriter:
    """Appends finished batches to one file; may be called from several threads.

    Args:
        path: the file.

    Attributes:
        records: everything written.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._lock = path, threading.Lock()
        self.records: list[Record] = []

    def write(self, batch: Sequence[Record]) -> None:
        """Add a batch; it is on disk when this returns."""
        line = json.dumps([asdict(record) for record in batch], allow_nan=False) + "\n"
        with self._lock:
            with self._path.open("ab") as file:
                whole = file.tell()
                try:
                    file.write(line.encode())
                    file.flush()
                    os.fsync(file.fileno())
                except OSError:  # a full disk; another thread's line must not continue half of this one
                    file.truncate(whole)
                    raise
            self.records += batch
