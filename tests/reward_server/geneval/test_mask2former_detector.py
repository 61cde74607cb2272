"""The whole GenEval scorer on a tiny random Mask2Former and CLIP, read from disk like the real ones."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from reward_server.scorers.base import Item, ItemError, Scores
from reward_server.scorers.geneval.coco import CLASSES
from reward_server.scorers.geneval.instances import geometry, instances, prepare
from reward_server.scorers.geneval.mask2former import Mask2FormerDetector
from reward_server.scorers.geneval.metadata import COLORS
from reward_server.scorers.geneval.rules import Detection
from reward_server.scorers.geneval.scorer import GenevalScorer
from tests.tiny_clip import save_tiny_clip
from tests.tiny_mask2former import save_tiny_mask2former, tiny_mask2former

RGBImage = NDArray[np.uint8]
FLAT = (20, 400)  # becomes 67 x 1333: a twelfth of the work of a square image


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("models")
    return {"model": str(save_tiny_mask2former(folder / "mask2former")), "clip": str(save_tiny_clip(folder / "clip"))}


@pytest.fixture(scope="module")
def detector(models: dict[str, Any]) -> Mask2FormerDetector:
    return Mask2FormerDetector(**models, device="cpu")


def picture(seed: int, size: tuple[int, int] = FLAT) -> RGBImage:
    patches = np.random.default_rng(seed).integers(0, 256, (3, 9, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(patches).resize(size[::-1], Image.Resampling.BICUBIC))


def summary(found: Sequence[Detection]) -> list[tuple[str, tuple[float, ...]]]:
    return sorted((d.class_name, d.box) for d in found)


def test_images_are_scored_end_to_end(models: dict[str, Any]) -> None:
    scorer = GenevalScorer(detector="hf", **models, device="cpu")
    image = picture(0, (96, 96))
    (found,) = scorer.detector.detect([image])
    sure = max(found, key=lambda d: d.score)
    count = sum(d.class_name == sure.class_name and d.score > 0.3 for d in found)
    (color,) = set(scorer.detector.colors([(image, sure)]))
    absent = next(name for name in CLASSES if name not in {d.class_name for d in found})

    def asking(name: str, number: int, **more: Any) -> dict[str, Any]:
        return {"tag": "colors", "include": [{"class": name, "count": number, **more}]}

    outcomes = scorer(
        [
            Item(image, "", asking(sure.class_name, count)),
            Item(image, "", asking(sure.class_name, 1, color=color)),
            Item(image, "", asking("no such thing", 1)),
            Item(image, "", asking(absent, 1)),
        ]
    )
    assert outcomes[0] == Scores(1.0, {"strict": 1.0, "correct": 1.0, "soft_reference": 1.0})
    assert isinstance(outcomes[1], Scores)
    assert outcomes[1].metrics["correct"] == 1.0  # the most confident one has that colour
    assert isinstance(outcomes[2], ItemError)
    assert outcomes[3] == Scores(0.0, {"strict": 0.0, "correct": 0.0, "soft_reference": 0.0})


def test_the_warm_up_example_is_scored(models: dict[str, Any]) -> None:
    scorer = GenevalScorer(detector="hf", **models, device="cpu")
    prompt, metadata = scorer.example()
    (outcome,) = scorer([Item(np.full((64, 64, 3), 128, np.uint8), prompt, metadata)])
    assert isinstance(outcome, Scores)


def test_detections_are_those_of_network_and_arithmetic(detector: Mask2FormerDetector) -> None:
    image = picture(1)
    sizes = geometry(*image.shape[:2])
    with torch.no_grad():
        output = tiny_mask2former()(pixel_values=prepare(image, sizes, device=torch.device("cpu"))[None])
    expected = instances(output.class_queries_logits[0], output.masks_queries_logits[0], sizes)
    (found,) = detector.detect([image])
    assert len(found) >= 3
    assert [(d.class_name, d.score, d.box) for d in found] == [(CLASSES[o.label], o.score, o.box) for o in expected]
    assert all(np.array_equal(d.mask, o.mask) for d, o in zip(found, expected, strict=True))
    colors = detector.colors([(image, d) for d in found])
    assert set(colors) <= set(COLORS)


def test_a_batch_finds_what_single_images_do(models: dict[str, Any]) -> None:
    detector = Mask2FormerDetector(**models, device="cpu", pixels_per_pass=2 * 96 * 1344)
    passes = []
    detector.model.register_forward_pre_hook(
        lambda module, arguments, options: passes.append(tuple(options["pixel_values"].shape)), with_kwargs=True
    )
    images = [picture(0), picture(1, (400, 20)), picture(2), picture(3), picture(4, (21, 420))]
    together = detector.detect(images)
    assert sorted(passes) == [(1, 3, 1344, 96), (2, 3, 96, 1344), (2, 3, 96, 1344)]
    for image, found in zip(images, together, strict=True):
        (alone,) = detector.detect([image])
        assert len(alone) > 0
        assert summary(found) == summary(alone)
        assert [d.score for d in found] == pytest.approx([d.score for d in alone], abs=1e-4)
        assert all(d.mask.shape == (d.box[3] - d.box[1], d.box[2] - d.box[0]) for d in found)


def test_an_odd_image_leaves_no_trace(detector: Mask2FormerDetector) -> None:
    # transformers' Swin can shrink its attention windows to fit a small image, and keep them so afterwards.
    image = picture(0)
    (before,) = detector.detect([image])
    detector.detect([picture(1, (1, 1500)), picture(2, (3, 2))])
    (after,) = detector.detect([image])
    assert [(d.class_name, d.score, d.box) for d in after] == [(d.class_name, d.score, d.box) for d in before]


def test_resizing_bytes_changes_the_scores_a_little(models: dict[str, Any], detector: Mask2FormerDetector) -> None:
    as_bytes = Mask2FormerDetector(**models, device="cpu", resize_bytes=True)
    (found,), (expected,) = (d.detect([picture(0)]) for d in (as_bytes, detector))
    assert [d.score for d in found] != [d.score for d in expected]
    assert max(d.score for d in found) == pytest.approx(max(d.score for d in expected), abs=0.02)
    assert as_bytes.fingerprint() != detector.fingerprint()


def test_bfloat16_is_close(models: dict[str, Any], detector: Mask2FormerDetector) -> None:
    half = Mask2FormerDetector(**models, device="cpu", dtype="bfloat16")
    (found,), (expected,) = (d.detect([picture(0)]) for d in (half, detector))
    best = max(d.score for d in expected)
    assert 1e-6 < abs(max(d.score for d in found) - best) < 0.02
    assert half.fingerprint() == {**detector.fingerprint(), "detector_dtype": "bfloat16"}


def test_a_broken_network_is_an_error_and_not_an_empty_image(models: dict[str, Any]) -> None:
    detector = Mask2FormerDetector(**models, device="cpu")
    detector.model.class_predictor.bias[3] = float("nan")
    with pytest.raises(FloatingPointError, match="NaN"):
        detector.detect([picture(0)])


def test_the_fingerprint_follows_the_weights_and_not_the_folder(models: dict[str, Any], tmp_path: Path) -> None:
    def fingerprint(**changes: Any) -> dict[str, str]:
        return dict(GenevalScorer(detector="hf", **(models | changes), device="cpu").fingerprint())

    first = fingerprint()
    assert first["detector"] == "hf"
    assert {"rules_version", "detector_weights_sha256", "colors_weights_sha256"} <= first.keys()
    assert fingerprint(model=str(save_tiny_mask2former(tmp_path / "same" / "mask2former"))) == first
    other = fingerprint(model=str(save_tiny_mask2former(tmp_path / "other" / "mask2former", seed=1)))
    assert {key for key in first if first[key] != other[key]} == {"detector_weights_sha256"}
    assert (
        fingerprint(clip=str(save_tiny_clip(tmp_path / "clip", seed=1)))["colors_weights_sha256"]
        != (first["colors_weights_sha256"])
    )


def test_the_shapes_detector_stays_the_default() -> None:
    assert GenevalScorer().fingerprint()["detector"] == "shapes"


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"detector": "detr"}, "known: hf, mmdet, shapes"),
        ({"detector": "hf", "devise": "cpu"}, "no option 'devise'.*Did you mean 'device'"),
        ({"detector": "shapes", "device": "cpu"}, "shapes detector has no option 'device'; it takes none"),
        ({"detector": "mmdet", "device": "cpu"}, "mmdet detector needs the option 'checkpoint'"),
        ({"detector": "hf", "dtype": "fp16"}, "dtype is 'fp16'; choose one of float32"),
        ({"detector": "hf", "pixels_per_pass": 0}, "pixels_per_pass is 0"),
        ({"detector": "hf", "model": "nowhere/nothing"}, "cannot load the Mask2Former 'nowhere/nothing'"),
    ],
)
def test_bad_options_say_what_is_valid(
    options: dict[str, Any], complaint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match=complaint):
        GenevalScorer(**options)


def test_an_incomplete_model_is_refused(models: dict[str, Any], tmp_path: Path) -> None:
    model = tiny_mask2former()
    state = {name: tensor for name, tensor in model.state_dict().items() if "mask_predictor" not in name}
    model.save_pretrained(tmp_path, state_dict=state)
    with pytest.raises(ValueError, match="lacks 6 weights"):
        Mask2FormerDetector(str(tmp_path), models["clip"], device="cpu")


def test_a_model_of_other_classes_is_refused(models: dict[str, Any], tmp_path: Path) -> None:
    model = tiny_mask2former()
    model.config.id2label = dict(enumerate(sorted(CLASSES)))
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="class 0 'airplane', not 'person'"):
        Mask2FormerDetector(str(tmp_path), models["clip"], device="cpu")


def test_without_scipy_the_error_says_so(models: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "scipy" else find(name, *rest))
    with pytest.raises(ImportError, match="pip install scipy"):
        Mask2FormerDetector(**models, device="cpu")
