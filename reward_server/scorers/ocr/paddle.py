"""PaddleOCR 3, the engine of published OCR rewards, with model files of the user's.

See its technical report, https://arxiv.org/abs/2507.05595. PaddlePaddle is large and wants versions of its own, so it
runs best in a worker with an interpreter of its own, which train_scripts/setup_paddleocr.sh makes.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from reward_server.scorers.ocr.engine import RGBImage, TextBox, bounded_aspect, check_engine, corners_of, sha256

# Read when paddleocr is imported; without it the import asks several hosts whether they are there.
os.environ.setdefault("PADDLE_PDX_DISABLE_MODEL_SOURCE_CHECK", "True")
try:
    import yaml
    from paddleocr import PaddleOCR
except ImportError as error:
    raise ImportError(
        f"{error}. The paddleocr engine needs an environment of its own: run bash train_scripts/setup_paddleocr.sh and "
        "set the scorer's `python` to the interpreter it names"
    ) from error

DEVICES = {"cpu": "cpu", "cuda": "gpu:0"}  # the server lets a worker see one GPU
OFF = ("use_doc_orientation_classify", "use_doc_unwarping", "use_textline_orientation")
"""Sub-models for scanned pages. Each would be downloaded, and none helps with a picture."""


class PaddleEngine:
    """PaddleOCR with a detector and a recogniser from local folders; it never downloads.

    Args:
        detection_model: folder with ``inference.yml`` and the weights, such as ``models/PP-OCRv5_server_det``.
        recognition_model: the same for the recogniser, such as ``models/PP-OCRv5_server_rec``.
        device: "cpu" or "cuda"; None takes a GPU if PaddlePaddle finds one.
        threads: CPU threads of this process.
        settings: more keyword arguments of ``PaddleOCR``, such as ``{"text_rec_score_thresh": 0.5}``.

    Raises:
        ValueError: a folder is incomplete, a setting is unknown, or the models do not work.
    """

    def __init__(
        self,
        *,
        detection_model: str,
        recognition_model: str,
        device: str | None = None,
        threads: int = 1,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        if device is not None and device not in DEVICES:
            raise ValueError(f"device is {device!r}; choose cpu or cuda (the server decides which GPU a worker sees)")
        detection, recognition = Path(detection_model).expanduser(), Path(recognition_model).expanduser()
        self._settings: dict[str, Any] = {
            # Name and folder together: a folder alone is checked against the name of the default model.
            "text_detection_model_name": _model_name("detection_model", detection),
            "text_detection_model_dir": str(detection),
            "text_recognition_model_name": _model_name("recognition_model", recognition),
            "text_recognition_model_dir": str(recognition),
            **dict.fromkeys(OFF, False),
            "device": None if device is None else DEVICES[device],
            "cpu_threads": threads,
            "enable_mkldnn": False,  # PaddlePaddle 3.3 fails with it: "ConvertPirAttribute2RuntimeAttribute"
            **(settings or {}),
        }
        try:
            self._engine: Any = PaddleOCR(**self._settings)
        except Exception as error:  # it raises plain Exception, among others
            raise ValueError(f"PaddleOCR cannot start with {self._settings}: {error}") from error
        check_engine(self, "PaddleOCR")
        self._hashes = {"detection_sha256": _folder_hash(detection), "recognition_sha256": _folder_hash(recognition)}

    def read(self, image: RGBImage) -> list[TextBox]:
        """Texts of one image; images more than eight times as long as wide are padded first."""
        result = self._engine.predict(np.ascontiguousarray(bounded_aspect(image)[:, :, ::-1]))[0]  # it takes BGR
        return [
            TextBox(text, corners_of(corners))
            for text, corners in zip(result["rec_texts"], result["rec_polys"], strict=True)
            if text.strip()
        ]

    def fingerprint(self) -> Mapping[str, str]:
        """Versions, settings and hashes of the models."""
        places = ("text_detection_model_dir", "text_recognition_model_dir", "device", "cpu_threads")
        settings = {key: value for key, value in sorted(self._settings.items()) if key not in places}
        return {
            "paddleocr": version("paddleocr"),
            "paddlepaddle": _paddle_version(),
            "settings": " ".join(f"{key}={value}" for key, value in settings.items()),
            **self._hashes,
        }


def _model_name(option: str, folder: Path) -> str:
    description = folder / "inference.yml"
    if not description.is_file():
        raise ValueError(
            f"{option}: there is no {description}; give the folder of an inference model of PaddleOCR 3, such as "
            "train_scripts/setup_paddleocr.sh --models DIR downloads"
        )
    try:
        return str(yaml.safe_load(description.read_text(encoding="utf-8"))["Global"]["model_name"])
    except (yaml.YAMLError, KeyError, TypeError) as error:
        raise ValueError(f"{option}: {description} does not name its model under Global.model_name") from error


def _folder_hash(folder: Path) -> str:
    return sha256(*sorted(path for path in folder.iterdir() if path.name.startswith("inference.")))


def _paddle_version() -> str:
    for package in ("paddlepaddle-gpu", "paddlepaddle"):
        try:
            return f"{package} {version(package)}"
        except PackageNotFoundError:
            continue
    return "unknown"
