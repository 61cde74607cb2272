"""What RapidOCR reads, for real and without a network."""

from __future__ import annotations

import socket
from typing import Any, NoReturn

import numpy as np
import pytest

pytest.importorskip("rapidocr", reason="the OCR extra is not installed: pip install rapidocr onnxruntime")
pytest.importorskip("onnxruntime", reason="the OCR extra is not installed: pip install rapidocr onnxruntime")

from rapidocr.utils.output import RapidOCROutput

from reward_server.scorers.base import Item, Scores
from reward_server.scorers.ocr.lines import text_lines
from reward_server.scorers.ocr.rapid import RapidEngine
from reward_server.scorers.ocr.scorer import OcrScorer
from tests.reward_server.ocr.rendering import rendered, sign


@pytest.fixture(scope="module")
def scorer() -> OcrScorer:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", _no_network)
        return OcrScorer("rapidocr")


def _no_network(*_: object) -> NoReturn:
    raise OSError("the network is off")


def test_the_text_that_was_asked_for_is_worth_one_and_another_less_than_half(scorer: OcrScorer) -> None:
    image = sign("Maple Lane")
    right, wrong = scorer([Item(image, 'a sign "Maple Lane"', {}), Item(image, 'a sign "Fresh Bread"', {})])
    assert right == Scores(1.0, {"contained": 1.0, "exact": 1.0, "best_line": 1.0})
    assert isinstance(wrong, Scores) and wrong.score < 0.5


def test_boxes_come_in_reading_order(scorer: OcrScorer) -> None:
    # Three pieces far enough apart to be detected one by one, the rightmost a little higher than the others.
    image = rendered(("Main", (50, 100)), ("Only", (200, 92)), ("Gate 7", (128, 190)), size=256, font=32)
    boxes = scorer.engine.read(image)
    assert len(boxes) == 3
    assert text_lines(boxes[::-1]) == text_lines(boxes) == ["Main Only", "Gate 7"]


def test_a_small_image_of_a_short_text(scorer: OcrScorer) -> None:
    image = rendered(("K7", (32, 32)), size=64, font=28)
    assert text_lines(scorer.engine.read(image)) == ["K7"]


def test_images_without_text_score_zero_and_strange_shapes_harm_nobody(scorer: OcrScorer) -> None:
    noise = np.random.default_rng(0)
    images = [noise.integers(0, 255, shape, dtype=np.uint8) for shape in ((8, 8, 3), (1, 2000, 3))]
    images = [np.full((64, 64, 3), 128, dtype=np.uint8), *images, sign("OPEN")]
    outcomes = scorer([Item(image, 'a sign "OPEN"', {}) for image in images])
    assert [outcome.score for outcome in outcomes if isinstance(outcome, Scores)] == [0.0, 0.0, 0.0, 1.0]


def test_the_engine_gets_blue_green_red(scorer: OcrScorer, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []

    def spy(image: Any) -> RapidOCROutput:
        seen.append(image)
        return RapidOCROutput()

    monkeypatch.setattr(scorer.engine, "_engine", spy)
    assert scorer.engine.read(rendered(rgb=True)) == []
    assert seen[0][0, 0].tolist() == [255, 0, 0]


def test_half_a_result_is_an_error_and_no_zero(scorer: OcrScorer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scorer.engine, "_engine", lambda _: object())
    with pytest.raises(RuntimeError, match="found text but returned a object"):
        scorer.engine.read(sign("OPEN"))


def test_the_fingerprint_has_what_scores_depend_on(scorer: OcrScorer) -> None:
    fingerprint = scorer.fingerprint()
    assert {"engine", "rule_version", "rapidocr", "onnxruntime", "opencv", "settings"} == set(fingerprint)
    assert "Det.limit_side_len=320" in fingerprint["settings"] and "threads" not in fingerprint["settings"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threads": 0}, "threads is 0; expected an integer from 1"),
        ({"device": "cuda:1"}, "device is 'cuda:1'; choose cpu or cuda"),
        ({"detection_model": "nowhere.onnx"}, "detection_model: there is no file nowhere.onnx"),
        ({"settings": {"Globl.text_score": 0.3}}, "refuses its settings .*Globl.text_score is not a valid key"),
        ({"settings": {"Global.use_rec": False}}, "cannot read a test image"),
        ({"settings": {"Global.text_score": 1.1}}, "reads nothing in a clear picture"),
    ],
)
def test_options_that_cannot_work_are_refused_at_once(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RapidEngine(**options)


def test_a_file_that_is_no_model_is_refused_at_once(tmp_path: Any) -> None:
    (tmp_path / "model.onnx").write_bytes(b"junk")
    with pytest.raises(ValueError, match="RapidOCR cannot read a test image"):
        RapidEngine(recognition_model=str(tmp_path / "model.onnx"))
