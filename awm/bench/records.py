"""The folder of a comparison: one small JSON per run, all that is needed to continue it or to draw its page."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from awm.bench.jobs import Job, Record
from awm.report.text import count
from reward_server.process import write_atomically

SIGNIFICANT_DIGITS = 6
STATUSES = ("finished", "diverged", "broken")


class Records:
    """Results by the name of their job.

    Args:
        folder: of the comparison; its ``records`` is made when something is written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "records"

    def read(self, jobs: Mapping[str, Job], digest: Callable[[Job], str]) -> dict[str, Record]:
        """Those of ``jobs``; a damaged file is told of and left out, so that its run is made again.

        Args:
            jobs: everything that the comparison may consist of, by name.
            digest: of the configuration that a job has now.

        Raises:
            ValueError: some were made with another configuration; with the command that has them made again.
        """
        records: dict[str, Record] = {}
        for path in sorted(self.folder.glob("*.json")):
            if path.stem not in jobs:
                continue
            try:
                record = json.loads(path.read_text())
                assert record["status"] in STATUSES and record["name"] == path.stem and record["digest"]
            except (ValueError, TypeError, KeyError, AssertionError):
                print(f"{path} is damaged and left out; its run has to be made again.", file=sys.stderr)
                continue
            records[path.stem] = record
        stale = [name for name, record in records.items() if record["digest"] != digest(jobs[name])]
        if stale:
            top = self.folder.parent
            files = " ".join(f"{self.folder}/{name}.* {top}/logs/{name} {top}/logs/{name}.log" for name in stale)
            raise ValueError(
                f"{count(len(stale), 'result')} in {self.folder} of another configuration than these arms have now; to "
                f"make them again: rm -rf {files}"
            )
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

    def pictures(self, name: str) -> Path:
        """Where the held-out images of a run are kept, side by side."""
        return self.folder / f"{name}.jpg"


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
