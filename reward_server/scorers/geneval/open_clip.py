"""CLIP embeddings by open_clip, the library GenEval itself uses; needs torchvision. Installed by hand, if at all.

https://github.com/mlfoundations/open_clip
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from reward_server.scorers.clip import hash_weights
from reward_server.scorers.devices import choose_device

IMAGES_PER_PASS = 32
EXAMPLE = "ViT-L-14-quickgelu/openai"


class OpenClip:
    """Embeds images and texts, float32.

    Args:
        model: "ARCHITECTURE/WEIGHTS", the weights being a tag of open_clip or a file. OpenAI's weights need an
            architecture with "quickgelu" in its name.
        device: such as "cuda:0"; None takes a GPU if there is one.

    Raises:
        ImportError: open_clip or the torchvision it needs is missing or broken.
        ValueError: there is no such model.
    """

    def __init__(self, model: str = EXAMPLE, *, device: str | None = None) -> None:
        architecture, _, weights = model.partition("/")
        if not architecture or not weights:
            raise ValueError(f"clip is {model!r}; for open_clip it must be ARCHITECTURE/WEIGHTS, such as {EXAMPLE}")
        library = _import_open_clip()
        self._name = f"{architecture}/{weights.rpartition('/')[2]}"
        self._library_version = str(library.__version__)
        self.device = choose_device(device)
        with warnings.catch_warnings():
            # open_clip 3 only warns when it puts weights into a network with another activation function.
            warnings.filterwarnings("error", message="QuickGELU mismatch")
            try:
                made = library.create_model_and_transforms(architecture, pretrained=weights, device=str(self.device))
            except (RuntimeError, ValueError, OSError, UserWarning) as error:
                raise ValueError(
                    f"open_clip cannot load {model!r}; a valid name is {EXAMPLE}. Cause: {error}"
                ) from error
        network, _, self._preprocess = made
        self._network: Any = network.eval().requires_grad_(False)
        self._tokenizer = library.get_tokenizer(architecture)

    @torch.inference_mode()
    def image_embeddings(self, images: Sequence[NDArray[np.uint8]]) -> Tensor:
        """[B, D] of unit norm, of B images [H, W, 3]."""
        parts = []
        for start in range(0, len(images), IMAGES_PER_PASS):
            pixels = [self._preprocess(Image.fromarray(image)) for image in images[start : start + IMAGES_PER_PASS]]
            parts.append(self._network.encode_image(torch.stack(pixels).to(self.device), normalize=True))
        return torch.cat(parts)

    @torch.inference_mode()
    def text_embeddings(self, texts: Sequence[str]) -> Tensor:
        """[B, D] of unit norm, of B texts."""
        embeddings: Tensor = self._network.encode_text(self._tokenizer(list(texts)).to(self.device), normalize=True)
        return embeddings

    def fingerprint(self) -> Mapping[str, str]:
        """Model, hash of its weights, and version of the library, which also prepares the images."""
        return dict(self._fingerprint)

    @cached_property
    def _fingerprint(self) -> Mapping[str, str]:
        return {
            "model": self._name,
            "weights_sha256": hash_weights(self._network.state_dict()),
            "preprocessing": f"open_clip-{self._library_version}",
        }


def _import_open_clip() -> Any:
    try:
        return importlib.import_module("open_clip")
    except Exception as error:  # a torchvision that does not fit torch fails in several ways
        raise ImportError(
            f"classifier is 'open_clip', which cannot be imported ({error}). Leave the classifier at 'clip', which "
            "has the same weights, or install open_clip_torch together with the torchvision made for your torch"
        ) from error
