"""CLIP embeddings of images and texts (https://arxiv.org/abs/2103.00020), for every scorer that is built on CLIP."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from reward_server.scorers.clip_conversion import load_open_clip
from reward_server.scorers.clip_files import check_pair, load_model, load_tokenizer
from reward_server.scorers.clip_files import hash_weights as hash_weights  # the alias makes the name public here too
from reward_server.scorers.clip_pixels import PREPROCESSING
from reward_server.scorers.clip_pixels import preprocess as preprocess
from reward_server.scorers.devices import choose_device

IMAGES_PER_PASS = 32  # bounds the memory of a forward pass, however many images there are
TEXTS_PER_PASS = 256

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}

T = TypeVar("T")


class Clip:
    """A CLIP model with its tokenizer, for inference.

    Args:
        model: folder or Hugging Face id of a ``CLIPModel``, or an open_clip checkpoint file without QuickGELU.
        processor: folder or id with the tokenizer; None takes the model's.
        device: such as "cuda:0"; None takes a GPU if there is one.
        dtype: of the weights: float32, float16 or bfloat16. Embeddings are float32 in any case.
        revision: branch, tag or commit of ``model`` on the hub.

    Attributes:
        model: the ``CLIPModel``.
        image_size: side of the square images the model sees, in pixels.
        logit_scale: what CLIP multiplies cosines with, exponential included; 100 for most published models.

    Raises:
        ValueError: the model or the tokenizer cannot be loaded, or they do not belong together.
    """

    def __init__(
        self,
        model: str,
        *,
        processor: str | None = None,
        device: str | None = None,
        dtype: str = "float32",
        revision: str | None = None,
    ) -> None:
        if dtype not in DTYPES:
            raise ValueError(f"dtype is {dtype!r}; choose one of {', '.join(DTYPES)}")
        self.device = choose_device(device)
        own = processor is None or processor == model
        self.tokenizer = load_tokenizer(model if processor is None else processor, revision if own else None)
        path = Path(model)
        loaded = load_open_clip(path, DTYPES[dtype]) if path.is_file() else load_model(model, DTYPES[dtype], revision)
        check_pair(loaded, self.tokenizer, model, processor or model)
        self.model = loaded.to(self.device)
        # "cuda" means another GPU in another thread: scoring may happen in any.
        self.device = next(self.model.parameters()).device
        self.image_size: int = loaded.config.vision_config.image_size
        self.logit_scale: float = loaded.logit_scale.float().exp().item()
        self._name = path.name if path.exists() else model  # where a folder lies does not change a score
        self._dtype = dtype

    @torch.inference_mode()
    def image_embeddings(self, images: Sequence[NDArray[np.uint8]]) -> Tensor:
        """Embeddings [B, D] of unit norm, float32, of B images [H, W, 3] uint8 RGB, each of any size."""
        parts = [self._nothing()]
        for chunk in _chunks(images, IMAGES_PER_PASS):
            pixels = np.stack([preprocess(image, self.image_size) for image in chunk])
            parts.append(self.encode_pixels(torch.from_numpy(pixels)))
        return torch.cat(parts)

    @torch.inference_mode()
    def text_embeddings(self, texts: Sequence[str]) -> Tensor:
        """Embeddings [B, D] of unit norm, float32, of B texts, each cut off at CLIP's limit of 77 tokens."""
        parts = [self.encode_texts(chunk) for chunk in _chunks(texts, TEXTS_PER_PASS)]
        return torch.cat([self._nothing(), *parts])

    def encode_pixels(self, pixels: Tensor) -> Tensor:
        """Unit-norm embeddings [B, D] of prepared pixels [B, 3, S, S], in one pass; differentiable."""
        pixels = pixels.to(self.device, self.model.dtype)
        return _unit(self.model.get_image_features(pixel_values=pixels).pooler_output)

    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        """Unit-norm embeddings [B, D] of texts, in one pass."""
        limit = self.model.config.text_config.max_position_embeddings
        tokens = self.tokenizer(list(texts), padding=True, truncation=True, max_length=limit, return_tensors="pt")
        features = self.model.get_text_features(
            input_ids=tokens.input_ids.to(self.device), attention_mask=tokens.attention_mask.to(self.device)
        )
        return _unit(features.pooler_output)

    def fingerprint(self) -> Mapping[str, str]:
        """Model, architecture, hashes of weights and vocabulary, number format, version of the image preparation."""
        return dict(self._fingerprint)

    @cached_property
    def _fingerprint(self) -> Mapping[str, str]:
        vocabulary = json.dumps(sorted(self.tokenizer.get_vocab().items())).encode()
        vision, text = self.model.config.vision_config, self.model.config.text_config
        return {
            "model": self._name,
            "weights_sha256": hash_weights(self.model.state_dict()),
            # What the weights do not show: the same ones under another activation are another model.
            "architecture": f"{vision.hidden_act}, {vision.num_attention_heads} and {text.num_attention_heads} heads",
            "vocabulary_sha256": hashlib.sha256(vocabulary).hexdigest(),
            "dtype": self._dtype,
            "preprocessing": PREPROCESSING,
        }

    def _nothing(self) -> Tensor:
        return torch.empty(0, self.model.config.projection_dim, device=self.device)


def _unit(embeddings: Tensor) -> Tensor:
    return F.normalize(embeddings.to(torch.promote_types(embeddings.dtype, torch.float32)), dim=-1)


def _chunks(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
