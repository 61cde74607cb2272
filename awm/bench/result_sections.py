"""The results on the page: a title, what the numbers below it mean, and the numbers."""

from __future__ import annotations

import math
from collections.abc import Callable
from html import escape

from awm.bench.cells import coloured, flops, gain, plus_minus, table
from awm.bench.comparison import LEVELS, Comparison
from awm.bench.jobs import SCORE, SECOND
from awm.bench.settings import Settings
from awm.bench.small_multiples import score_bar, small_multiples
from awm.report.text import DASH, count, duration, number, signed

VELOCITY_RANGE = (0.8, 1.25)  # the trainer's own guardrails
MIN_DIVERSITY = 0.8


def ranking_section(comparison: Comparison, settings: Settings) -> str:
    """Scores of all arms, the best first."""
    rows, base = comparison.rows, comparison.base
    spread = [(row.score.mean, row.score.standard_error if row.score.n > 1 else 0.0) for row in rows]
    low, high = min(base, *(mean - error for mean, error in spread)), max(mean + error for mean, error in spread)
    body = [
        [
            f"{place}",
            f"<b>{escape(row.title)}</b><small>{escape(row.source)}</small>"
            + (f"<small>{coloured(escape(row.mark), is_good=False)}</small>" if row.mark else ""),
            escape(row.setting),
            score_bar(row, low, high, base),
            plus_minus(row.score),
            gain(row.gain.gain, row.gain.standard_error),
            plus_minus(row.height),
            number(row.at_seconds),
            number(row.at_flops),
            _spread(row.seconds),
        ]
        for place, row in enumerate(rows, start=1)
    ]
    seconds, operations = _time(comparison.seconds), flops(comparison.flops)
    head = [
        "",
        "arm",
        "setting",
        "",
        "score",
        "gain",
        "on the way",
        *(f"after {part.replace(' ', '&nbsp;')}" for part in (seconds, operations)),
        "time of a run",
    ]
    given = "given with --seconds" if settings.seconds else "the median run of the fastest arm"
    return (
        "<h2>Ranking</h2>"
        f'<p class="note">Score: held-out {SCORE} after {count(settings.images, "training image")}, mean and standard '
        f"error over seeds; the mark is the untrained model, {number(base)}. Gain: over the untrained model, images "
        "paired by prompt and noise, its error clustered by prompt. On the way: mean score over the whole budget, the "
        f"area under the curve over its width. Then the score after {seconds} of training ({given}) and after "
        f"{operations} (a run of the cheapest arm), on straight lines between evaluations; {DASH}: half of the runs "
        f"end before. All runs end at {count(settings.images, 'image')}, and these scores are read off the way there: "
        "no run was planned for a budget of seconds, and nothing is known of any beyond its end; a run that ended a "
        "little sooner counts with its end. Seconds leave evaluations out; on a CPU, where runs go side by side on one "
        "thread each, they are the processor's, which other work on the machine lengthens little. "
        "Time of a run: median, shortest and longest. A run that diverged (its loss or gradient was not finite) keeps "
        "its last held-out score.</p>" + table(head, body, left=(1, 2))
    )


def _time(seconds: float) -> str:
    return duration(seconds) if math.isfinite(seconds) else DASH


def _spread(seconds: tuple[float, float, float]) -> str:
    middle, low, high = map(_time, seconds)
    return f"{middle}<small>{low} to</small><small>{high}</small>" if middle != DASH else DASH


def thresholds_section(comparison: Comparison) -> str:
    """Images and seconds until three scores."""
    if not comparison.thresholds:
        return '<h2>Time to a score</h2><p class="note">No arm is above the untrained model.</p>'
    levels = [number(threshold) for threshold in comparison.thresholds]
    head = ["arm", *(f"{axis} to {level}" for axis in ("images", "time") for level in levels)]
    body = [
        [
            escape(row.title),
            *(f"{x:,.0f}" if math.isfinite(x) else DASH for x in row.reach_images),
            *map(_time, row.reach_seconds),
        ]
        for row in comparison.rows
    ]
    parts = ", ".join(f"{level:.0%}" for level in LEVELS)
    return (
        "<h2>Time to a score</h2>"
        f'<p class="note">Thresholds at {parts} of the way from the untrained model to the best arm. Median over the '
        f"seeds, on straight lines between evaluations; {DASH}: at least half of the seeds never get there.</p>"
        + table(head, body)
    )


def curves_section(comparison: Comparison) -> str:
    """Score against images, seconds and operations."""
    axes: list[tuple[str, str, Callable[[float], str]]] = [
        ("images", "images", lambda x: f"{x:,.0f}"),
        ("seconds", "seconds of training", lambda x: f"{x:,.0f} s"),
        ("flops", "floating point operations", lambda x: flops(x) if x else "0"),
    ]
    plots = [
        f"<h2>Score against {title}</h2>{small_multiples(comparison.rows, axis, comparison.base, tick)}"
        for axis, title, tick in axes
    ]
    note = (
        '<p class="note below">Blue: the arm, mean over seeds; band: one standard error. Grey: all others. Dashed: the '
        "untrained model. Operations are counted on the model (two per multiply-add): text encoders, sampling, "
        "decoding and every forward and backward pass of the rule; evaluations and the reward server are not.</p>"
    )
    return plots[0] + note + "".join(plots[1:])


def guards_section(comparison: Comparison) -> str:
    """Signs of reward hacking."""
    low, high = VELOCITY_RANGE
    body = [
        [
            escape(row.title),
            coloured(number(row.guards.velocity), is_good=low <= row.guards.velocity <= high),
            f"{number(row.guards.velocity_low)} to {number(row.guards.velocity_high)}",
            signed(row.guards.second),
            coloured(number(row.guards.diversity), is_good=row.guards.diversity >= MIN_DIVERSITY),
        ]
        for row in comparison.rows
    ]
    head = ["arm", "velocity norm ratio", "in any epoch", f"change of {SECOND}", "diversity ratio"]
    return (
        "<h2>Is the reward had honestly?</h2>"
        '<p class="note">Velocity norm ratio: norm of the trained velocity over the pre-trained model\'s in the last '
        f"epoch; far from 1 warns of collapse (red outside {low:g} to {high:g}). {SECOND}: minus the size of a "
        "held-out image as a JPEG file, in kB, a reward that no arm is trained on; its change from the untrained one. "
        "A fall means noise or clutter that the detector overlooks, a rise cleaner or emptier images. Diversity: mean "
        "distance (root mean square over pixels) between the two images of a held-out prompt, over the untrained "
        f"model's; below 1 the images of a prompt become alike (red below {MIN_DIVERSITY:g}).</p>" + table(head, body)
    )
