"""The folder of a comparison: one small JSON per run, all that is needed to continue it or to draw its page."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from awm.bench.jobs import Job, Record
from reward_server.process import write_atomically

SIGNIFICANT_DIGITS = 6


class Records:
    """Results by the name of their job.

    Args:
        folder: of the comparison; its ``runs`` is made when something is written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "runs"

    def read(self) -> dict[str, Record]:
        """All of them.

        Raises:
            ValueError: a file is none that ``write`` wrote.
        """
        records: dict[str, Record] = {}
        for path in sorted(self.folder.glob("*.json")):
            try:
                record = json.loads(path.read_text())
                assert record["status"] in ("finished", "failed") and record["name"] == path.stem
            except (ValueError, TypeError, KeyError, AssertionError) as error:
                raise ValueError(f"{path} is damaged; remove it, and its run is made again.") from error
            records[path.stem] = record
        return records

    def write(self, job: Job, values: Mapping[str, Any]) -> Record:
        """Keep what a run left; the old file or the new one survives a kill."""
        identity: dict[str, Any] = {
            "name": job.name,
            "arm": job.arm,
            "setting": job.setting,
            "seed": job.seed,
            "stage": job.stage,
        }
        record = {**identity, **rounded(values)}
        write_atomically(self.folder / f"{job.name}.json", _text(record))
        return record

    def pictures(self, job: Job) -> Path:
        """Where the held-out images of a run are kept, side by side."""
        return self.folder / f"{job.name}.png"


def check_same_arms(
    records: Mapping[str, Record], changes: Mapping[tuple[str, str], Mapping[str, Any]], folder: Path
) -> None:
    """Refuse to mix runs that the present recipes would not make.

    Args:
        records: of the runs so far.
        changes: (arm, setting) -> what distinguishes its configuration from the quickstart's.
        folder: of the comparison.

    Raises:
        ValueError: naming the files, with the command that has them made again.
    """
    stale = {}
    for name, record in records.items():
        now = changes.get((record["arm"], record["setting"]))
        if now is not None and record["status"] == "finished" and record["changes"] != rounded(now):
            before, after = record["changes"], rounded(now)
            key = next(key for key in [*before, *after] if before.get(key) != after.get(key))
            stale[name] = f"{key} was {before.get(key, 'as in the quickstart')}, now {after.get(key, 'as there')}"
    if stale:
        first, why = next(iter(stale.items()))
        files = " ".join(f"{folder}/runs/{name}.*" for name in stale)
        raise ValueError(
            f"{len(stale)} results were made with other configurations than their arms have now ({first}: {why}); to "
            f"run them again: rm {files}"
        )


def rounded(value: Any) -> Any:
    """As JSON knows it, numbers to six significant digits, what is not finite as null."""
    if isinstance(value, Mapping):
        return {key: rounded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(item) for item in value]
    if isinstance(value, float):
        return float(f"{value:.{SIGNIFICANT_DIGITS}g}") if math.isfinite(value) else None
    return value


def _text(record: Mapping[str, Any]) -> str:
    """One line per key and per point of the curve, so that files stay short and their changes readable."""
    lines = []
    for key, value in record.items():
        if isinstance(value, list) and value and isinstance(value[0], dict):
            rows = ",\n  ".join(json.dumps(row, allow_nan=False) for row in value)
            lines.append(f" {json.dumps(key)}: [\n  {rows}\n ]")
        else:
            lines.append(f" {json.dumps(key)}: {json.dumps(value, allow_nan=False)}")
    return "{\n" + ",\n".join(lines) + "\n}\n"
