"""What the OCR scorer promises, whatever engine reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pytest

from reward_server.scorers.base import Item, ItemError, Scores
from reward_server.scorers.ocr import scorer as module
from reward_server.scorers.ocr.engine import (
    MAX_ASPECT,
    RGBImage,
    TextBox,
    TextEngine,
    bounded_aspect,
    check_engine,
)
from reward_server.scorers.ocr.scorer import OcrScorer, score_lines


class Lines:
    """An engine that reads what it was made to read, its boxes in reverse; it crashes if the first pixel is white."""

    def __init__(self, *, says: Sequence[str] = ()) -> None:
        self.says = says

    def read(self, image: RGBImage) -> list[TextBox]:
        if image[0, 0, 0] == 255:
            raise RuntimeError("out of luck")
        boxes = [
            TextBox(text, ((0, 20 * i), (50, 20 * i), (50, 20 * i + 15), (0, 20 * i + 15)))
            for i, text in enumerate(self.says)
        ]
        return boxes[::-1]

    def fingerprint(self) -> Mapping[str, str]:
        return {"says": "|".join(self.says)}


class Blind(Lines):
    """An engine that never reads anything."""

    def read(self, image: RGBImage) -> list[TextBox]:
        return []


GREY = np.full((8, 8, 3), 128, dtype=np.uint8)
WHITE = np.full((8, 8, 3), 255, dtype=np.uint8)


@pytest.fixture(autouse=True)
def lines_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(module.ENGINES, "lines", f"{__name__}:Lines")


@pytest.fixture
def scorer() -> OcrScorer:
    return OcrScorer("lines", says=["OPEN"])


def test_an_item_that_cannot_be_scored_is_an_error_and_leaves_the_others_alone(scorer: OcrScorer) -> None:
    items = [
        Item(GREY, 'a sign "OPEM"', {}),
        Item(GREY, "a sign", {}),
        Item(WHITE, 'a sign "OPEN"', {}),
        Item(GREY, "a sign", {"text": "open"}),
    ]
    good, no_target, crashed, best = scorer(items)
    assert isinstance(good, Scores) and good.score == 0.75
    assert isinstance(no_target, ItemError) and no_target.code == "bad_metadata" and "a sign" in no_target.message
    assert isinstance(crashed, ItemError) and crashed.code == "ocr_failed" and "out of luck" in crashed.message
    assert isinstance(best, Scores) and best.score == 1.0


def test_reading_nothing_is_a_score_of_zero() -> None:
    (outcome,) = OcrScorer("lines")([Item(GREY, 'a sign "OPEN"', {})])
    assert outcome == Scores(0.0, {"contained": 0.0, "exact": 0.0, "best_line": 0.0})


def test_metrics_tell_a_clean_sign_from_one_among_other_text_and_a_broken_one() -> None:
    assert score_lines(["Now", "open"], "now OPEN") == Scores(1.0, {"contained": 1.0, "exact": 1.0, "best_line": 1.0})
    assert score_lines(["shop", "open"], "OPEN") == Scores(1.0, {"contained": 1.0, "exact": 0.0, "best_line": 1.0})
    # Joined: openxshopx against opem, more than 4 edits. Best line: one of four letters is wrong.
    assert score_lines(["open", "x shop x"], "OPEM") == Scores(0.0, {"contained": 0.0, "exact": 0.0, "best_line": 0.75})


def test_lines_are_joined_in_reading_order() -> None:
    (outcome,) = OcrScorer("lines", says=["one more", "page"])([Item(GREY, "", {"text": "more page"})])
    assert isinstance(outcome, Scores) and outcome.score == 1.0


def test_the_fingerprint_names_engine_and_rule(scorer: OcrScorer) -> None:
    assert scorer.fingerprint() == {"rule_version": "1", "engine": "lines", "says": "OPEN"}


def test_its_own_example_gets_a_score(scorer: OcrScorer) -> None:
    prompt, metadata = scorer.example()
    assert scorer([Item(GREY, prompt, metadata)])[0] == Scores(1.0, {"contained": 1.0, "exact": 1.0, "best_line": 1.0})
    assert scorer([]) == []


def test_an_unknown_engine_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"unknown OCR engine 'rapid'; known: .*paddleocr, rapidocr, tesserocr"):
        OcrScorer("rapid")


@pytest.mark.parametrize(
    ("engine", "message"),
    [(Blind(), "reads nothing in a clear picture"), (Lines(), "cannot read a test image: RuntimeError: out of luck")],
)
def test_an_engine_that_would_score_everything_zero_is_refused(engine: TextEngine, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_engine(engine, "the engine")


@pytest.mark.parametrize(("height", "width"), [(1, 2000), (2000, 1), (3, 25), (1, 1), (100, 800), (64, 64)])
def test_extreme_shapes_are_padded_with_their_edges_and_others_left_alone(height: int, width: int) -> None:
    image = np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8)
    padded = bounded_aspect(image)
    short, long = sorted(padded.shape[:2])
    assert long == max(height, width) and long <= MAX_ASPECT * short
    if max(height, width) <= MAX_ASPECT * min(height, width):
        assert padded is image
    else:
        top, left = (padded.shape[0] - height) // 2, (padded.shape[1] - width) // 2
        assert (padded[top : top + height, left : left + width] == image).all()
        assert (padded[0, 0] == image[0, 0]).all() and (padded[-1, -1] == image[-1, -1]).all()
