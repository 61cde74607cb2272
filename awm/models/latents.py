"""Which resolutions a checkpoint can draw, and the latents they have."""

from __future__ import annotations


def latent_shape(resolution: int, *, channels: int, patch: int, positions: int, scale: int) -> tuple[int, int, int]:
    """(C, h, w) of the latent of a square image of ``resolution`` pixels a side.

    Args:
        resolution: pixels a side.
        channels: C.
        patch: latent pixels a side of a transformer's token.
        positions: tokens a side that have a position embedding.
        scale: pixels a side of a latent pixel.

    Raises:
        ValueError: if the checkpoint cannot draw that size.
    """
    cell = scale * patch
    limit = cell * positions
    if resolution < 1 or resolution % cell or resolution > limit:
        nearest = min(max(cell, round(resolution / cell) * cell), limit)
        raise ValueError(
            f"resolution={resolution} does not fit this checkpoint, which draws multiples of {cell} "
            f"up to {limit} pixels; use {nearest}."
        )
    return channels, resolution // scale, resolution // scale
