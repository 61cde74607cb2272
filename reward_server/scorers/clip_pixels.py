"""What CLIP sees of an image, without transformers' image processors.

Those give other pixels when torchvision happens to be installed. CLIP: https://arxiv.org/abs/2103.00020.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

MEAN = (0.48145466, 0.4578275, 0.40821073)  # of the channels R, G, B in [0, 1]
STD = (0.26862954, 0.26130258, 0.27577711)
PREPROCESSING = "clip-pil-1"  # raise the number with any change of ``preprocess`` that can change a pixel
EXTREME_RATIO = 100  # long over short side; beyond it only the part CLIP sees is resized: the whole may be gigabytes


def preprocess(image: NDArray[np.uint8], size: int = 224) -> NDArray[np.float32]:
    """Pixels for CLIP, bit for bit those of transformers' ``CLIPImageProcessorPil``.

    The short side is scaled to ``size`` (bicubic, rounded to 8 bit), the middle square cut out, colours normalised.
    An image more than 100 times as long as wide is resized only where it is seen, which gives nearly the same pixels.

    Args:
        image: [H, W, 3] uint8 RGB.
        size: side of the square, in pixels.

    Returns:
        [3, size, size] float32.
    """
    # Scaling to [0, 1] in float64 and normalising in float32, as transformers does: the order decides the last bit.
    unit = (_middle_square(image, size).astype(np.float64) * (1 / 255)).astype(np.float32)
    normalised = (unit - np.array(MEAN, np.float32)) / np.array(STD, np.float32)
    return np.ascontiguousarray(normalised.transpose(2, 0, 1))


def resized_shape(height: int, width: int, size: int) -> tuple[int, int]:
    """(height, width) of an image whose short side is scaled to ``size``; the long side is rounded down."""
    long = int(size * max(height, width) / min(height, width))
    return (long, size) if width <= height else (size, long)


def _middle_square(image: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    height, width = image.shape[:2]
    new_height, new_width = resized_shape(height, width, size)
    top, left = (new_height - size) // 2, (new_width - size) // 2
    picture = Image.fromarray(image)
    if max(height, width) > EXTREME_RATIO * min(height, width):
        x, y = width / new_width, height / new_height
        part = (left * x, top * y, (left + size) * x, (top + size) * y)
        return np.asarray(picture.resize((size, size), Image.Resampling.BICUBIC, box=part))
    resized = np.asarray(picture.resize((new_width, new_height), Image.Resampling.BICUBIC))
    return resized[top : top + size, left : left + size]
