"""How PaddleOCR 3 is called, with a stand-in for the package, which comes without models."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from reward_server.scorers.base import Item, ItemError, Scores
from reward_server.scorers.ocr.scorer import OcrScorer
from tests.reward_server.ocr.rendering import rendered, sign

MODULE = "reward_server.scorers.ocr.paddle"
VARIABLE = "PADDLE_PDX_DISABLE_MODEL_SOURCE_CHECK"


class PaddleOCR:
    """Answers as ``predict`` of paddleocr 3.7 does, once per image."""

    made_with: dict[str, Any]
    seen: list[Any]

    def __init__(self, **options: Any) -> None:
        if "foo" in options:
            raise ValueError("Unknown argument: foo")
        type(self).made_with, type(self).seen = options, []

    def predict(self, image: Any) -> list[dict[str, Any]]:
        self.seen.append(image)
        if image.shape == (13, 13, 3):
            raise RuntimeError("(Unimplemented) something in C++")
        if image.min() == image.max():
            return [{"rec_texts": [], "rec_polys": []}]
        polys = [np.array([[x, y], [x + 50, y], [x + 50, y + 20], [x, y + 20]], np.int16) for x, y in ((80, 9), (9, 9))]
        return [{"rec_texts": ["Lane", "Maple"], "rec_polys": polys}]


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, str]]:
    """Options with two model folders; the stand-in is installed."""
    package = ModuleType("paddleocr")
    package.PaddleOCR = PaddleOCR  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "paddleocr", package)
    monkeypatch.setenv(VARIABLE, "")  # so that it is restored, whatever it was
    monkeypatch.delenv(VARIABLE)
    monkeypatch.delitem(sys.modules, MODULE, raising=False)
    for folder, name in (("det", "PP-OCRv5_server_det"), ("rec", "PP-OCRv5_server_rec")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "inference.yml").write_text(f"Global:\n  model_name: {name}\n")
        (tmp_path / folder / "inference.pdiparams").write_bytes(name.encode())
    yield {"detection_model": str(tmp_path / "det"), "recognition_model": str(tmp_path / "rec")}
    sys.modules.pop(MODULE, None)


def test_nothing_is_left_that_would_download(models: dict[str, str]) -> None:
    OcrScorer("paddleocr", **models)
    assert os.environ[VARIABLE] == "True"
    made_with = PaddleOCR.made_with
    assert made_with["text_detection_model_name"] == "PP-OCRv5_server_det"
    assert made_with["text_detection_model_dir"] == models["detection_model"]
    assert made_with["text_recognition_model_name"] == "PP-OCRv5_server_rec"
    assert made_with["text_recognition_model_dir"] == models["recognition_model"]
    unused = ("use_doc_orientation_classify", "use_doc_unwarping", "use_textline_orientation")
    assert [made_with[key] for key in unused] == [False] * 3


def test_results_become_scores_and_a_crash_an_error(models: dict[str, str]) -> None:
    scorer = OcrScorer("paddleocr", **models)
    images = [sign("any"), np.full((64, 64, 3), 128, np.uint8), np.zeros((13, 13, 3), np.uint8)]
    read, blank, crashed = scorer([Item(image, 'a sign "Maple Lane"', {}) for image in images])
    assert read == Scores(1.0, {"contained": 1.0, "exact": 1.0, "best_line": 1.0})
    assert isinstance(blank, Scores) and blank.score == 0.0
    assert isinstance(crashed, ItemError) and crashed.code == "ocr_failed"


def test_the_engine_gets_blue_green_red(models: dict[str, str]) -> None:
    OcrScorer("paddleocr", **models).engine.read(rendered(rgb=True))
    assert PaddleOCR.seen[-1][0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize(("device", "passed_on"), [(None, None), ("cpu", "cpu"), ("cuda", "gpu:0")])
def test_device(models: dict[str, str], device: str | None, passed_on: str | None) -> None:
    OcrScorer("paddleocr", **models, device=device)
    assert PaddleOCR.made_with["device"] == passed_on
    assert PaddleOCR.made_with["enable_mkldnn"] is False  # with it, PaddlePaddle 3.3 does not run on a CPU


def test_settings_come_last_and_show_in_the_fingerprint(
    models: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = _fingerprint(models, monkeypatch)
    other = _fingerprint({**models, "settings": {"enable_mkldnn": True}}, monkeypatch)  # type: ignore[dict-item]
    assert PaddleOCR.made_with["enable_mkldnn"] is True
    assert plain["settings"] != other["settings"] and plain["detection_sha256"] == other["detection_sha256"]
    assert plain["detection_sha256"] != plain["recognition_sha256"]


def _fingerprint(options: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    scorer = OcrScorer("paddleocr", **options)
    monkeypatch.setattr(sys.modules[MODULE], "version", lambda package: f"version of {package}")
    return dict(scorer.fingerprint())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "gpu:1"}, "device is 'gpu:1'; choose cpu or cuda"),
        ({"detection_model": "/nowhere"}, "detection_model: there is no /nowhere/inference.yml"),
        ({"settings": {"foo": 1}}, "PaddleOCR cannot start with .*Unknown argument: foo"),
    ],
)
def test_options_that_cannot_work_are_refused_at_once(
    models: dict[str, str], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        OcrScorer("paddleocr", **{**models, **options})


def test_a_model_that_does_not_say_its_name_is_refused(models: dict[str, str]) -> None:
    Path(models["recognition_model"], "inference.yml").write_text("Global: {}\n")
    with pytest.raises(ValueError, match=r"recognition_model: .* does not name its model under Global\.model_name"):
        OcrScorer("paddleocr", **models)


@pytest.mark.skipif(importlib.util.find_spec("paddleocr") is not None, reason="paddleocr is installed")
def test_without_the_package_the_error_names_the_script() -> None:
    with pytest.raises(ImportError, match=r"bash train_scripts/setup_paddleocr\.sh"):
        OcrScorer("paddleocr", detection_model="det", recognition_model="rec")


SCRIPT = Path(__file__).parents[3] / "train_scripts/setup_paddleocr.sh"


@pytest.mark.parametrize(
    ("arguments", "message"), [(["--gpu"], "such as cu126"), (["--cuda"], "unknown option --cuda")]
)
def test_the_script_refuses_what_it_does_not_understand_before_it_makes_anything(
    tmp_path: Path, arguments: list[str], message: str
) -> None:
    environment = os.environ | {"VENV": str(tmp_path / "venv")}
    ended = subprocess.run(["bash", str(SCRIPT), *arguments], env=environment, capture_output=True, text=True)
    assert ended.returncode == 2 and message in ended.stderr
    assert not (tmp_path / "venv").exists()
