"""Contact sheet: images with their prompts and scores underneath."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from awm.report.text import score_text

_PAPER, _CARD, _INK, _FAINT, _TRACK, _BAR = "#eef0f3", "#ffffff", "#1c2430", "#7a8494", "#e3e7ed", "#3266c9"
_GAP, _PADDING, _LINE, _MAX_LINES, _BAR_HEIGHT = 12, 10, 17, 3, 4  # pixels, but for the lines of a caption


def sample_grid(
    images: Any,
    captions: Sequence[str],
    scores: Sequence[float | None] | None,
    columns: int,
    titles: Sequence[str] | None = None,
) -> Image.Image:
    """Cards in rows of ``columns``: image, score with a bar, wrapped prompt.

    Small images are enlarged by a whole factor without smoothing, large ones are scaled down, so that the
    text is always readable. The bar shows the score itself if all scores are in [0, 1], otherwise its place
    between the lowest and the highest of the sheet.

    Args:
        images: uint8 [N, H, W, 3], or float [N, 3, H, W] in [0, 1]; a tensor or an array.
        captions: N prompts.
        scores: N scores, None where there is none; no scores at all leave out their lines.
        columns: cards per row.
        titles: N words, each above its caption; None leaves out their line.

    Returns:
        The sheet, RGB.
    """
    pixels = _as_uint8(images)
    scored, scores = scores is not None, [None] * len(captions) if scores is None else scores
    if not len(pixels) == len(captions) == len(scores) or not len(pixels):
        raise ValueError(
            f"a sample grid needs as many captions and scores as images, and at least one: got {len(pixels)} "
            f"images, {len(captions)} captions and {len(scores)} scores."
        )
    columns = min(columns, len(pixels))
    pictures = [_resize(Image.fromarray(image), 192 if len(pixels) <= 32 else 144) for image in pixels]
    # Pillow's own font has no accents and no minus sign; matplotlib ships one that reads Latin, Greek and Cyrillic.
    font = ImageFont.truetype(f"{matplotlib.get_data_path()}/fonts/ttf/DejaVuSans.ttf", size=13)
    width, picture_height = pictures[0].size
    texts = [_wrap(caption, width, font) for caption in captions]
    lines = max(len(text) for text in texts)
    score_height = _BAR_HEIGHT + 3 + _LINE if scored else 0
    score_height += _LINE if titles is not None else 0
    height = picture_height + score_height + lines * _LINE + 2 * _PADDING + 3
    cell = (width + 2 * _PADDING, height)
    rows = -(-len(pictures) // columns)
    sheet = Image.new("RGB", (columns * (cell[0] + _GAP) + _GAP, rows * (cell[1] + _GAP) + _GAP), _PAPER)
    draw = ImageDraw.Draw(sheet)
    for i, (picture, text, score, share) in enumerate(zip(pictures, texts, scores, _shares(scores), strict=True)):
        left = _GAP + i % columns * (cell[0] + _GAP)
        top = _GAP + i // columns * (cell[1] + _GAP)
        draw.rounded_rectangle((left, top, left + cell[0], top + cell[1]), radius=8, fill=_CARD)
        sheet.paste(picture, (left + _PADDING, top + _PADDING))
        corner = (left + _PADDING, top + _PADDING + picture_height + 5)
        if titles is not None:
            draw.text(
                (corner[0], corner[1] + score_height - _LINE), _shorten(titles[i], width, font), fill=_BAR, font=font
            )
        if scored:
            _draw_score(draw, corner, width, score, share, font)
        for number, line in enumerate(text):
            draw.text((corner[0], corner[1] + score_height + number * _LINE), line, fill=_INK, font=font)
    return sheet


def _as_uint8(images: Any) -> NDArray[np.uint8]:
    array = np.asarray(images.detach().cpu() if hasattr(images, "detach") else images)
    if array.dtype == np.uint8 and array.ndim == 4 and array.shape[3] == 3:
        return array
    if np.issubdtype(array.dtype, np.floating) and array.ndim == 4 and array.shape[1] == 3:
        scaled = np.nan_to_num(array.astype(np.float32)).clip(0, 1) * 255
        return np.ascontiguousarray(scaled.round().astype(np.uint8).transpose(0, 2, 3, 1))
    raise ValueError(
        f"a sample grid takes uint8 [N, H, W, 3] or float [N, 3, H, W] in [0, 1]; "
        f"got {array.dtype} {list(array.shape)}."
    )


def _resize(image: Image.Image, target: int) -> Image.Image:
    side = max(image.size)
    if side > target:
        factor = target / side
        return image.resize((round(image.width * factor), round(image.height * factor)), Image.Resampling.LANCZOS)
    zoom = target // side
    return image.resize((image.width * zoom, image.height * zoom), Image.Resampling.NEAREST)


def _wrap(caption: str, width: int, font: Any) -> list[str]:
    """Lines no wider than ``width``, the last one with an ellipsis if the caption does not fit."""
    lines = [""]
    for word in caption.split():
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    lines = [line for line in lines if line]
    if len(lines) > _MAX_LINES:
        lines = [*lines[: _MAX_LINES - 1], " ".join(lines[_MAX_LINES - 1 :])]
    return [_shorten(line, width, font) for line in lines]


def _shorten(line: str, width: int, font: Any) -> str:
    if font.getlength(line) <= width:
        return line
    while line and font.getlength(line + "...") > width:
        line = line[:-1]
    return line.rstrip() + "..."


def _shares(scores: Sequence[float | None]) -> list[float]:
    known = [score for score in scores if score is not None]
    low, high = min(known, default=0.0), max(known, default=1.0)
    if low >= 0 and high <= 1:
        low, high = 0.0, 1.0
    return [0.0 if score is None else (score - low) / max(high - low, 1e-9) for score in scores]


def _draw_score(
    draw: ImageDraw.ImageDraw, corner: tuple[int, int], width: int, score: float | None, share: float, font: Any
) -> None:
    left, top = corner
    draw.rectangle((left, top, left + width - 1, top + _BAR_HEIGHT - 1), fill=_TRACK)
    if share > 0:
        draw.rectangle((left, top, left + max(round(width * share), 2) - 1, top + _BAR_HEIGHT - 1), fill=_BAR)
    top += _BAR_HEIGHT + 3
    draw.text((left, top), score_text(score), fill=_FAINT if score is None else _BAR, font=font)
