"""Stands in for the package of the same name: the calls the example makes, and a model one can compute by hand."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

loaded: dict[str, Any] = {}


def available_models() -> list[str]:
    return ["ImageReward-v1.0"]


def load(name: str, device: str, download_root: str, med_config: str | None) -> Model:
    loaded.update(name=name, device=device, download_root=download_root, med_config=med_config)
    if name in available_models():  # the real one downloads to this place
        Path(download_root).mkdir(parents=True, exist_ok=True)
        Path(download_root, "ImageReward.pt").write_bytes(b"weights")
    return Model(device)


class Encoding(SimpleNamespace):
    def to(self, device: str) -> Encoding:
        return Encoding(input_ids=self.input_ids.to(device), attention_mask=self.attention_mask.to(device))


def tokenizer(text: list[str], padding: str, truncation: bool, max_length: int, return_tensors: str) -> Encoding:
    """One token per character: its code point."""
    assert (padding, truncation, return_tensors) == ("max_length", True, "pt")
    ids = torch.zeros(len(text), max_length, dtype=torch.int64)
    for row, line in zip(ids, text, strict=True):
        codes = torch.tensor([ord(character) for character in line[:max_length]], dtype=torch.int64)
        row[: len(codes)] = codes
    return Encoding(input_ids=ids, attention_mask=(ids > 0).long())


@dataclass
class Model:
    """Reward = number of tokens + red of the first pixel / 1000; the parameter asks for gradients, as a real one."""

    device: str
    blip: SimpleNamespace = field(default_factory=lambda: SimpleNamespace(tokenizer=tokenizer))
    weight: Tensor = field(default_factory=lambda: torch.ones((), requires_grad=True))
    batches: list[int] = field(default_factory=list)

    def preprocess(self, image: Image.Image) -> Tensor:
        assert image.mode == "RGB"
        return torch.from_numpy(np.array(image.resize((2, 2), Image.Resampling.NEAREST))).permute(2, 0, 1).float()

    def score_gard(self, prompt_ids: Tensor, prompt_attention_mask: Tensor, image: Tensor) -> Tensor:
        """Rewards [B, 1]."""
        assert torch.is_inference_mode_enabled()
        self.batches.append(len(image))
        return (self.weight * (prompt_attention_mask.sum(1) + image[:, 0, 0, 0] / 1000)).unsqueeze(1)
