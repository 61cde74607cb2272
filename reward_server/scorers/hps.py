"""HPSv2.1 (https://arxiv.org/abs/2306.09341): a CLIP ViT-H/14 trained on which of two images people prefer.

As in the authors' package ``hpsv2`` (1.2.0), the score is the cosine of the two embeddings, without CLIP's logit
scale, and the image is not cropped: its *long* side is scaled to 224 and the rest is filled with black. The package
runs in float16 autocast; here the weights are float32 unless told otherwise. It also repairs broken Unicode and HTML
entities in prompts; here they are taken as they are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from reward_server.scorers.base import Item, ItemError, Outcome, Scores
from reward_server.scorers.clip import IMAGES_PER_PASS, Clip
from reward_server.scorers.clip_pixels import MEAN, STD
from reward_server.scorers.text_image import EXAMPLE, cosines

PROCESSOR = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"
PREPROCESSING = "hpsv2-1"  # raise the number with any change of ``pad_to_square`` that can change a pixel
PERCENT = 100.0


class HPSv2:
    """``score`` = cosine in [-1, 1], ``raw`` = 100 cosine, as the HPSv2 benchmark prints it. An empty prompt has none.

    Args:
        model: the file HPS_v2.1_compressed.pt of https://huggingface.co/xswu/HPSv2, or a folder made of it by
            ``awm-reward-server convert-open-clip``, which loads faster.
        processor: folder or Hugging Face id with the tokenizer; None takes the one in the model's folder, or for a
            file that of the CLIP it was trained from.
        antialias: smooth before shrinking the image. The package leaves this to torchvision: up to 0.16 (January
            2024) it did not, later versions do, so scores of different years differ by it.
        device: None takes a GPU if there is one.
        dtype: of the weights.
    """

    def __init__(
        self,
        model: str | None = None,
        processor: str | None = None,
        antialias: bool = True,
        device: str | None = None,
        dtype: str = "float32",
    ) -> None:
        if model is None or not Path(model).exists():
            raise ValueError(
                f"model is {model!r}; HPSv2.1 needs its checkpoint: download it (hf download xswu/HPSv2 "
                "HPS_v2.1_compressed.pt) and set model to the path of the file"
            )
        self.antialias = antialias
        if processor is None and Path(model).is_file():
            processor = PROCESSOR
        self.clip = Clip(model, processor=processor, device=device, dtype=dtype)

    def __call__(self, items: Sequence[Item]) -> list[Outcome]:
        """Score of each image for its own prompt."""
        return [
            cosine if isinstance(cosine, ItemError) else Scores(cosine, {"raw": PERCENT * cosine})
            for cosine in cosines(self.clip, items, self._embed)
        ]

    def fingerprint(self) -> Mapping[str, str]:
        """That of the model, with this scorer's own image preparation."""
        return {**self.clip.fingerprint(), "preprocessing": PREPROCESSING, "antialias": str(self.antialias).lower()}

    def example(self) -> tuple[str, Mapping[str, Any]]:
        """Any text will do."""
        return EXAMPLE, {}

    def _embed(self, images: Sequence[NDArray[np.uint8]]) -> Tensor:
        parts = [self.clip.image_embeddings([])]
        for start in range(0, len(images), IMAGES_PER_PASS):
            chunk = images[start : start + IMAGES_PER_PASS]
            pixels = [pad_to_square(image, self.clip.image_size, antialias=self.antialias) for image in chunk]
            parts.append(self.clip.encode_pixels(torch.stack(pixels)))
        return torch.cat(parts)


def pad_to_square(image: NDArray[np.uint8], size: int, *, antialias: bool = True) -> Tensor:
    """What HPSv2 sees of an image: all of it, in the middle of a black square.

    Args:
        image: [H, W, 3] uint8 RGB.
        size: side of the square, in pixels; the long side of the image is scaled to it.
        antialias: smooth before shrinking.

    Returns:
        [3, size, size] float32, normalised.
    """
    pixels = torch.tensor(np.ascontiguousarray(image)).permute(2, 0, 1).float() / 255
    height, width = pixels.shape[1:]
    new_height, new_width = (max(1, round(side * size / max(height, width))) for side in (height, width))
    if max(height, width) != size:
        pixels = F.interpolate(pixels[None], (new_height, new_width), mode="bicubic", antialias=antialias)[0]
    rows, columns = size - new_height, size - new_width
    pixels = F.pad(pixels, (columns // 2, columns - columns // 2, rows // 2, rows - rows // 2))
    return (pixels - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
