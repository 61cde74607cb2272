"""RapidOCR: the PP-OCR models in ONNX, on CPU or GPU (https://github.com/RapidAI/RapidOCR).

The wheel carries PP-OCRv6 small, so the default needs no download. The detector sees images at least 320 pixels wide
and high: with RapidOCR's own 736, rendered texts are read no better, and an image takes two to four times as long
(benchmarks/results/ocr_engines.json).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from reward_server.scorers.ocr.engine import RGBImage, TextBox, bounded_aspect, check_engine, corners_of, sha256

try:
    import cv2
    import onnxruntime
    from rapidocr import RapidOCR
    from rapidocr.utils.output import RapidOCROutput
except ImportError as error:
    raise ImportError(
        f"{error}. The rapidocr engine needs: pip install rapidocr onnxruntime (onnxruntime-gpu for a GPU)"
    ) from error

DETECTOR_SIDE = 320  # pixels
CUDA = "CUDAExecutionProvider"
USE_CUDA = "EngineConfig.onnxruntime.use_cuda"
THREADS = "EngineConfig.onnxruntime.intra_op_num_threads"
DET_MODEL, REC_MODEL = "Det.model_path", "Rec.model_path"
INTER_OP = "EngineConfig.onnxruntime.inter_op_num_threads"
LOG_LEVEL = "Global.log_level"
NOT_IN_FINGERPRINT = (THREADS, INTER_OP, LOG_LEVEL, DET_MODEL, REC_MODEL)  # models are there by their hashes


class RapidEngine:
    """RapidOCR with local models.

    Args:
        threads: CPU threads of this process. The default suits several workers on one machine, best one per core;
            left to itself, each would start a thread for every core.
        device: "cpu" or "cuda"; None takes a GPU if onnxruntime is built for one and one is visible.
        detection_model: another PP-OCR detector, as an ONNX file.
        recognition_model: another PP-OCR recogniser, as an ONNX file with its characters inside.
        settings: more of RapidOCR's settings by their dotted names, such as ``{"Global.text_score": 0.3}``.

    Raises:
        ValueError: a file is missing, a setting is unknown, or the models do not work.
    """

    def __init__(
        self,
        *,
        threads: int = 1,
        device: str | None = None,
        detection_model: str | None = None,
        recognition_model: str | None = None,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        threads = _checked_threads(threads)
        models = {
            key: _checked_file(option, path)
            for key, option, path in (
                (DET_MODEL, "detection_model", detection_model),
                (REC_MODEL, "recognition_model", recognition_model),
            )
            if path is not None
        }
        own = {
            "Det.limit_side_len": DETECTOR_SIDE,
            "Det.limit_type": "min",
            THREADS: threads,
            INTER_OP: 1,
            USE_CUDA: _use_cuda(device),
            LOG_LEVEL: "error",  # it warns of every image without text
        }
        self._settings: dict[str, Any] = own | {key: str(path) for key, path in models.items()} | dict(settings or {})
        cv2.setNumThreads(threads)
        try:
            self._engine = RapidOCR(params=self._settings)
        except Exception as error:
            raise ValueError(f"RapidOCR refuses its settings {self._settings}: {error}") from error
        # RapidOCR loads its models when it first needs them, and would then try to download missing ones.
        check_engine(self, "RapidOCR")
        detector: Any = self._engine.text_det
        if self._settings[USE_CUDA] and CUDA not in detector.session.session.get_providers():
            raise ValueError("onnxruntime cannot use this machine's GPU (its log says why); set device to 'cpu'")
        self._hashes = {f"{key.lower()}_sha256": sha256(path) for key, path in models.items()}

    def read(self, image: RGBImage) -> list[TextBox]:
        """Texts of one image; images more than eight times as long as wide are padded first."""
        result = self._engine(np.ascontiguousarray(bounded_aspect(image)[:, :, ::-1]))  # it takes BGR
        if not isinstance(result, RapidOCROutput):
            # When the detector or the recogniser comes to nothing, the other's output is what returns.
            raise RuntimeError(f"RapidOCR found text but returned a {type(result).__name__} instead of what it says")
        if result.txts is None or result.boxes is None:
            return []
        return [TextBox(text, corners_of(quad)) for text, quad in zip(result.txts, result.boxes, strict=True)]

    def fingerprint(self) -> Mapping[str, str]:
        """Versions (that of rapidocr fixes the models in its wheel), settings, and hashes of other models."""
        settings = {key: value for key, value in sorted(self._settings.items()) if key not in NOT_IN_FINGERPRINT}
        return {
            "rapidocr": version("rapidocr"),
            "onnxruntime": onnxruntime.__version__,
            "opencv": cv2.__version__,
            "settings": " ".join(f"{key}={value}" for key, value in settings.items()),
            **self._hashes,
        }


def _checked_threads(threads: int) -> int:
    cores = os.cpu_count() or 1
    if isinstance(threads, bool) or not isinstance(threads, int) or threads < 1:
        raise ValueError(f"threads is {threads!r}; expected an integer from 1 to {cores}, the number of cores")
    return min(threads, cores)  # for more than there are, RapidOCR silently leaves the number to onnxruntime


def _checked_file(option: str, name: str) -> Path:
    path = Path(name).expanduser()
    if not path.is_file():
        raise ValueError(f"{option}: there is no file {path}; give the .onnx file of a PP-OCR model")
    return path


def _use_cuda(device: str | None) -> bool:
    if device not in (None, "cpu", "cuda"):
        raise ValueError(f"device is {device!r}; choose cpu or cuda (the server decides which GPU a worker sees)")
    built = CUDA in onnxruntime.get_available_providers()
    if device == "cuda" and not built:
        raise ValueError("device is 'cuda', but this onnxruntime is for the CPU; pip install onnxruntime-gpu instead")
    if device is None:
        return built and os.environ.get("CUDA_VISIBLE_DEVICES", "") not in ("", "-1")
    return device == "cuda"
