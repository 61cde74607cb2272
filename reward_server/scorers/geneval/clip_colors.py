"""GenEval's colour classifier: zero-shot CLIP on an object cut out of its image.

The object's pixels on a grey ground (#999999), cropped to its box, go to the colour whose text embedding is nearest.
A colour's text embedding is the mean, of unit norm, over three templates. GenEval,
https://arxiv.org/abs/2310.11513, section 3; CLIP, https://arxiv.org/abs/2103.00020
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from reward_server.scorers.geneval.detector import RGBImage
from reward_server.scorers.geneval.metadata import COLORS
from reward_server.scorers.geneval.rules import Detection
from reward_server.scorers.table import load

VERSION = "1"  # of the crops and templates; raise it with any change that can change a colour
GROUND = 0x99
TEMPLATES = ("a photo of a {color} {name}", "a photo of a {color}-colored {name}", "a photo of a {color} object")

CLASSIFIERS: dict[str, str] = {
    "clip": "reward_server.scorers.clip:Clip",
    "open_clip": "reward_server.scorers.geneval.open_clip:OpenClip",
}
"""Name -> dotted path of a class ``(model, *, device)`` with the methods of ``Embedder``, imported when chosen."""

DEFAULT_MODELS = {"clip": "openai/clip-vit-large-patch14", "open_clip": "ViT-L-14-quickgelu/openai"}
"""GenEval's CLIP, under the names it has in the two libraries."""


class Embedder(Protocol):
    """What maps images and texts into one space."""

    def image_embeddings(self, images: Sequence[NDArray[np.uint8]]) -> Tensor:
        """[B, D] of unit norm, of B images [H, W, 3]."""

    def text_embeddings(self, texts: Sequence[str]) -> Tensor:
        """[B, D] of unit norm, of B texts."""

    def fingerprint(self) -> Mapping[str, str]:
        """What the embeddings depend on."""


class ClipColors:
    """Names the colours of objects.

    Args:
        embedder: CLIP.
        classifier: its library's name, for the fingerprint.
    """

    def __init__(self, embedder: Embedder, classifier: str = "clip") -> None:
        self._embedder = embedder
        self._classifier = classifier
        self._of_class: dict[str, Tensor] = {}  # class name -> [number of colours, D]

    def __call__(self, queries: Sequence[tuple[RGBImage, Detection]]) -> list[str]:
        """Colour of each (image, object with mask); all crops are embedded in one call.

        Raises:
            FloatingPointError: an embedding is not finite, so that the nearest colour would be an accident.
        """
        if not queries:
            return []
        self._embed_texts(sorted({detection.class_name for _, detection in queries}))
        crops = self._embedder.image_embeddings([crop(image, detection) for image, detection in queries])
        texts = torch.stack([self._of_class[detection.class_name] for _, detection in queries])
        cosines = torch.einsum("bd,bcd->bc", crops, texts)
        if not bool(cosines.isfinite().all()):
            raise FloatingPointError("the colour classifier returned NaN or infinity; check the CLIP model's weights")
        return [COLORS[index] for index in cosines.argmax(dim=-1).tolist()]

    def fingerprint(self) -> Mapping[str, str]:
        """Version of the crops and templates, library, and the embedder's own fingerprint."""
        own = {"colors_version": VERSION, "colors_classifier": self._classifier}
        return own | {f"colors_{key}": value for key, value in self._embedder.fingerprint().items()}

    def _embed_texts(self, names: Sequence[str]) -> None:
        new = [name for name in names if name not in self._of_class]
        if not new:
            return
        texts = [t.format(color=color, name=name) for name in new for color in COLORS for t in TEMPLATES]
        embeddings = self._embedder.text_embeddings(texts).reshape(len(new), len(COLORS), len(TEMPLATES), -1)
        mean = embeddings.mean(dim=2)
        self._of_class |= dict(zip(new, mean / mean.norm(dim=-1, keepdim=True), strict=True))


def build_colors(classifier: str, model: str | None, *, device: str | None) -> ClipColors:
    """The colour classifier of a library's CLIP.

    Args:
        classifier: a name in ``CLASSIFIERS``.
        model: the library's name of the model, or a folder; None takes GenEval's.
        device: such as "cuda:0"; None takes a GPU if there is one.

    Raises:
        ValueError: the library or the model is unknown.
        ImportError: the library is not installed.
    """
    make = load(CLASSIFIERS, classifier, "classifier")
    embedder: Embedder = make(DEFAULT_MODELS[classifier] if model is None else model, device=device)
    return ClipColors(embedder, classifier)


def crop(image: RGBImage, detection: Detection) -> RGBImage:
    """The object's box [h, w, 3], grey outside its mask."""
    x0, y0, x1, y1 = (int(side) for side in detection.box)
    return np.where(detection.mask[..., None], image[y0:y1, x0:x1], np.uint8(GROUND))
