"""What the scores of an evaluation come to: means by task and over tasks, and the change against the base model."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from awm.held_out.records import Record
from awm.report.statistics import Mean, PairedGain, clustered_mean, mean_of_means, mean_of_tasks, paired_gain

GENEVAL_TASKS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")


def score_names(records: Sequence[Record]) -> list[str]:
    """Every score that some image has or should have."""
    return list(dict.fromkeys(name for record in records for name in record.scores))


def tasks(records: Sequence[Record]) -> list[str]:
    """The tags of the prompts: GenEval's in their usual order, then others as they come."""
    tags = dict.fromkeys(record.tag for record in records if record.tag)
    return [*(tag for tag in GENEVAL_TASKS if tag in tags), *(tag for tag in tags if tag not in GENEVAL_TASKS)]


def mean(records: Sequence[Record], name: str, task: str | None = None) -> Mean:
    """Mean of a score over all images, or those of one task, with its standard error by prompt."""
    chosen = of_task(records, task)
    return clustered_mean([r.scores.get(name) for r in chosen], [r.prompt for r in chosen])


def overall(records: Sequence[Record], name: str) -> Mean:
    """Mean of the tasks' means: GenEval's headline number."""
    return mean_of_means([mean(records, name, task) for task in tasks(records)])


def change(base: Sequence[Record], records: Sequence[Record], name: str, task: str | None = None) -> PairedGain:
    """Paired change of a score between two evaluations of the same items."""
    before, after = of_task(base, task), of_task(records, task)
    return paired_gain(
        [r.scores.get(name) for r in before], [r.scores.get(name) for r in after], [r.prompt for r in after]
    )


def overall_change(base: Sequence[Record], records: Sequence[Record], name: str) -> PairedGain:
    """Mean of the tasks' changes."""
    return mean_of_tasks([change(base, records, name, task) for task in tasks(records)])


def of_task(records: Sequence[Record], task: str | None) -> list[Record]:
    """The records of one task, or all."""
    return [record for record in records if task is None or record.tag == task]


def summarise_records(records: Sequence[Record], base: Sequence[Record] | None = None) -> dict[str, Any]:
    """Everything the table shows, and all other scores, for programs; unknown numbers are None.

    Args:
        records: of the evaluation.
        base: of the base model, the same items, if it was evaluated, too.
    """
    names, found = score_names(records), tasks(records)
    summary: dict[str, Any] = {
        "images": len(records),
        "images_with_an_error": sum(bool(record.error) for record in records),
        "scores": {name: _plain(mean(records, name)) for name in names},
    }
    if found:
        summary["tasks"] = {t: {name: _plain(mean(records, name, t)) for name in names} for t in found}
        summary["mean_of_tasks"] = {name: _plain(overall(records, name)) for name in names}
    if base is not None:
        summary["base"] = summarise_records(base)
        summary["change"] = {"scores": {name: _plain(change(base, records, name)) for name in names}}
        if found:
            summary["change"]["tasks"] = {
                t: {name: _plain(change(base, records, name, t)) for name in names} for t in found
            }
            summary["change"]["mean_of_tasks"] = {name: _plain(overall_change(base, records, name)) for name in names}
    return summary


def _plain(value: Mean | PairedGain) -> Mapping[str, float | int | None]:
    """As JSON has it: no NaN."""
    return {key: v if math.isfinite(v) else None for key, v in asdict(value).items()}
