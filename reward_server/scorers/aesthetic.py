"""LAION's aesthetic predictor V2: how beautiful people would find an image, from 1 to 10, whatever its prompt.

A linear network on the unit-norm image embedding of CLIP ViT-L/14, trained on ratings of SAC, LAION-Logos and AVA;
see https://github.com/christophschuhmann/improved-aesthetic-predictor. It was trained with dropout between its
layers and without activations; neither matters here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from reward_server.scorers.base import Item, Outcome, Scores
from reward_server.scorers.clip import Clip
from reward_server.scorers.clip_files import hash_weights
from reward_server.scorers.weights import read_weights

MODEL = "openai/clip-vit-large-patch14"
FILE = "sac+logos+ava1-l14-linearMSE.pth of https://github.com/christophschuhmann/improved-aesthetic-predictor"
WIDTHS = (1024, 128, 64, 16, 1)
POSITIONS = (0, 2, 4, 6, 7)  # of the linear layers in the file's numbering, which counts the dropouts


class Aesthetic:
    """``score`` = the predicted rating, on a scale of 1 to 10: beside rewards of about 0 to 1 it wants a small weight.

    The prompt is not looked at. The head's own dimension must be that of the CLIP's embeddings.

    Args:
        head: path of sac+logos+ava1-l14-linearMSE.pth.
        model: folder or Hugging Face id of the CLIP the head was trained on.
        device: None takes a GPU if there is one.
        dtype: of CLIP's weights; the head is float32.
        revision: branch, tag or commit of the model.
    """

    def __init__(
        self,
        head: str | None = None,
        model: str = MODEL,
        device: str | None = None,
        dtype: str = "float32",
        revision: str | None = None,
    ) -> None:
        weights = read_head(head)  # the cheap check first
        self.clip = Clip(model, device=device, dtype=dtype, revision=revision)
        self.head = build_head(weights, self.clip.model.config.projection_dim).to(self.clip.device)
        self._head_hash = hash_weights(weights)

    @torch.inference_mode()
    def __call__(self, items: Sequence[Item]) -> list[Outcome]:
        """Rating of each image."""
        ratings: Tensor = self.head(self.clip.image_embeddings([item.image for item in items]))
        return [Scores(rating) for rating in ratings.squeeze(-1).tolist()]

    def fingerprint(self) -> Mapping[str, str]:
        """That of CLIP, and a hash of the head's weights."""
        return {**self.clip.fingerprint(), "head_sha256": self._head_hash}

    def example(self) -> tuple[str, Mapping[str, Any]]:
        """Neither prompt nor metadata is looked at."""
        return "", {}


def read_head(path: str | None) -> dict[str, Tensor]:
    """The state dict in a head's file.

    Raises:
        ValueError: no file, or something else in it.
    """
    if path is None:
        raise ValueError(f"the aesthetic scorer needs {FILE}: download it and set the option head to its path")
    return read_weights(Path(path), FILE)


def build_head(weights: Mapping[str, Tensor], dimension: int) -> nn.Sequential:
    """The network [B, dimension] -> [B, 1] of a head's weights.

    Raises:
        ValueError: naming the weight that is missing, superfluous or of another shape.
    """
    inputs = (dimension, *WIDTHS[:-1])
    layers = [nn.Linear(i, o) for i, o in zip(inputs, WIDTHS, strict=True)]
    expected: dict[str, list[int]] = {}
    for position, layer in zip(POSITIONS, layers, strict=True):
        expected[f"layers.{position}.weight"] = list(layer.weight.shape)
        expected[f"layers.{position}.bias"] = list(layer.bias.shape)
    given = {name: list(tensor.shape) for name, tensor in weights.items()}
    for name in dict.fromkeys([*expected, *given]):
        if expected.get(name) != given.get(name):
            raise ValueError(
                f"{name} of the aesthetic head has shape {given.get(name)}, expected {expected.get(name)} for CLIP "
                f"embeddings of {dimension} numbers; expected {FILE}, and the CLIP it belongs to"
            )
    with torch.no_grad():
        for position, layer in zip(POSITIONS, layers, strict=True):
            layer.weight.copy_(weights[f"layers.{position}.weight"])
            layer.bias.copy_(weights[f"layers.{position}.bias"])
    return nn.Sequential(*layers).eval().requires_grad_(False)
