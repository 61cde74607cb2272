"""One arm's runs -> what the page says of it; every number has its definition here."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from awm.bench.arms import Arm
from awm.bench.jobs import IMAGES_PER_PROMPT, Record
from awm.bench.measures import Estimate, estimate, first_reach, mean_height, median, value_at
from awm.bench.settings import Settings
from awm.report.statistics import PairedGain, paired_gain

AXES = ("images", "seconds", "flops")


@dataclass(frozen=True, slots=True)
class Curve:
    """Held-out score after each evaluation, over the seeds.

    Attributes:
        x: axis -> [N] mean budget spent.
        score: [N] means.
        error: [N] their standard errors; NaN with one seed.
    """

    x: Mapping[str, tuple[float, ...]]
    score: tuple[float, ...]
    error: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Guards:
    """Signs of a reward that is had without what it stands for; means over the seeds, after the last epoch.

    Attributes:
        velocity: norm of the velocity over the pre-trained model's.
        velocity_low: the smallest of any epoch and seed.
        velocity_high: the largest.
        second: the reward that was not trained on, minus the untrained model's.
        diversity: distance between images of a prompt over the untrained model's.
    """

    velocity: float
    velocity_low: float
    velocity_high: float
    second: float
    diversity: float


@dataclass(frozen=True, slots=True)
class Row:
    """An arm.

    Attributes:
        arm: its name.
        title: for people.
        source: where it was published.
        setting: the one chosen.
        seeds: of its finished runs.
        score: held-out score after the whole budget of images, over the seeds.
        gain: over the untrained model, images paired by prompt and noise; error clustered by prompt.
        height: mean score on the way, the area under the curve over its width.
        at_seconds: score after equal seconds; n is less than the seeds where runs ended sooner.
        at_flops: score after equal operations.
        reach_images: images until each threshold, median over the seeds; infinite if half of them never do.
        reach_seconds: seconds until then.
        sets: mean score of the first and of the second seeds; NaN without a run.
        set_errors: standard errors of these, from the spread of all seeds.
        curve: over the budget.
        guards: against hacking.
    """

    arm: str
    title: str
    source: str
    setting: str
    seeds: tuple[int, ...]
    score: Estimate
    gain: PairedGain
    height: Estimate
    at_seconds: Estimate
    at_flops: Estimate
    reach_images: tuple[float, ...]
    reach_seconds: tuple[float, ...]
    sets: tuple[float, float]
    set_errors: tuple[float, float]
    curve: Curve
    guards: Guards


def arm_row(
    name: str,
    arm: Arm,
    runs: Sequence[Record],
    settings: Settings,
    *,
    thresholds: Sequence[float],
    seconds: float,
    flops: float,
) -> Row:
    """Everything about one arm.

    Args:
        name: of the arm.
        arm: its row of the table.
        runs: its finished runs with the chosen setting, one per seed; at least one.
        settings: of the comparison.
        thresholds: scores to reach.
        seconds: of training after which scores are compared.
        flops: operations after which scores are compared.
    """
    score = final_score(runs)
    spread = score.standard_error * math.sqrt(score.n)
    sets = [[_last(r) for r in runs if r["seed"] in seeds] for seeds in (settings.seeds, settings.second_seeds)]
    return Row(
        arm=name,
        title=arm.title,
        source=arm.source,
        setting=runs[0]["setting"],
        seeds=tuple(record["seed"] for record in runs),
        score=score,
        gain=_gain(runs),
        height=estimate([mean_height(_column(r, "images"), _column(r, "score")) for r in runs]),
        at_seconds=_at(runs, "seconds", seconds),
        at_flops=_at(runs, "flops", flops),
        reach_images=_reach(runs, "images", thresholds),
        reach_seconds=_reach(runs, "seconds", thresholds),
        sets=(_mean(sets[0]), _mean(sets[1])),
        set_errors=(_error(spread, len(sets[0])), _error(spread, len(sets[1]))),
        curve=_curve(runs),
        guards=_guards(runs),
    )


def final_score(runs: Sequence[Record]) -> Estimate:
    """Held-out score after the whole budget of images, over the seeds."""
    return estimate([_last(record) for record in runs])


def _last(record: Record) -> float:
    return float(record["curve"][-1]["score"])


def _column(record: Record, name: str) -> list[float]:
    return [float(point[name]) for point in record["curve"]]


def _at(runs: Sequence[Record], axis: str, where: float) -> Estimate:
    """Of the runs that got there; a run's own end, which rounding may put before itself, counts."""
    values = []
    for record in runs:
        x = _column(record, axis)
        at = x[-1] if math.isclose(x[-1], where, rel_tol=1e-9) else where
        values.append(value_at(x, _column(record, "score"), at))
    return estimate([value for value in values if math.isfinite(value)])


def _reach(runs: Sequence[Record], axis: str, thresholds: Sequence[float]) -> tuple[float, ...]:
    return tuple(
        median([first_reach(_column(r, axis), _column(r, "score"), threshold) for r in runs])
        for threshold in thresholds
    )


def _curve(runs: Sequence[Record]) -> Curve:
    points = range(min(len(record["curve"]) for record in runs))

    def over_seeds(name: str) -> list[Estimate]:
        return [estimate([float(record["curve"][point][name]) for record in runs]) for point in points]

    score = over_seeds("score")
    return Curve(
        x={axis: tuple(each.mean for each in over_seeds(axis)) for axis in AXES},
        score=tuple(each.mean for each in score),
        error=tuple(each.standard_error for each in score),
    )


def _gain(runs: Sequence[Record]) -> PairedGain:
    """Each image's score is its mean over the seeds, which share prompts and noise; one image is one row."""
    first, last = ([_over_seeds(runs, key, index) for index in range(len(runs[0][key]))] for key in ("first", "last"))
    return paired_gain(first, last, [index // IMAGES_PER_PROMPT for index in range(len(first))])


def _over_seeds(runs: Sequence[Record], key: str, index: int) -> float | None:
    values = [record[key][index] for record in runs]
    return None if None in values else _mean(values)


def _guards(runs: Sequence[Record]) -> Guards:
    def mean(value: Callable[[Record], float | None]) -> float:
        values = [value(record) for record in runs]
        return _mean([v for v in values if v is not None])

    ratios = [ratio for record in runs for ratio in record["velocity_norm_ratio"] if ratio is not None]
    return Guards(
        velocity=mean(lambda record: record["velocity_norm_ratio"][-1]),
        velocity_low=min(ratios, default=math.nan),
        velocity_high=max(ratios, default=math.nan),
        second=mean(lambda record: _change(record, "second", lambda before, after: after - before)),
        diversity=mean(lambda record: _change(record, "diversity", _ratio)),
    )


def _change(record: Record, name: str, of: Callable[[float, float], float]) -> float | None:
    before, after = (record["curve"][place][name] for place in (0, -1))
    return None if before is None or after is None else of(before, after)


def _ratio(before: float, after: float) -> float:
    return after / before if before else math.nan


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values) if values else math.nan


def _error(spread: float, n: int) -> float:
    return spread / math.sqrt(n) if n else math.nan
