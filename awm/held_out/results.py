"""The files that sum an evaluation up: ``summary.json`` and ``table.md``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from awm.held_out.identity import FILE
from awm.held_out.records import read_records
from awm.held_out.summary import score_names, summarise_records
from awm.held_out.table import columns, notes, score_table, task_table
from awm.report.text import count

SUMMARY, TABLE = "summary.json", "table.md"


def write_results(out: Path, base: Path | None, rewards: Sequence[str]) -> str:
    """Sum up the scores in ``out``, compared with those in ``base`` if there are any; returns the tables.

    Args:
        out: folder of an evaluation that is complete.
        base: folder of the base model's.
        rewards: names in ``reward_fn``.
    """
    records = read_records(out)
    of_base = None if base is None else read_records(base)
    identity = json.loads((out / FILE).read_text())
    summary = {"evaluation": identity, **summarise_records(records, of_base)}
    (out / SUMMARY).write_text(json.dumps(summary, indent=2, allow_nan=False) + "\n")
    shown = columns(records, rewards)
    parts = [f"{identity['label']}, {count(len(records), 'image')}", task_table(records, shown, of_base)]
    if len(score_names(records)) > len(shown):
        parts.append(score_table(records, of_base))
    parts.append(notes(records, of_base is not None))
    text = "\n\n".join(parts)
    (out / TABLE).write_text(text + "\n", encoding="utf-8")
    return text
