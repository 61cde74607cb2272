"""Bilinear resizing of bytes exactly as OpenCV does it, for parity with mmdet 2.x, which resizes images so.

OpenCV works in fixed point and drops bits on the way, so that its result is neither the rounded exact one (one pixel
in eight differs by one grey level) nor PIL's. https://docs.opencv.org/4.x/da/d54/group__imgproc__transform.html
"""

from __future__ import annotations

import torch
from torch import Tensor

ONE = 2048  # weights have 11 bits


def resize_bytes(image: Tensor, size: tuple[int, int]) -> Tensor:
    """``cv2.resize(image, ..., interpolation=cv2.INTER_LINEAR)`` of a uint8 image.

    Args:
        image: [C, H, W] uint8.
        size: new height and width in pixels.

    Returns:
        [C, *size] uint8.
    """
    left, right, weights = _taps(image.shape[2], size[1], image.device)
    wide = image[:, :, left].int() * weights[0] + image[:, :, right].int() * weights[1]
    top, bottom, weights = _taps(image.shape[1], size[0], image.device)
    # At the upper and lower edge both rows are the same; it is still two products, each of which loses bits.
    upper, lower = (wide[:, rows] >> 4 for rows in (top, bottom))
    return (((weights[0][:, None] * upper >> 16) + (weights[1][:, None] * lower >> 16) + 2) >> 2).to(torch.uint8)


def _taps(old: int, new: int, device: torch.device) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor]]:
    """For each new pixel the two old ones nearest to its centre, and their weights, which add up to ``ONE``."""
    position = ((torch.arange(new, dtype=torch.float64) + 0.5) * (old / new) - 0.5).float().to(device)
    first = position.floor()
    share = position - first
    weights = ((1 - share) * ONE).round().int(), (share * ONE).round().int()
    return first.long().clamp(0, old - 1), (first.long() + 1).clamp(0, old - 1), weights
