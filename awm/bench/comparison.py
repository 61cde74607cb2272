"""All records -> the arms side by side, each by the runs with its chosen setting."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from awm.bench.arms import Arm
from awm.bench.jobs import Record, best_setting, final_jobs, tuning_jobs, tuning_score
from awm.bench.rows import Row, arm_row, final_score, training_seconds
from awm.bench.settings import Settings

LEVELS = (0.25, 0.5, 0.75)
"""Thresholds: these parts of the way from the untrained model to the best arm."""
ROUNDING = 1e-9  # of a mean of equal scores


@dataclass(frozen=True, slots=True)
class Tuning:
    """How an arm's setting was chosen.

    Attributes:
        arm: its name.
        title: for people.
        tried: setting -> training reward late in its run, or the status of one that did not finish.
        chosen: None while that cannot be said.
        at_edge: whether the choice is the first or last of a grid of three or more.
    """

    arm: str
    title: str
    tried: Mapping[str, float | str]
    chosen: str | None
    at_edge: bool


@dataclass(frozen=True, slots=True)
class Comparison:
    """Everything the page shows.

    Attributes:
        rows: the best first; arms without a result are not there.
        absent: titles of those, and why if no setting of theirs works.
        tunings: of all arms with a run.
        base: held-out score of the untrained model.
        same_base: whether all runs found the same one, as they must.
        thresholds: scores that it takes images and seconds to reach.
        seconds: at which scores are compared; not given, the median run of the fastest arm.
        flops: at which scores are compared: the whole run of the cheapest arm.
        unfinished: records of runs that diverged or broke.
    """

    rows: tuple[Row, ...]
    absent: tuple[str, ...]
    tunings: tuple[Tuning, ...]
    base: float
    same_base: bool
    thresholds: tuple[float, ...]
    seconds: float
    flops: float
    unfinished: tuple[Record, ...]


def compare(arms: Mapping[str, Arm], settings: Settings, records: Mapping[str, Record]) -> Comparison:
    """Put the arms side by side.

    Args:
        arms: the table.
        settings: of the comparison.
        records: of all its runs.
    """
    runs: dict[str, list[Record]] = {}
    for name, arm in arms.items():
        setting = best_setting(name, arm, settings, records)
        found = (
            [records[j.name] for j in final_jobs(name, arm, setting, settings) if j.name in records] if setting else []
        )
        results = [record for record in found if record["status"] != "broken"]
        if results:
            runs[name] = results
    every = [record for group in runs.values() for record in group]
    bases = {record["curve"][0]["score"] for record in every}
    base = min(bases) if bases else math.nan
    best = max((final_score(group).mean for group in runs.values()), default=math.nan)
    thresholds = tuple(base + level * (best - base) for level in LEVELS) if best > base + ROUNDING else ()
    medians = [training_seconds(group)[0] for group in runs.values()]
    seconds = settings.seconds or min((each for each in medians if math.isfinite(each)), default=math.nan)
    flops = min((record["epochs"] * record["flops_per_epoch"] for record in every), default=math.nan)
    rows = [
        arm_row(name, arms[name], group, settings, thresholds=thresholds, seconds=seconds, flops=flops)
        for name, group in runs.items()
    ]
    return Comparison(
        rows=tuple(sorted(rows, key=lambda row: -row.score.mean)),
        absent=tuple(_absent(name, arm, settings, records) for name, arm in arms.items() if name not in runs),
        tunings=tuple(_tunings(arms, settings, records)),
        base=base,
        same_base=len(bases) < 2,
        thresholds=thresholds,
        seconds=seconds,
        flops=flops,
        unfinished=tuple(record for record in records.values() if record["status"] != "finished"),
    )


def _absent(name: str, arm: Arm, settings: Settings, records: Mapping[str, Record]) -> str:
    found = [records.get(job.name, {}).get("status") for job in tuning_jobs(name, arm, settings)]
    return f"{arm.title} (every setting diverged)" if found and set(found) == {"diverged"} else arm.title


def _tunings(arms: Mapping[str, Arm], settings: Settings, records: Mapping[str, Record]) -> list[Tuning]:
    tunings = []
    for name, arm in arms.items():
        jobs = tuning_jobs(name, arm, settings)
        found = {job.setting: records[job.name] for job in jobs if job.name in records}
        if found:
            best = best_setting(name, arm, settings, records)
            tried = {s: tuning_score(r) if r["status"] == "finished" else str(r["status"]) for s, r in found.items()}
            at_edge = len(arm.grid) > 2 and best in (arm.grid[0], arm.grid[-1])
            tunings.append(Tuning(name, arm.title, tried, best.name if best else None, at_edge))
    return tunings
