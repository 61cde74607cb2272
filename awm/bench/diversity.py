"""Do the images of a prompt still differ? A policy that draws one picture for each prompt may score well, too."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from itertools import combinations
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Floats = NDArray[np.float64]


def diversity(images: Sequence[Floats], prompt: Sequence[Hashable]) -> float:
    """Mean over prompts of the mean distance between two images of the prompt.

        mean_p mean_{i < j in p} sqrt(mean (x_i - x_j)^2)

    Prompts with one image have no distance and are left out.

    Args:
        images: [H, W, 3] each, in [0, 1].
        prompt: which prompt each belongs to.

    Returns:
        In units of the pixel range; NaN without two images of any prompt.
    """
    members: dict[Hashable, list[Floats]] = {}
    for image, owner in zip(images, prompt, strict=True):
        members.setdefault(owner, []).append(image)
    means = [
        math.fsum(math.sqrt(float(np.mean((a - b) ** 2))) for a, b in combinations(group, 2)) / math.comb(len(group), 2)
        for group in members.values()
        if len(group) > 1
    ]
    return math.fsum(means) / len(means) if means else math.nan


def read_image(path: Path) -> Floats:
    """[H, W, 3] in [0, 1]."""
    with Image.open(path) as file:
        return np.asarray(file.convert("RGB"), dtype=np.float64) / 255.0


def side_by_side(images: Sequence[Floats]) -> Image.Image:
    """One row of images of equal size."""
    row = np.concatenate(list(images), axis=1)
    return Image.fromarray((row * 255.0).round().astype(np.uint8))
