"""Numbers and tables as the page writes them."""

from __future__ import annotations

import math
from collections.abc import Sequence

from awm.bench.measures import Estimate
from awm.report.text import DASH, MINUS

UNITS = ((1e15, "PFLOP"), (1e12, "TFLOP"), (1e9, "GFLOP"))


def table(head: Sequence[str], body: Sequence[Sequence[str]], *, left: Sequence[int] = (0,)) -> str:
    """A panel with a table.

    Args:
        head: titles, HTML.
        body: rows of cells, HTML.
        left: columns of text; the others are numbers.
    """
    lines = "".join(f"<tr>{_cells(row, 'td', left)}</tr>" for row in body)
    return (
        f'<div class="panel scroll"><table><thead><tr>{_cells(head, "th", left)}</tr></thead>'
        f"<tbody>{lines}</tbody></table></div>"
    )


def plus_minus(value: Estimate) -> str:
    """``0.571 ± 0.012``; without the error if there is none."""
    if not math.isfinite(value.mean):
        return DASH
    return f"{value.mean:.3f}{_error(value.standard_error)}".replace("-", MINUS)


def gain(value: float, error: float) -> str:
    """``+0.163 ± 0.021``."""
    return f"{value:+.3f}{_error(error)}".replace("-", MINUS) if math.isfinite(value) else DASH


def coloured(text: str, *, is_good: bool) -> str:
    """Red unless it is good."""
    return text if is_good else f'<span class="down">{text}</span>'


def flops(value: float) -> str:
    """``1.25 PFLOP``."""
    if not math.isfinite(value):
        return DASH
    unit, name = next(((unit, name) for unit, name in UNITS if value >= unit), UNITS[-1])
    return f"{value / unit:.3g} {name}"


def _error(error: float) -> str:
    return f" ± {error:.3f}" if math.isfinite(error) else ""


def _cells(row: Sequence[str], tag: str, left: Sequence[int]) -> str:
    return "".join(f"<{tag}{' class=left' if i in left else ''}>{cell}</{tag}>" for i, cell in enumerate(row))
