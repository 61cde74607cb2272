"""The one place where images become 8 bit, and files."""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image
from torch import Tensor


def quantise(images: Tensor) -> Tensor:
    """[0, 1] float -> uint8 of the same shape, rounded to nearest; values outside are clamped."""
    return (images.detach().float().clamp(0, 1) * 255).round().to(torch.uint8)


def save_png(image: Tensor, path: Path) -> None:
    """Write a uint8 image [3, H, W]."""
    Image.fromarray(image.permute(1, 2, 0).contiguous().numpy()).save(path)
