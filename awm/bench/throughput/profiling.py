"""One more epoch under torch's profiler: a trace and a table of the operations that take longest, for each phase."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from awm.bench.throughput.case import Case

ROWS = 40


def profile_epoch(case: Case, folder: Path, name: str) -> list[Path]:
    """Run an epoch of a warm ``case``; rollout and training leave a trace and a table each.

    Args:
        case: what runs.
        folder: where to; made if missing.
        name: first part of the files' names.

    Returns:
        ``NAME_PHASE.trace.json.gz``, for chrome://tracing or https://ui.perfetto.dev, and ``NAME_PHASE.txt``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])
    by = "self_device_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
    written: list[Path] = []

    @contextmanager
    def around(phase: str) -> Iterator[None]:
        with profile(activities=activities) as found:
            yield
        trace, table = folder / f"{name}_{phase}.trace.json.gz", folder / f"{name}_{phase}.txt"
        found.export_chrome_trace(str(trace))
        table.write_text(found.key_averages().table(sort_by=by, row_limit=ROWS, max_name_column_width=60))
        written.extend((trace, table))

    case.epoch(around)
    return written
