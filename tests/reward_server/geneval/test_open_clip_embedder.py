"""The open_clip embedder normalises, batches and refuses what open_clip would only warn of; open_clip is a fake."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from reward_server.scorers.geneval.clip_colors import build_colors
from reward_server.scorers.geneval.open_clip import IMAGES_PER_PASS, OpenClip


class FakeNetwork(nn.Module):
    """Embeds images as their mean colour and texts as they come."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.eye(3))
        self.batches: list[int] = []

    def encode_image(self, pixels: Tensor, normalize: bool) -> Tensor:
        assert normalize
        self.batches.append(len(pixels))
        return nn.functional.normalize(pixels.mean(dim=(2, 3)) @ self.weight, dim=-1)

    def encode_text(self, tokens: Tensor, normalize: bool) -> Tensor:
        assert normalize
        return nn.functional.normalize(tokens.float() @ self.weight, dim=-1)


def preprocess(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.asarray(image.resize((4, 4))).copy()).permute(2, 0, 1).float()


def tokenizer(texts: Sequence[str]) -> Tensor:
    paints = {" red": [255, 0, 0], " blue": [0, 0, 255]}
    return torch.tensor([next((rgb for word, rgb in paints.items() if word in t), [0, 1, 0]) for t in texts])


def create(name: str, pretrained: str, device: str) -> tuple[nn.Module, None, Callable[[Image.Image], Tensor]]:
    if pretrained == "nothing":
        raise RuntimeError("Pretrained value 'nothing' is not a known tag or valid file path")
    if pretrained == "openai" and "quickgelu" not in name:
        warnings.warn(f"QuickGELU mismatch between final model config and pretrained tag '{pretrained}'", stacklevel=1)
    return FakeNetwork(), None, preprocess


@pytest.fixture(autouse=True)
def library(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    fake = ModuleType("open_clip")
    members: dict[str, Any] = {"create_model_and_transforms": create, "get_tokenizer": lambda name: tokenizer}
    vars(fake).update(__version__="3.3.0", **members)
    monkeypatch.setitem(sys.modules, "open_clip", fake)
    return fake


def test_images_go_through_in_passes_of_bounded_size() -> None:
    clip = OpenClip(device="cpu")
    number = IMAGES_PER_PASS + 3
    images = [np.full((5, 6 + i, 3), (3 * i, 4 * i, 1), np.uint8) for i in range(number)]
    embeddings = clip.image_embeddings(images)
    assert clip._network.batches == [IMAGES_PER_PASS, 3]
    assert embeddings[10].tolist() == pytest.approx(np.array([30, 40, 1]) / np.linalg.norm([30, 40, 1]))


def test_colours_of_objects(library: ModuleType) -> None:
    from reward_server.scorers.geneval.rules import Detection

    image = np.zeros((4, 4, 3), np.uint8)
    image[:, :2], image[:, 2:] = (255, 0, 0), (0, 0, 255)
    halves = [Detection("cup", 0.9, box, mask=np.ones((4, 2), bool)) for box in ((0, 0, 2, 4), (2, 0, 4, 4))]
    colors = build_colors("open_clip", None, device="cpu")
    assert colors([(image, half) for half in halves]) == ["red", "blue"]
    fingerprint = colors.fingerprint()
    assert fingerprint["colors_model"] == "ViT-L-14-quickgelu/openai"
    assert fingerprint["colors_preprocessing"] == "open_clip-3.3.0"


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("ViT-L-14", "must be ARCHITECTURE/WEIGHTS"),
        ("ViT-L-14/openai", "QuickGELU mismatch"),
        ("ViT-L-14-quickgelu/nothing", "not a known tag"),
    ],
)
def test_bad_names_say_what_is_valid(name: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        OpenClip(name, device="cpu")


def test_weights_from_a_file_keep_its_path_out_of_the_fingerprint() -> None:
    assert OpenClip("ViT-L-14/models/mine.pt", device="cpu").fingerprint()["model"] == "ViT-L-14/mine.pt"


def test_without_open_clip_the_error_names_the_alternative(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "open_clip", None)
    with pytest.raises(ImportError, match="Leave the classifier at 'clip'"):
        OpenClip(device="cpu")
