"""The GenEval detector on mmdet itself, for a worker with an environment of its own (train_scripts/setup_mmdet.sh).

The original of what ``mask2former.py`` reproduces; with it one can check the one against the other. mmdet 3.x,
https://arxiv.org/abs/1906.07155
"""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from reward_server.scorers.devices import choose_device
from reward_server.scorers.geneval.checkpoint import read_checkpoint
from reward_server.scorers.geneval.clip_colors import ClipColors, build_colors
from reward_server.scorers.geneval.coco import CLASSES, check_classes
from reward_server.scorers.geneval.detector import RGBImage
from reward_server.scorers.geneval.rules import SCORE_THRESHOLD, Detection

VERSION = "1"  # raise it with any change that can change a score
CONFIG = "mask2former/mask2former_swin-s-p4-w7-224_8xb2-lsj-50e_coco.py"


class MmdetDetector:
    """Finds COCO's objects with an instance segmentation model of mmdet and names their colours with CLIP.

    Args:
        checkpoint: .pth file with the names of mmdet 3.x.
        config: the model's config file; None takes GenEval's Mask2Former from the installed mmdet.
        clip: model of the colour classifier; None takes the one GenEval uses.
        classifier: library of the colour classifier: "clip" (transformers) or "open_clip".
        device: such as "cuda:0"; None takes a GPU if there is one.

    Raises:
        ImportError: mmdet 3.x cannot be imported.
        ValueError: the checkpoint does not fit the config, or has other classes than COCO's.
    """

    classes: Sequence[str] = CLASSES

    def __init__(
        self,
        checkpoint: str,
        config: str | None = None,
        clip: str | None = None,
        *,
        classifier: str = "clip",
        device: str | None = None,
    ) -> None:
        weights = read_checkpoint(Path(checkpoint))
        mmdet = _import_mmdet("mmdet")
        apis = _import_mmdet("mmdet.apis")
        if config is None:
            config = str(Path(mmdet.__path__[0], ".mim", "configs", CONFIG))
        device = str(choose_device(device))
        self._checkpoint = Path(checkpoint)
        self._library_version = str(mmdet.__version__)
        self._infer = apis.inference_detector
        self._model: Any = apis.init_detector(config, checkpoint, device=device)
        # mmdet only warns, and goes on with random numbers in the places it found nothing for.
        absent = sorted(
            name
            for name in self._model.state_dict().keys() - weights.keys()
            if not name.endswith("relative_position_index")
        )
        if absent:
            raise ValueError(
                f"{checkpoint} lacks {len(absent)} weights of {config}, such as {absent[0]}. A file of mmdet 2.x has "
                "other names: take the one of 3.x, or convert it for the hf detector: awm-reward-server "
                "convert-mask2former"
            )
        names = self._model.dataset_meta["classes"]
        check_classes(len(names), dict(enumerate(names)), checkpoint)
        self._colors: ClipColors = build_colors(classifier, clip, device=device)

    def detect(self, images: Sequence[RGBImage]) -> list[list[Detection]]:
        """Objects of each image [H, W, 3]; mmdet takes one image after the other.

        Raises:
            FloatingPointError: a score is not finite.
        """
        # Arrays are BGR to mmdet, as if OpenCV had read them. GenEval's script passes file names; servers that pass
        # RGB arrays score images with red and blue exchanged.
        results = self._infer(self._model, [np.ascontiguousarray(image[..., ::-1]) for image in images])
        return [_detections(result.pred_instances) for result in results]

    def colors(self, queries: Sequence[tuple[RGBImage, Detection]]) -> list[str]:
        """GenEval colour of each object, by CLIP."""
        return self._colors(queries)

    def fingerprint(self) -> Mapping[str, str]:
        """Versions, hashes of checkpoint and config, and CLIP's fingerprint."""
        return dict(self._fingerprint)

    @cached_property
    def _fingerprint(self) -> Mapping[str, str]:
        return {
            "detector": "mmdet",
            "detector_version": VERSION,
            "detector_library_version": self._library_version,
            "detector_weights_sha256": hashlib.sha256(self._checkpoint.read_bytes()).hexdigest(),
            "detector_config_sha256": hashlib.sha256(self._model.cfg.pretty_text.encode()).hexdigest(),
            **self._colors.fingerprint(),
        }


def _detections(found: Any) -> list[Detection]:
    """The objects of one image that can pass the rules' threshold and have a mask that is not empty."""
    scores = found.scores.double().cpu()
    if not bool(scores.isfinite().all()):
        raise FloatingPointError("the detector returned NaN or infinity as a score")
    kept = (scores > SCORE_THRESHOLD) & found.masks.flatten(1).any(dim=1).cpu()
    detections = []
    for index in kept.nonzero().flatten().tolist():
        x0, y0, x1, y1 = (int(side) for side in found.bboxes[index].tolist())
        mask = found.masks[index, y0:y1, x0:x1].cpu().numpy()
        detections.append(
            Detection(CLASSES[int(found.labels[index])], float(scores[index]), (x0, y0, x1, y1), mask=mask)
        )
    return detections


def _import_mmdet(module: str) -> ModuleType:
    try:
        imported = importlib.import_module(module)
    except Exception as error:  # ImportError, or AssertionError if mmcv's version is not the one mmdet wants
        raise ImportError(
            f"the mmdet detector cannot import {module} ({error}). Build its environment with "
            "train_scripts/setup_mmdet.sh and let the server run this scorer with that environment's python, or use "
            "the hf detector, which needs none of it"
        ) from error
    if module == "mmdet" and not str(imported.__version__).startswith("3."):
        raise ImportError(f"the mmdet detector is written for mmdet 3.x; installed is {imported.__version__}")
    return imported
