"""Images of texts, in Pillow's own font."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont


def rendered(
    *texts: tuple[str, tuple[int, int]], size: int = 256, font: int = 40, rgb: bool = False
) -> NDArray[np.uint8]:
    """Each text around its (x, y), black on white, or red on blue."""
    image = Image.new("RGB", (size, size), "blue" if rgb else "white")
    draw = ImageDraw.Draw(image)
    for text, at in texts:
        draw.text(at, text, fill="red" if rgb else "black", font=ImageFont.load_default(font), anchor="mm")
    return np.asarray(image)


def sign(text: str) -> NDArray[np.uint8]:
    """A text in the middle of 256 x 256 pixels."""
    return rendered((text, (128, 128)))
