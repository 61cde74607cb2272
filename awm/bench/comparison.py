"""All records -> the arms side by side, each by the runs with its chosen setting."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from awm.bench.arms import Arm
from awm.bench.jobs import Record, best_setting, final_jobs, tuning_jobs, tuning_score
from awm.bench.rows import Row, arm_row, final_score
from awm.bench.settings import Settings

LEVELS = (0.25, 0.5, 0.75)
"""Thresholds: these parts of the way from the untrained model to the best arm."""


@dataclass(frozen=True, slots=True)
class Tuning:
    """How an arm's setting was chosen: setting -> training reward late in its run, None where that failed."""

    arm: str
    title: str
    tried: Mapping[str, float | None]
    chosen: str | None


@dataclass(frozen=True, slots=True)
class Comparison:
    """Everything the page shows.

    Attributes:
        rows: the best first; arms without a finished run are not there.
        tunings: of all arms with a result.
        base: held-out score of the untrained model.
        same_base: whether all runs found the same one, as they must.
        thresholds: scores that it takes images and seconds to reach.
        seconds: at which scores are compared.
        flops: at which scores are compared.
        missing: arm -> reported seeds without a finished run, of arms that have some.
        failed: records of failed runs.
    """

    rows: tuple[Row, ...]
    tunings: tuple[Tuning, ...]
    base: float
    same_base: bool
    thresholds: tuple[float, ...]
    seconds: float
    flops: float
    missing: Mapping[str, tuple[int, ...]]
    failed: tuple[Record, ...]


def compare(arms: Mapping[str, Arm], settings: Settings, records: Mapping[str, Record]) -> Comparison:
    """Put the arms side by side.

    Args:
        arms: the table.
        settings: of the comparison.
        records: of all its runs.
    """
    chosen = {name: best_setting(name, arm, settings, records) for name, arm in arms.items()}
    runs: dict[str, list[Record]] = {}
    missing: dict[str, tuple[int, ...]] = {}
    for name, arm in arms.items():
        setting = chosen[name]
        jobs = final_jobs(name, arm, setting, settings) if setting else []
        found = [records[j.name] for j in jobs if j.name in records and records[j.name]["status"] == "finished"]
        if found:
            runs[name] = found
            seeds = {record["seed"] for record in found}
            if len(seeds) < len(settings.reported):
                missing[name] = tuple(seed for seed in settings.reported if seed not in seeds)
    every = [record for group in runs.values() for record in group]
    bases = {record["curve"][0]["score"] for record in every}
    base = min(bases) if bases else math.nan
    best = max((final_score(group).mean for group in runs.values()), default=math.nan)
    thresholds = tuple(base + level * (best - base) for level in LEVELS) if best > base else ()
    seconds = settings.seconds or min((record["curve"][-1]["seconds"] for record in every), default=math.nan)
    flops = min((record["curve"][-1]["flops"] for record in every), default=math.nan)
    rows = [
        arm_row(name, arms[name], group, settings, thresholds=thresholds, seconds=seconds, flops=flops)
        for name, group in runs.items()
    ]
    return Comparison(
        rows=tuple(sorted(rows, key=lambda row: -row.score.mean)),
        tunings=tuple(_tunings(arms, settings, records)),
        base=base,
        same_base=len(bases) < 2,
        thresholds=thresholds,
        seconds=seconds,
        flops=flops,
        missing=missing,
        failed=tuple(record for record in records.values() if record["status"] == "failed"),
    )


def _tunings(arms: Mapping[str, Arm], settings: Settings, records: Mapping[str, Record]) -> list[Tuning]:
    tunings = []
    for name, arm in arms.items():
        jobs = tuning_jobs(name, arm, settings)
        found = {job.setting: records[job.name] for job in jobs if job.name in records}
        if found:
            best = best_setting(name, arm, settings, records)
            tried = {s: tuning_score(r) if r["status"] == "finished" else None for s, r in found.items()}
            tunings.append(Tuning(name, arm.title, tried, best.name if best else None))
    return tunings
