"""The colour classifier sees what GenEval's sees, asks CLIP once, and takes the nearest averaged text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from reward_server.scorers.clip import Clip
from reward_server.scorers.geneval.clip_colors import ClipColors, build_colors, crop
from reward_server.scorers.geneval.metadata import COLORS
from reward_server.scorers.geneval.rules import Detection
from tests.tiny_clip import save_tiny_clip

RGBImage = NDArray[np.uint8]
PAINT = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}


class ColorSpace:
    """Embeds an image as its mean colour and a text as the paint it names; keeps a record of its calls."""

    def __init__(self) -> None:
        self.images: list[int] = []
        self.texts: list[str] = []

    def image_embeddings(self, images: Sequence[RGBImage]) -> Tensor:
        self.images.append(len(images))
        return self._unit([image.reshape(-1, 3).mean(axis=0) for image in images])

    def text_embeddings(self, texts: Sequence[str]) -> Tensor:
        self.texts += texts
        return self._unit([self._paint(text) for text in texts])

    def fingerprint(self) -> Mapping[str, str]:
        return {"model": "color space"}

    @staticmethod
    def _paint(text: str) -> Sequence[float]:
        return next((rgb for name, rgb in PAINT.items() if f" {name}" in text), (-1.0, -1.0, -1.0))

    @staticmethod
    def _unit(rows: Sequence[Sequence[float]]) -> Tensor:
        return torch.nn.functional.normalize(torch.tensor(np.array(rows), dtype=torch.float32), dim=-1)


def painted(color: str, name: str = "cup", size: int = 6) -> tuple[RGBImage, Detection]:
    image = np.full((size, size, 3), PAINT[color], np.uint8)
    return image, Detection(name, 0.9, (1, 1, 4, 5), mask=np.ones((4, 3), bool))


def test_the_crop_is_the_object_on_grey() -> None:
    image = np.random.default_rng(0).integers(0, 256, (9, 12, 3), dtype=np.uint8)
    whole = np.zeros((9, 12), bool)
    whole[2:7, 3:9] = np.random.default_rng(1).random((5, 6)) > 0.5
    on_grey = Image.composite(Image.fromarray(image), Image.new("RGB", (12, 9), "#999"), Image.fromarray(whole))
    result = crop(image, Detection("cup", 0.9, (3, 2, 9, 7), mask=whole[2:7, 3:9]))
    assert np.array_equal(result, np.asarray(on_grey.crop((3, 2, 9, 7))))


def test_pixels_outside_the_mask_do_not_count() -> None:
    image = np.full((4, 4, 3), PAINT["red"], np.uint8)
    image[:2] = PAINT["blue"]
    upper, lower = np.zeros((2, 4, 4), bool)
    upper[:2], lower[2:] = True, True
    colors = ClipColors(ColorSpace())
    queries = [(image, Detection("cup", 0.9, (0, 0, 4, 4), mask=mask)) for mask in (upper, lower)]
    assert colors(queries) == ["blue", "red"]


def test_all_objects_of_all_images_go_to_clip_together() -> None:
    space = ColorSpace()
    queries = [painted("green", "cup"), painted("red", "bus", size=9), painted("blue", "cup")]
    assert ClipColors(space)(queries) == ["green", "red", "blue"]
    assert space.images == [3]


def test_the_texts_of_a_class_are_embedded_once() -> None:
    space = ColorSpace()
    colors = ClipColors(space)
    for names in (["cup"], ["cup", "bus"], ["bus", "cup"]):
        colors([painted("red", name) for name in names])
    assert len(space.texts) == len(set(space.texts)) + len(COLORS)  # "a photo of a red object" is in both classes
    for text in ("a photo of a red cup", "a photo of a red-colored cup", "a photo of a red object"):
        assert text in space.texts


def test_nothing_to_classify_asks_nobody() -> None:
    space = ColorSpace()
    assert ClipColors(space)([]) == []
    assert (space.images, space.texts) == ([], [])


class Templates(ColorSpace):
    """Directions: red at 0, 0 and 80 degrees in its three templates, blue at 40, other colours opposite."""

    def __init__(self, image_at: float) -> None:
        super().__init__()
        self.image_at = image_at

    def image_embeddings(self, images: Sequence[RGBImage]) -> Tensor:
        return self._at([self.image_at] * len(images))

    def text_embeddings(self, texts: Sequence[str]) -> Tensor:
        red = [80.0 if "object" in text else 0.0 for text in texts]
        return self._at(
            [r if " red" in t else 40.0 if " blue" in t else 180.0 for t, r in zip(texts, red, strict=True)]
        )

    @staticmethod
    def _at(degrees: Sequence[float]) -> Tensor:
        radians = torch.tensor(degrees).deg2rad()
        return torch.stack([radians.cos(), radians.sin()], dim=-1)


@pytest.mark.parametrize(("image_at", "expected"), [(31.8, "red"), (32.6, "blue")])
def test_templates_are_averaged_and_the_mean_has_unit_norm(image_at: float, expected: str) -> None:
    # Red's mean points at atan2(sin 80, 2 + cos 80) = 24.4 degrees: the border to blue is half way, at 32.2. Its
    # length is 0.79, with which blue would win at both angles.
    assert ClipColors(Templates(image_at))([painted("red")]) == [expected]


def test_embeddings_that_are_not_finite_are_an_error_and_not_a_colour() -> None:
    class Broken(ColorSpace):
        def image_embeddings(self, images: Sequence[RGBImage]) -> Tensor:
            return super().image_embeddings(images) * float("nan")

    with pytest.raises(FloatingPointError, match="NaN"):
        ClipColors(Broken())([painted("red")])


def test_equal_to_one_object_at_a_time_with_a_real_clip(tmp_path: Path) -> None:
    folder = str(save_tiny_clip(tmp_path))
    clip = Clip(folder, device="cpu")
    rng = np.random.default_rng(0)
    queries = []
    for name in ("cup", "bus", "cup", "kite", "bus", "cup"):
        image = rng.integers(0, 256, (1, 1, 3), dtype=np.uint8).repeat(40, 0).repeat(30, 1)
        queries.append((image, Detection(name, 0.9, (5, 5, 25, 30), mask=rng.random((25, 20)) > 0.3)))
    expected = []
    for image, detection in queries:
        similar = []
        for color in COLORS:
            texts = [
                f"a photo of a {color} {detection.class_name}",
                f"a photo of a {color}-colored {detection.class_name}",
                f"a photo of a {color} object",
            ]
            mean = clip.text_embeddings(texts).mean(dim=0)
            similar.append(float(clip.image_embeddings([crop(image, detection)])[0] @ (mean / mean.norm())))
        expected.append(COLORS[int(np.argmax(similar))])
    assert len(set(expected)) > 1
    assert build_colors("clip", folder, device="cpu")(queries) == expected


def test_the_fingerprint_names_library_and_model() -> None:
    assert ClipColors(ColorSpace(), "fake").fingerprint() == {
        "colors_version": "1",
        "colors_classifier": "fake",
        "colors_model": "color space",
    }


def test_an_unknown_library_is_refused() -> None:
    with pytest.raises(ValueError, match="known: clip, open_clip"):
        build_colors("openclip", None, device="cpu")
