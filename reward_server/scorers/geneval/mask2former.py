"""The GenEval detector on transformers' Mask2Former, with mmdet's arithmetic around the network.

Either a model of the Hugging Face hub, or mmdet's own weights, which GenEval's published numbers come from, after
``awm-reward-server convert-mask2former``. Mask2Former: https://arxiv.org/abs/2112.01527
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from reward_server.scorers.clip import DTYPES, hash_weights
from reward_server.scorers.devices import choose_device
from reward_server.scorers.geneval.clip_colors import ClipColors, build_colors
from reward_server.scorers.geneval.coco import CLASSES, check_classes
from reward_server.scorers.geneval.detector import RGBImage
from reward_server.scorers.geneval.instances import Geometry, geometry, instances, prepare
from reward_server.scorers.geneval.rules import Detection

VERSION = "1"  # of preparation and post-processing; raise it with any change that can change a score
PIXELS_PER_PASS = 8 * 800 * 800  # padded pixels in one forward pass
UNUSED_WEIGHTS = (r".*\.swin\.layernorm\..*", r"criterion\.empty_weight")
"""Patterns of names that a checkpoint need not have: the outputs do not depend on them."""


class Mask2FormerDetector:
    """Finds COCO's objects with Mask2Former and names their colours with CLIP.

    Args:
        model: folder or Hugging Face id of a ``Mask2FormerForUniversalSegmentation`` for COCO instances.
        clip: model of the colour classifier; None takes the one GenEval uses.
        classifier: library of the colour classifier: "clip" (transformers) or "open_clip".
        device: such as "cuda:0"; None takes a GPU if there is one.
        dtype: of the backbone's arithmetic, most of the work: float32, bfloat16 or float16.
        resize_bytes: resize the image as bytes, as mmdet 2.x does, with which GenEval's published numbers were
            made, and not as floats, as mmdet 3.x does.
        pixels_per_pass: how many pixels, padding included, go through the network at once.

    Raises:
        ValueError: an option, the model or the classifier is not usable.
        ImportError: scipy is missing, or transformers cannot import the model.
    """

    classes: Sequence[str] = CLASSES

    def __init__(
        self,
        model: str = "facebook/mask2former-swin-small-coco-instance",
        clip: str | None = None,
        *,
        classifier: str = "clip",
        device: str | None = None,
        dtype: str = "float32",
        resize_bytes: bool = False,
        pixels_per_pass: int = PIXELS_PER_PASS,
    ) -> None:
        if dtype not in DTYPES:
            raise ValueError(f"dtype is {dtype!r}; choose one of {', '.join(DTYPES)}")
        if pixels_per_pass < 1:
            raise ValueError(f"pixels_per_pass is {pixels_per_pass}; it must be positive, by default {PIXELS_PER_PASS}")
        self._dtype = dtype
        self._name = Path(model).resolve().name if Path(model).is_dir() else model
        self._resize_bytes = resize_bytes
        self._pixels_per_pass = pixels_per_pass
        self.device = choose_device(device)
        self.model = load_mask2former(model).to(self.device)
        if dtype != "float32":
            autocast_backbone(self.model, self.device.type, DTYPES[dtype])
        self._colors: ClipColors = build_colors(classifier, clip, device=device)

    def detect(self, images: Sequence[RGBImage]) -> list[list[Detection]]:
        """Objects of each image [H, W, 3]; images that end up the same size go through the network together."""
        sizes = [geometry(*image.shape[:2]) for image in images]
        found: dict[int, list[Detection]] = {}
        for batch in self._batches(sizes):
            pixels = [prepare(images[i], sizes[i], device=self.device, bytes_first=self._resize_bytes) for i in batch]
            class_logits, mask_logits = self._forward(torch.stack(pixels))
            for i, of_classes, of_masks in zip(batch, class_logits, mask_logits, strict=True):
                found[i] = [
                    Detection(CLASSES[object_.label], object_.score, object_.box, mask=object_.mask)
                    for object_ in instances(of_classes, of_masks, sizes[i])
                ]
        return [found[i] for i in range(len(images))]

    def colors(self, queries: Sequence[tuple[RGBImage, Detection]]) -> list[str]:
        """GenEval colour of each object, by CLIP."""
        return self._colors(queries)

    def fingerprint(self) -> Mapping[str, str]:
        """Model, hash of its weights, number format, version of the arithmetic around it; CLIP's fingerprint."""
        return dict(self._fingerprint)

    @cached_property
    def _fingerprint(self) -> Mapping[str, str]:
        converted = getattr(self.model.config, "converted_from", None)
        return {
            "detector": f"{converted}-converted" if converted else "hf",
            "detector_version": VERSION,
            "detector_model": self._name,
            "detector_weights_sha256": hash_weights(self.model.state_dict()),
            "detector_dtype": self._dtype,
            "detector_resizes": "bytes" if self._resize_bytes else "floats",
            **self._colors.fingerprint(),
        }

    def _batches(self, sizes: Sequence[Geometry]) -> Iterator[list[int]]:
        """Indices of images of one padded size, as many together as the pixel budget allows, at least one."""
        of_size: dict[tuple[int, int], list[int]] = {}
        for index, of_image in enumerate(sizes):
            of_size.setdefault(of_image.padded, []).append(index)
        for (height, width), indices in of_size.items():
            step = max(1, self._pixels_per_pass // (height * width))
            yield from (indices[start : start + step] for start in range(0, len(indices), step))

    @torch.inference_mode()
    def _forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Class logits [B, Q, 81] and mask logits [B, Q, h, w] of prepared images [B, 3, H, W]."""
        output = self.model(pixel_values=pixels)
        return output.class_queries_logits, output.masks_queries_logits


def load_mask2former(name: str) -> Any:
    """The ``Mask2FormerForUniversalSegmentation`` of a folder or hub id, checked, float32, frozen, on the CPU."""
    if importlib.util.find_spec("scipy") is None:
        raise ImportError("transformers' Mask2Former needs scipy, even for inference: pip install scipy")
    # Here and not above, so that the import of CLIP comes first: it explains the failure of a broken torchvision.
    from transformers import Mask2FormerForUniversalSegmentation

    try:
        model, report = Mask2FormerForUniversalSegmentation.from_pretrained(
            name, dtype=torch.float32, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"cannot load the Mask2Former {name!r}: give a folder in the format of transformers, or the id of a model "
            f"on the Hugging Face hub. Without internet, download it beforehand: hf download {name}. For a .pth file "
            f"of mmdet: awm-reward-server convert-mask2former FILE FOLDER. Cause: {error}"
        ) from error
    # transformers would fill what is missing with random numbers and only warn.
    if missing := sorted(necessary(report["missing_keys"])):
        raise ValueError(
            f"{name!r} is no complete Mask2Former: it lacks {len(missing)} weights ({', '.join(missing[:3])}, ...)"
        )
    names = {i: n for i, n in model.config.id2label.items() if n != f"LABEL_{i}"}  # transformers' placeholder
    check_classes(model.config.num_labels, names, repr(name))
    model.config.use_auxiliary_loss = True  # without it transformers 5.23 cannot compute the class logits
    return model.eval().requires_grad_(False)


def autocast_backbone(model: Any, device_type: str, dtype: torch.dtype) -> None:
    """Let the Swin backbone of a Mask2Former compute in a shorter format.

    The rest stays as it is: transformers computes coordinates in the format of the features, and bfloat16 has no
    numbers between 256 and 258. A whole model in bfloat16 answered with NaN.
    """
    backbone = model.model.pixel_level_module.encoder
    compute = backbone.forward

    def forward(*arguments: Any, **options: Any) -> Any:
        with torch.autocast(device_type, dtype):
            output = compute(*arguments, **options)
        output.feature_maps = tuple(features.float() for features in output.feature_maps)
        return output

    backbone.forward = forward


def necessary(missing: Iterable[str]) -> list[str]:
    """Those of the missing weights without which the model is not complete."""
    return [name for name in missing if not any(re.fullmatch(pattern, name) for pattern in UNUSED_WEIGHTS)]
