"""How cost grows with work: the default at several sizes of one thing, and what is linear in it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

KEYS = {
    "images_per_prompt": "sample.num_image_per_prompt",
    "resolution": "resolution",
    "prompts": "sample.num_prompts_per_epoch",
}
SWEEPS = (*KEYS, "world_size")


@dataclass(frozen=True, slots=True)
class Point:
    """One size.

    Attributes:
        value: of what is swept.
        images: of an epoch over all ranks.
        operations: of it.
        seconds: of it, the median.
    """

    value: int
    images: int
    operations: float
    seconds: float


def words_for(kind: str, value: int) -> tuple[str, ...]:
    """The overrides that make a configuration that size."""
    return (f"--config.{KEYS[kind]}={value}",)


def against_linear(kind: str, points: Sequence[Point]) -> list[dict[str, Any]]:
    """Each point with its cost over that of the first one, times what linear growth would be: 1 is linear.

    Cost is seconds. It should grow with the images, with the square of the resolution, and fall with the number of
    ranks; below 1 something is shared or better filled, above 1 something grows faster or is in short supply.
    ``operations_over_linear`` is the same of the counted operations: attention alone makes it differ from 1.
    """
    first = points[0]
    rows = []
    for point in points:
        linear = _linear(kind, point) / _linear(kind, first)
        rows.append(
            {
                "value": point.value,
                "images": point.images,
                "images_per_s": point.images / point.seconds,
                "seconds": point.seconds,
                "operations": point.operations,
                "seconds_over_linear": point.seconds / first.seconds / linear,
                "operations_over_linear": point.operations / first.operations
                / (1.0 if kind == "world_size" else linear),
            }
        )  # fmt: skip
    return rows


def _linear(kind: str, point: Point) -> float:
    if kind == "resolution":
        return float(point.value**2)
    return 1 / point.value if kind == "world_size" else float(point.images)


def table(kind: str, rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The rows for people."""
    lines = [f"{kind:>18} {'images':>7} {'images/s':>9} {'s':>8} {'s / linear':>11} {'operations / linear':>20}"]
    lines += [
        f"{row['value']:>18} {row['images']:>7} {row['images_per_s']:>9.2f} {row['seconds']:>8.2f} "
        f"{row['seconds_over_linear']:>11.3f} {row['operations_over_linear']:>20.3f}"
        for row in rows
    ]
    return lines
