"""What an OCR engine is: it finds the texts in one image. And what every engine here needs beside that."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

RGBImage = NDArray[np.uint8]
Point = tuple[float, float]
Corners = tuple[Point, Point, Point, Point]
"""x, y in pixels, y down: where a text's top left, top right, bottom right and bottom left are."""

MAX_ASPECT = 8
"""Longest over shortest side up to which engines see an image as it is."""

PROBE_TEXT = "2468"  # digits: models of every script know them


@dataclass(frozen=True, slots=True)
class TextBox:
    """A piece of text and where it stands.

    Attributes:
        text: as read, with spaces.
        corners: its four corners, of the text rather than of an upright frame around it.
    """

    text: str
    corners: Corners


class TextEngine(Protocol):
    """Reads images. Built once per process and used from one thread: OCR engines are not thread-safe."""

    def read(self, image: RGBImage) -> list[TextBox]:
        """Texts of an image [H, W, 3] uint8 RGB, in any order; none if it shows no text.

        One image at a time, so that an image on which the engine fails stays alone with it.
        """

    def fingerprint(self) -> Mapping[str, str]:
        """What the readings depend on."""


def bounded_aspect(image: RGBImage) -> RGBImage:
    """The image, its edges repeated until it is at most ``MAX_ASPECT`` times as long as wide.

    Engines scale the short side up to what their networks need; an image of 1 x 2000 pixels would take gigabytes.
    """
    short = -(-max(image.shape[:2]) // MAX_ASPECT)
    missing = [max(0, short - side) for side in image.shape[:2]]
    if not any(missing):
        return image
    return np.pad(image, [*((m // 2, m - m // 2) for m in missing), (0, 0)], mode="edge")


def check_engine(engine: TextEngine, name: str) -> None:
    """Read a picture of a number, which also loads what the engine loads only when it is needed.

    Raises:
        ValueError: the engine fails, or reads nothing at all where a number stands.
    """
    try:
        boxes = engine.read(probe_image())
    except Exception as error:
        raise ValueError(f"{name} cannot read a test image: {type(error).__name__}: {error}") from error
    if not any(box.text.strip() for box in boxes):
        # Left alone, every image would score 0, and a run would train on that.
        raise ValueError(f"{name} reads nothing in a clear picture of {PROBE_TEXT!r}; check its models and settings")


def probe_image() -> RGBImage:
    """Black digits on white, 160 x 320 pixels."""
    image = Image.new("RGB", (320, 160), "white")
    font = ImageFont.load_default(72)
    ImageDraw.Draw(image).text((160, 80), PROBE_TEXT, fill="black", font=font, anchor="mm")
    return np.asarray(image)


def corners_of(quad: Iterable[Iterable[float]]) -> Corners:
    """Four points as plain numbers, from a row of an engine's array."""
    top_left, top_right, bottom_right, bottom_left = ((float(x), float(y)) for x, y in quad)
    return top_left, top_right, bottom_right, bottom_left


def sha256(*paths: Path) -> str:
    """Hash over the contents of files, in the order given."""
    digest = hashlib.sha256()
    for path in paths:
        digest.update(path.read_bytes())
    return digest.hexdigest()
