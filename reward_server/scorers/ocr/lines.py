"""Text boxes in the order in which people read them.

Detectors return boxes by score or by where a corner lies, so that "Exit Only" comes out as "Only Exit". Here boxes
whose heights overlap form a line, lines go from top to bottom, and within a line text goes from left to right. Signs
are often photographed at an angle: positions are taken along the common direction of all boxes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import atan2, cos, sin

from reward_server.scorers.ocr.engine import TextBox

MIN_OVERLAP = 0.5
"""Share of the lower of two heights that must coincide for two boxes to stand on one line."""


def text_lines(boxes: Sequence[TextBox]) -> list[str]:
    """Lines of text from top to bottom, the words of neighbouring boxes separated by a space."""
    lines: list[list[_Placed]] = []
    for box in sorted(_placed(boxes), key=lambda box: box.top + box.bottom):
        for line in lines:
            if _overlap(line, box) > MIN_OVERLAP:
                line.append(box)
                break
        else:
            lines.append([box])
    return [" ".join(box.text for box in sorted(line, key=lambda box: box.left)) for line in lines]


@dataclass(frozen=True, slots=True)
class _Placed:
    """A text and its place along and across the direction of reading."""

    text: str
    left: float
    top: float
    bottom: float


def _placed(boxes: Sequence[TextBox]) -> list[_Placed]:
    angle = _direction(boxes)
    c, s = cos(angle), sin(angle)
    placed = []
    for box in boxes:
        along = [x * c + y * s for x, y in box.corners]
        across = [y * c - x * s for x, y in box.corners]
        placed.append(_Placed(box.text, min(along), (across[0] + across[1]) / 2, (across[2] + across[3]) / 2))
    return placed


def _direction(boxes: Sequence[TextBox]) -> float:
    """Angle of the sum of the boxes' top edges, in radians: long texts, whose direction is certain, count most."""
    edges = [(right[0] - left[0], right[1] - left[1]) for left, right, _, _ in (box.corners for box in boxes)]
    return atan2(sum(y for _, y in edges), sum(x for x, _ in edges)) if edges else 0.0


def _band(line: Sequence[_Placed]) -> tuple[float, float]:
    """Mean top and bottom: one tall letter must not swallow the next line."""
    return sum(box.top for box in line) / len(line), sum(box.bottom for box in line) / len(line)


def _overlap(line: Sequence[_Placed], box: _Placed) -> float:
    top, bottom = _band(line)
    lower = min(bottom - top, box.bottom - box.top)
    shared = min(bottom, box.bottom) - max(top, box.top)
    return shared / lower if lower > 0 else 0.0
