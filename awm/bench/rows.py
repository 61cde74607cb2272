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
from awm.report.text import count

AXES = ("images", "seconds", "flops")
ROUNDING = 1e-4  # of the numbers in records, relative


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
        velocity: norm of the velocity over the pre-trained model's; NaN if no epoch was completed.
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
        scores: seed -> held-out score after the whole budget of images, or the last one of a run that diverged.
        diverged: seeds whose runs diverged.
        missing: seeds without a result.
        score: over the seeds.
        gain: over the untrained model, images paired by prompt and noise; error clustered by prompt.
        height: mean score on the way, the area under the curve over its width.
        seconds: of training, median, shortest and longest of the runs that did not diverge; NaN without one.
        at_seconds: score after equal seconds; NaN if half of the seeds end before it.
        at_flops: score after equal operations, likewise.
        reach_images: images until each threshold, median over the seeds; infinite if half of them never do.
        reach_seconds: seconds until then.
        curve: over the budget.
        guards: against hacking.
    """

    arm: str
    title: str
    source: str
    setting: str
    scores: Mapping[int, float]
    diverged: tuple[int, ...]
    missing: tuple[int, ...]
    score: Estimate
    gain: PairedGain
    height: Estimate
    seconds: tuple[float, float, float]
    at_seconds: float
    at_flops: float
    reach_images: tuple[float, ...]
    reach_seconds: tuple[float, ...]
    curve: Curve
    guards: Guards

    @property
    def mark(self) -> str:
        """What is wrong with its runs; "" if all of them finished."""
        parts = [("diverged", self.diverged), ("missing", self.missing)]
        return "; ".join(f"{count(len(seeds), 'run')} {word}" for word, seeds in parts if seeds)

    @property
    def named(self) -> str:
        """The title with its mark."""
        return f"{self.title} ({self.mark})" if self.mark else self.title


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
        runs: those with the chosen setting that finished or diverged, one per seed; at least one.
        settings: of the comparison.
        thresholds: scores to reach.
        seconds: of training after which scores are compared.
        flops: operations after which scores are compared.
    """
    scores = {int(record["seed"]): _last(record) for record in runs}
    return Row(
        arm=name,
        title=arm.title,
        source=arm.source,
        setting=runs[0]["setting"],
        scores=scores,
        diverged=tuple(record["seed"] for record in runs if record["status"] == "diverged"),
        missing=tuple(seed for seed in settings.reported if seed not in scores),
        score=final_score(runs),
        gain=_gain(runs),
        height=estimate([mean_height(*_points(record, "images")) for record in runs]),
        seconds=training_seconds(runs),
        at_seconds=_at(runs, "seconds", seconds),
        at_flops=_at(runs, "flops", flops),
        reach_images=_reach(runs, "images", thresholds),
        reach_seconds=_reach(runs, "seconds", thresholds),
        curve=_curve(runs),
        guards=_guards(runs),
    )


def final_score(runs: Sequence[Record]) -> Estimate:
    """Held-out score after the whole budget of images, over the seeds."""
    return estimate([_last(record) for record in runs])


def training_seconds(runs: Sequence[Record]) -> tuple[float, float, float]:
    """Median, shortest and longest of the runs that did not diverge."""
    ends = [record["curve"][-1]["seconds"] for record in runs if record["status"] == "finished"]
    return median(ends), min(ends, default=math.nan), max(ends, default=math.nan)


def _last(record: Record) -> float:
    return float(record["curve"][-1]["score"])


def _points(record: Record, axis: str) -> tuple[list[float], list[float]]:
    """Budget spent and score at every evaluation; a run that diverged keeps its last score from there on."""
    x = [float(point[axis]) for point in record["curve"]]
    y = [float(point["score"]) for point in record["curve"]]
    if record["status"] == "diverged":
        x.append(record["epochs"] * record["images_per_epoch"] if axis == "images" else math.inf)
        y.append(y[-1])
    return x, y


def _at(runs: Sequence[Record], axis: str, where: float) -> float:
    """Mean score there, but for arms half of whose runs ended before; rounding may put an end before itself."""
    curves = [_points(record, axis) for record in runs]
    if where > median([x[-1] for x, _ in curves]) * (1 + ROUNDING):
        return math.nan
    return _mean([value_at(x, y, min(where, x[-1])) for x, y in curves])


def _reach(runs: Sequence[Record], axis: str, thresholds: Sequence[float]) -> tuple[float, ...]:
    return tuple(
        median([first_reach(*_points(record, axis), threshold) for record in runs]) for threshold in thresholds
    )


def _curve(runs: Sequence[Record]) -> Curve:
    """Means over the seeds; one that diverged keeps its last score, and has no say in how long it took."""
    curves = [record["curve"] for record in runs]
    points = range(max(map(len, curves)))
    score = [estimate([float(curve[min(point, len(curve) - 1)]["score"]) for curve in curves]) for point in points]
    return Curve(
        x={axis: tuple(_mean([float(c[p][axis]) for c in curves if p < len(c)]) for p in points) for axis in AXES},
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
        velocity=mean(lambda record: next(iter(record["velocity_norm_ratio"][::-1]), None)),
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
