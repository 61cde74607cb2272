"""The OCR reward: engine + reading order + rule -> numbers per image, or an error."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from reward_server.scorers.base import Item, ItemError, Outcome, Scores
from reward_server.scorers.ocr.engine import RGBImage, TextEngine
from reward_server.scorers.ocr.lines import text_lines
from reward_server.scorers.ocr.rule import TargetError, normalise, target_text, text_reward
from reward_server.scorers.table import load

VERSION = "1"  # of rule and reading order; raise it with any change that can change a score

ENGINES: dict[str, str] = {
    "paddleocr": "reward_server.scorers.ocr.paddle:PaddleEngine",
    "rapidocr": "reward_server.scorers.ocr.rapid:RapidEngine",
    "tesserocr": "reward_server.scorers.ocr.tesseract:TesseractEngine",
}
"""Name -> dotted path of a class with the methods of ``TextEngine``, imported when chosen."""


class OcrScorer:
    """Scores how much of the requested text an image shows.

    ``score`` is the rule of ``rule.py`` applied to all text in the image, in reading order. An image in which the
    engine finds no text scores 0: that is what was read. An engine that fails gives an error instead.

    Metrics: ``contained`` is 1 if the text was read in full, perhaps among other text; ``exact`` is 1 if nothing else
    was read; ``best_line`` is the larger of the score and the best score of a single line, a variant that forgives
    other text and that published numbers do not use.

    Args:
        engine: a name in ``ENGINES``.
        options: keyword arguments of the engine's class.

    Raises:
        ValueError: unknown engine, or its models are missing or do not work.
        ImportError: the engine's package is not installed.
    """

    def __init__(self, engine: str = "rapidocr", **options: Any) -> None:
        make: Callable[..., TextEngine] = load(ENGINES, engine, "OCR engine")
        self.engine = make(**options)
        self._name = engine

    def fingerprint(self) -> Mapping[str, str]:
        """Version of the rule, the engine's name and its own fingerprint."""
        return {"rule_version": VERSION, "engine": self._name, **self.engine.fingerprint()}

    def example(self) -> tuple[str, Mapping[str, Any]]:
        """A prompt and metadata this scorer accepts, for the warm-up."""
        return 'a sign that says "OPEN"', {"text": "OPEN"}

    def __call__(self, items: Sequence[Item]) -> list[Outcome]:
        """Result of each item, in order."""
        return [self._score(item) for item in items]

    def _score(self, item: Item) -> Outcome:
        try:
            target = target_text(item.prompt, item.metadata)
        except TargetError as error:
            return ItemError("bad_metadata", str(error))
        try:
            lines = self._read(item.image)
        except Exception as error:  # whatever the engine raises is its failure on this image
            return ItemError("ocr_failed", f"{self._name} failed on this image: {type(error).__name__}: {error}")
        return score_lines(lines, target)

    def _read(self, image: RGBImage) -> list[str]:
        return text_lines(self.engine.read(image))


def score_lines(lines: Sequence[str], target: str) -> Scores:
    """Score and metrics for having read ``lines`` where ``target`` was asked for."""
    reading = " ".join(lines)
    score = text_reward(reading, target)
    return Scores(
        score=score,
        metrics={
            "contained": float(normalise(target) in normalise(reading)),
            "exact": float(normalise(target) == normalise(reading)),
            "best_line": max([score, *(text_reward(line, target) for line in lines)]),
        },
    )
