"""How good is the model, and is it better? Means, and paired comparisons from the same prompts and noise."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Mean:
    """Mean of a score over the images that have it.

    Attributes:
        n: those images.
        mean: NaN if n is 0.
        standard_error: of the mean; NaN for fewer than two clusters.
    """

    n: int
    mean: float
    standard_error: float


@dataclass(frozen=True, slots=True)
class PairedGain:
    """Change of a score between two evaluations.

    Attributes:
        n: images that have the score in both evaluations.
        before: mean of the first; NaN if n is 0.
        after: mean of the second; NaN if n is 0.
        gain: after - before.
        standard_error: of ``gain``; NaN for fewer than two clusters.
        wins: images whose score rose.
        losses: images whose score fell.
    """

    n: int
    before: float
    after: float
    gain: float
    standard_error: float
    wins: int
    losses: int

    @property
    def in_standard_errors(self) -> float:
        """Quotient gain / standard_error; infinite if all images changed alike, NaN if none did or it is unknown."""
        if self.standard_error == 0 and self.gain != 0:
            return math.copysign(math.inf, self.gain)
        return self.gain / self.standard_error if self.standard_error > 0 else math.nan

    @property
    def is_clear(self) -> bool:
        """Whether the change is at least two standard errors."""
        return abs(self.in_standard_errors) >= 2


def clustered_mean(values: Sequence[float | None], cluster: Sequence[Hashable]) -> Mean:
    """Mean of n values x_i and its standard error, clustered as in ``paired_gain``.

        SE^2 = G / (G - 1) sum_g (sum_{i in g} (x_i - mean x))^2 / n^2

    Args:
        values: score of image i; None if there is none.
        cluster: the prompt of image i.
    """
    rows = [(value, owner) for value, owner in zip(values, cluster, strict=True) if value is not None]
    mean = _mean([value for value, _ in rows])
    return Mean(len(rows), mean, _standard_error([value - mean for value, _ in rows], [owner for _, owner in rows]))


def mean_of_means(tasks: Sequence[Mean]) -> Mean:
    """Each task counting the same, however many images it has; see ``mean_of_tasks``."""
    return Mean(
        n=sum(task.n for task in tasks),
        mean=_mean([task.mean for task in tasks]),
        standard_error=math.hypot(*(task.standard_error for task in tasks)) / len(tasks) if tasks else math.nan,
    )


def paired_gain(
    before: Sequence[float | None], after: Sequence[float | None], cluster: Sequence[Hashable] | None = None
) -> PairedGain:
    """Mean of the n differences d_i = after_i - before_i and its standard error, clustered.

    Pairing removes the spread between prompts, which is most of the spread of the scores. What is left is alike
    within a prompt, since a model gains on prompts rather than on images. So the G clusters count, not the images:

        SE^2 = G / (G - 1) sum_g (sum_{i in g} (d_i - mean d))^2 / n^2

    With one image in each cluster this is sd(d) / sqrt(n). See Cameron and Miller, A Practitioner's Guide to
    Cluster-Robust Inference, Journal of Human Resources 50, 317-372 (2015).

    Args:
        before: score of image i; None if there is none.
        after: score of image i, made from the same prompt and noise; None if there is none.
        cluster: the prompt of image i; None takes all images as independent.
    """
    owners = range(len(before)) if cluster is None else cluster
    rows = [(b, a, c) for b, a, c in zip(before, after, owners, strict=True) if b is not None and a is not None]
    pairs = [(b, a) for b, a, _ in rows]
    differences = [a - b for b, a in pairs]
    gain = _mean(differences)
    return PairedGain(
        n=len(pairs),
        before=_mean([b for b, _ in pairs]),
        after=_mean([a for _, a in pairs]),
        gain=gain,
        standard_error=_standard_error([d - gain for d in differences], [c for _, _, c in rows]),
        wins=sum(d > 0 for d in differences),
        losses=sum(d < 0 for d in differences),
    )


def mean_of_tasks(tasks: Sequence[PairedGain]) -> PairedGain:
    """Each task counting the same, however many images it has: GenEval's headline number.

    The standard error of the mean of T independent gains is sqrt(sum of squared standard errors) / T.
    """
    return PairedGain(
        n=sum(task.n for task in tasks),
        before=_mean([task.before for task in tasks]),
        after=_mean([task.after for task in tasks]),
        gain=_mean([task.gain for task in tasks]),
        standard_error=math.hypot(*(task.standard_error for task in tasks)) / len(tasks) if tasks else math.nan,
        wins=sum(task.wins for task in tasks),
        losses=sum(task.losses for task in tasks),
    )


def _standard_error(deviations: Sequence[float], cluster: Sequence[Hashable]) -> float:
    """Of a mean, from the deviations from it; NaN for fewer than two clusters."""
    members: dict[Hashable, list[float]] = defaultdict(list)
    for deviation, owner in zip(deviations, cluster, strict=True):
        members[owner].append(deviation)
    count = len(members)
    if count < 2:
        return math.nan
    squares = math.fsum(math.fsum(values) ** 2 for values in members.values())
    return math.sqrt(count / (count - 1) * squares) / len(deviations)


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values) if values else math.nan
