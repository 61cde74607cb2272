"""The mmdet detector hands BGR arrays to mmdet 3.x and reads its data samples; mmdet itself is a small fake here."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from reward_server.scorers.base import Item, Scores
from reward_server.scorers.geneval.coco import CLASSES
from reward_server.scorers.geneval.scorer import GenevalScorer
from tests.tiny_clip import save_tiny_clip


class FakeNetwork:
    """One weight, COCO's classes, and what mmdet would have found."""

    def __init__(self) -> None:
        self.dataset_meta = {"classes": CLASSES}
        self.cfg = SimpleNamespace(pretty_text="model = dict(type='Mask2Former')")
        self.masks = torch.zeros(3, 6, 8, dtype=torch.bool)
        self.masks[0, 1:4, 2:7] = True
        self.masks[1, 0:2, 0:2] = True
        self.scores = torch.tensor([0.8, 0.31, 0.2])

    def state_dict(self) -> dict[str, torch.Tensor]:
        return {"panoptic_head.cls_embed.weight": torch.ones(1), "x.relative_position_index": torch.ones(1)}

    def found(self) -> SimpleNamespace:
        boxes = torch.tensor([[2.0, 1, 7, 4], [0, 0, 2, 2], [0, 0, 1, 1]])
        instances = {"scores": self.scores, "labels": torch.tensor([41, 0, 5]), "bboxes": boxes, "masks": self.masks}
        return SimpleNamespace(pred_instances=SimpleNamespace(**instances))


class FakeMmdet:
    """Stands in for the two modules the detector imports, and keeps what it was given."""

    def __init__(self, folder: Path, version: str = "3.3.0") -> None:
        self.network = FakeNetwork()
        self.given: list[NDArray[np.uint8]] = []
        self.built: list[tuple[Any, ...]] = []
        self.package, self.apis = ModuleType("mmdet"), ModuleType("mmdet.apis")
        vars(self.package).update(__version__=version, __path__=[str(folder)])
        vars(self.apis).update(init_detector=self.init_detector, inference_detector=self.inference_detector)

    def init_detector(self, config: str, checkpoint: str, device: str) -> FakeNetwork:
        self.built.append((config, checkpoint, device))
        return self.network

    def inference_detector(self, network: FakeNetwork, images: Sequence[NDArray[np.uint8]]) -> list[SimpleNamespace]:
        self.given += images
        return [network.found() for _ in images]


@pytest.fixture
def mmdet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeMmdet:
    fake = FakeMmdet(tmp_path / "mmdet")
    monkeypatch.setitem(sys.modules, "mmdet", fake.package)
    monkeypatch.setitem(sys.modules, "mmdet.apis", fake.apis)
    return fake


@pytest.fixture
def options(tmp_path: Path) -> dict[str, str]:
    checkpoint = tmp_path / "detector.pth"
    torch.save({"state_dict": {"panoptic_head.cls_embed.weight": torch.ones(1)}}, checkpoint)
    return {"checkpoint": str(checkpoint), "clip": str(save_tiny_clip(tmp_path / "clip")), "device": "cpu"}


def image() -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)


def test_arrays_are_bgr_and_masks_belong_to_boxes(mmdet: FakeMmdet, options: dict[str, str]) -> None:
    scorer = GenevalScorer(detector="mmdet", **options)
    (found,) = scorer.detector.detect([image()])
    assert np.array_equal(mmdet.given[0], image()[:, :, [2, 1, 0]])
    assert mmdet.given[0].flags["C_CONTIGUOUS"]
    assert [(d.class_name, d.box) for d in found] == [("cup", (2, 1, 7, 4)), ("person", (0, 0, 2, 2))]  # 0.2 is out
    assert found[0].score == pytest.approx(0.8)
    assert found[0].mask.shape == (3, 5)
    assert found[0].mask.all()


def test_scored_end_to_end(mmdet: FakeMmdet, options: dict[str, str]) -> None:
    scorer = GenevalScorer(detector="mmdet", **options)
    metadata = {"tag": "single_object", "include": [{"class": "cup", "count": 1}]}
    (outcome,) = scorer([Item(image(), "a photo of a cup", metadata)])
    assert outcome == Scores(1.0, {"strict": 1.0, "correct": 1.0, "soft_reference": 1.0})
    ((config, checkpoint, device),) = mmdet.built
    assert config.endswith(".mim/configs/mask2former/mask2former_swin-s-p4-w7-224_8xb2-lsj-50e_coco.py")
    assert (checkpoint, device) == (options["checkpoint"], "cpu")


def test_empty_masks_are_no_objects(mmdet: FakeMmdet, options: dict[str, str]) -> None:
    mmdet.network.masks[0] = False
    (found,) = GenevalScorer(detector="mmdet", **options).detector.detect([image()])
    assert [d.class_name for d in found] == ["person"]


def test_scores_that_are_not_finite_are_an_error(mmdet: FakeMmdet, options: dict[str, str]) -> None:
    mmdet.network.scores[1] = float("nan")
    scorer = GenevalScorer(detector="mmdet", **options)
    with pytest.raises(FloatingPointError, match="NaN"):
        scorer.detector.detect([image()])


def test_the_fingerprint_follows_checkpoint_and_config(mmdet: FakeMmdet, options: dict[str, str]) -> None:
    first = GenevalScorer(detector="mmdet", **options).fingerprint()
    assert (first["detector"], first["detector_library_version"]) == ("mmdet", "3.3.0")
    mmdet.network.cfg.pretty_text += "# changed"
    changed = GenevalScorer(detector="mmdet", **options).fingerprint()
    assert {key for key in first if first[key] != changed[key]} == {"detector_config_sha256"}


def test_a_checkpoint_with_other_names_is_refused(mmdet: FakeMmdet, options: dict[str, str]) -> None:
    torch.save({"state_dict": {"panoptic_head.old_name.weight": torch.ones(1)}}, options["checkpoint"])
    with pytest.raises(ValueError, match=r"lacks 1 weights .* panoptic_head\.cls_embed\.weight"):
        GenevalScorer(detector="mmdet", **options)


def test_other_classes_are_refused(mmdet: FakeMmdet, options: dict[str, str]) -> None:
    mmdet.network.dataset_meta = {"classes": ("aeroplane",) * 20}
    with pytest.raises(ValueError, match="20 classes"):
        GenevalScorer(detector="mmdet", **options)


def test_without_mmdet_the_error_names_the_script(options: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mmdet", None)
    with pytest.raises(ImportError, match=r"setup_mmdet\.sh"):
        GenevalScorer(detector="mmdet", **options)


def test_mmdet_2_is_refused(options: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mmdet", FakeMmdet(tmp_path, "2.28.2").package)
    with pytest.raises(ImportError, match=r"3\.x; installed is 2\.28\.2"):
        GenevalScorer(detector="mmdet", **options)
