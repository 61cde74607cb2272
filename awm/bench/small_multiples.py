"""One small plot per arm, its curve against the grey ones of all others: readable with twenty arms, where colours fail.

Drawn as SVG whose colours are the page's variables. The grey curves are written once and used by every plot:
the page's style must name their classes alone, for no selector with an ancestor reaches what is used.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from html import escape

from awm.bench.rows import Curve, Row

WIDTH, HEIGHT = 240, 138  # of the drawing's own units, near pixels
LEFT, RIGHT, TOP, BOTTOM = 34, 8, 8, 20
NUM_TICKS = 4

Point = tuple[float, float]
Place = Callable[[float, float], Point]


def small_multiples(rows: Sequence[Row], axis: str, base: float, tick: Callable[[float], str]) -> str:
    """A grid of plots of the held-out score over ``axis``.

    Args:
        rows: the arms, in the order of the plots.
        axis: "images", "seconds" or "flops".
        base: score of the untrained model, a dashed line.
        tick: a value of the axis as text.
    """
    curves = [row.curve for row in rows]
    high_x = max(curve.x[axis][-1] for curve in curves)
    scores = [base, *(score for curve in curves for score in curve.score)]
    ticks = nice_ticks(min(scores), max(scores))
    low_y, high_y = min(ticks[0], *scores), max(ticks[-1], *scores)

    def place(x: float, y: float) -> Point:
        """Data -> drawing."""
        across = x / high_x if high_x else 0.0
        up = (y - low_y) / (high_y - low_y)
        return LEFT + across * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM)

    shared = f"others-{axis}"
    frame = _frame(place, ticks, high_x, base, tick)
    grey = "".join(f'<path class="grey" d="{_path(curve, axis, place)}"/>' for curve in curves)
    defined = (
        f'<svg width="0" height="0" style="position:absolute" aria-hidden="true"><defs><g id="{shared}">{frame}{grey}'
        "</g></defs></svg>"
    )
    plots = "".join(_plot(row, axis, place, shared) for row in rows)
    return f'{defined}<div class="multiples">{plots}</div>'


def nice_ticks(low: float, high: float, count: int = NUM_TICKS) -> list[float]:
    """Round numbers, about ``count`` of them, from at most ``low`` to at least ``high``."""
    width = max(high - low, 1e-3)
    step = 10.0 ** math.floor(math.log10(width / count))
    step *= next(factor for factor in (1, 2, 5, 10) if step * factor >= width / count * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(number * step, 12) for number in range(first, max(last, first + 1) + 1)]


def score_bar(row: Row, low: float, high: float, base: float) -> str:
    """Score and its standard error on a line from ``low`` to ``high``, with a mark at the untrained model's."""
    width, middle = 96.0, 7.0

    def at(score: float) -> float:
        return 4 + (score - low) / (high - low) * (width - 8) if high > low else width / 2

    mean, error = row.score.mean, row.score.standard_error
    whisker = ""
    if math.isfinite(error):
        whisker = f'<path class="whisker" d="M{at(mean - error):.1f} {middle}H{at(mean + error):.1f}"/>'
    return (
        f'<svg class="bar" viewBox="0 0 {width:g} 14" aria-hidden="true"><path class="from" '
        f'd="M{at(base):.1f} {middle}H{at(mean):.1f}"/><path class="mark" d="M{at(base):.1f} 2V12"/>{whisker}'
        f'<circle cx="{at(mean):.1f}" cy="{middle}" r="3.2"/></svg>'
    )


def _plot(row: Row, axis: str, place: Place, shared: str) -> str:
    title = f"{row.title}: held-out score over {axis}"
    dots = "".join(
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.2"/>'
        for x, y in (place(x, y) for x, y in zip(row.curve.x[axis], row.curve.score, strict=True))
    )
    return (
        f'<figure class="small"><figcaption><span>{escape(row.title)}</span><b>{row.score.mean:.3f}</b></figcaption>'
        f'<svg role="img" aria-label="{escape(title)}" viewBox="0 0 {WIDTH} {HEIGHT}"><use href="#{shared}"/>'
        f'{_band(row.curve, axis, place)}<path class="mine" d="{_path(row.curve, axis, place)}"/>'
        f'<g class="dots">{dots}</g></svg></figure>'
    )


def _path(curve: Curve, axis: str, place: Place) -> str:
    return "M" + "L".join(_at(place(x, y)) for x, y in zip(curve.x[axis], curve.score, strict=True))


def _band(curve: Curve, axis: str, place: Place) -> str:
    """One standard error on each side; nothing with a single seed."""
    if not all(math.isfinite(error) for error in curve.error):
        return ""
    rows = list(zip(curve.x[axis], curve.score, curve.error, strict=True))
    above = [_at(place(x, y + error)) for x, y, error in rows]
    below = [_at(place(x, y - error)) for x, y, error in reversed(rows)]
    return f'<path class="band" d="M{"L".join([*above, *below])}Z"/>'


def _frame(place: Place, ticks: Sequence[float], high_x: float, base: float, tick: Callable[[float], str]) -> str:
    lines = []
    for value in ticks:
        x, y = place(0, value)
        lines.append(f'<path class="grid" d="M{x:.1f} {y:.1f}H{WIDTH - RIGHT}"/>')
        lines.append(f'<text class="tick" x="{x - 5:.1f}" y="{y + 3:.1f}" text-anchor="end">{value:.4g}</text>')
    for part, anchor in ((0.0, "start"), (1.0, "end")):
        x, _ = place(part * high_x, ticks[0])
        text = escape(tick(part * high_x))
        lines.append(f'<text class="tick" x="{x:.1f}" y="{HEIGHT - 5}" text-anchor="{anchor}">{text}</text>')
    x, y = place(0, base)
    lines.append(f'<path class="base" d="M{x:.1f} {y:.1f}H{WIDTH - RIGHT}"/>')
    return "".join(lines)


def _at(point: Point) -> str:
    return f"{point[0]:.1f} {point[1]:.1f}"
