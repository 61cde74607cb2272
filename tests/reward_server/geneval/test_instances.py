"""What surrounds the detector's network, against hand-computed values and a slow version written from the rules."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from reward_server.scorers.geneval import instances as module
from reward_server.scorers.geneval.instances import Geometry, Instance, Size, geometry, instances, prepare
from reward_server.scorers.geneval.rules import SCORE_THRESHOLD

CPU = torch.device("cpu")
SMALL = Geometry(original=(8, 8), resized=(8, 8), padded=(8, 8))  # nothing is resized: answers by hand
CROPPED = Geometry(original=(13, 17), resized=(26, 34), padded=(32, 64))


def class_logits(*probabilities: Sequence[float]) -> Tensor:
    """Logits whose softmax is these rows; each row gets its rest as "no object"."""
    rows = [[*row, 1.0 - sum(row)] for row in probabilities]
    return torch.tensor(rows, dtype=torch.float64).clamp(min=1e-12).log().float()


def mask_logits(*rectangles: tuple[int, int, int, int], inside: float = 2.0) -> Tensor:
    """[Q, 8, 8]: ``inside`` in the rectangle x0, y0, x1, y1 (exclusive), -1 elsewhere."""
    logits = torch.full((len(rectangles), 8, 8), -1.0)
    for mask, (x0, y0, x1, y1) in zip(logits, rectangles, strict=True):
        mask[y0:y1, x0:x1] = inside
    return logits


@pytest.mark.parametrize(
    ("original", "resized", "padded"),
    [
        ((512, 512), (800, 800), (800, 800)),
        ((1024, 1024), (800, 800), (800, 800)),
        ((300, 500), (800, 1333), (800, 1344)),  # both limits at once: 800 / 300 = 2.6667, 1333 / 500 = 2.666
        ((768, 1344), (762, 1333), (768, 1344)),  # the long side limits: 768 * 1333 / 1344 = 761.7
        ((777, 333), (1333, 571), (1344, 576)),
        ((1, 3000), (1, 1333), (32, 1344)),  # 0.44 rows would be none
    ],
)
def test_sizes(original: Size, resized: Size, padded: Size) -> None:
    assert geometry(*original) == Geometry(original, resized, padded)


def test_normalised_and_padded_by_hand() -> None:
    image = np.full((790, 800, 3), (255, 0, 128), np.uint8)
    sizes = Geometry((790, 800), (790, 800), (800, 832))
    pixels = prepare(image, sizes, device=CPU)
    assert pixels.shape == (3, 800, 832)
    expected = [(255 - 123.675) / 58.395, (0 - 116.28) / 57.12, (128 - 103.53) / 57.375]
    assert pixels[:, 789, 799].tolist() == pytest.approx(expected)
    assert pixels[:, 790:].abs().max() == 0
    assert pixels[:, :, 800:].abs().max() == 0


@pytest.mark.parametrize("size", [(5, 7), (6, 9)])
def test_resized_like_the_definition(size: Size) -> None:
    image = np.random.default_rng(0).integers(0, 256, (3, 4, 3), dtype=np.uint8)
    pixels = prepare(image, Geometry((3, 4), size, (32, 32)), device=CPU)[:, : size[0], : size[1]]
    values = pixels * torch.tensor(module.STD)[:, None, None] + torch.tensor(module.MEAN)[:, None, None]
    for channel in range(3):
        assert values[channel].numpy() == pytest.approx(slow_bilinear(image[..., channel], size), abs=1e-3)


def test_bytes_first_gives_whole_grey_levels() -> None:
    image = np.random.default_rng(0).integers(0, 256, (3, 4, 3), dtype=np.uint8)
    sizes = Geometry((3, 4), (20, 30), (32, 32))
    mean, std = (torch.tensor(values)[:, None, None] for values in (module.MEAN, module.STD))
    as_floats, as_bytes = (
        (prepare(image, sizes, device=CPU, bytes_first=flag) * std + mean)[:, :20, :30] for flag in (False, True)
    )
    assert (as_bytes - as_bytes.round()).abs().max() < 1e-4
    assert (as_floats - as_floats.round()).abs().max() > 0.4
    assert (as_bytes - as_floats).abs().max() <= 1.01


def test_one_object_by_hand() -> None:
    (found,) = instances(class_logits([0.2, 0.7]), mask_logits((2, 3, 5, 8)), SMALL)
    assert (found.label, found.box) == (1, (2, 3, 5, 8))  # exclusive on the right and below, also at the edge
    assert found.score == pytest.approx(0.7 / (1 + np.exp(-2.0)))
    assert found.mask.shape == (5, 3)
    assert found.mask.all()


def test_the_confidence_is_the_mean_inside_the_mask_only() -> None:
    logits = mask_logits((0, 0, 2, 1))
    logits[0, 0, 1] = 0.5
    (found,) = instances(class_logits([0.9]), logits, SMALL)
    assert found.score == pytest.approx(0.9 * (1 / (1 + np.exp(-2.0)) + 1 / (1 + np.exp(-0.5))) / 2)


def test_a_mask_with_a_hole() -> None:
    logits = mask_logits((1, 1, 4, 4))
    logits[0, 2, 2] = 0.0  # not above zero
    (found,) = instances(class_logits([0.9]), logits, SMALL)
    assert found.box == (1, 1, 4, 4)
    assert found.mask.tolist() == [[True, True, True], [True, False, True], [True, True, True]]


def test_one_query_can_be_two_objects() -> None:
    found = instances(class_logits([0.5, 0.4], [0.0, 0.1]), mask_logits((0, 0, 8, 8), (0, 0, 1, 1)), SMALL)
    assert [(o.label, o.box) for o in found] == [(0, (0, 0, 8, 8)), (1, (0, 0, 8, 8))]


def test_no_object_has_no_class_of_its_own() -> None:
    assert instances(class_logits([0.05, 0.1]), mask_logits((0, 0, 8, 8)), SMALL, min_score=0.3) == []


def test_empty_masks_are_no_objects() -> None:
    found = instances(class_logits([0.9], [0.8]), mask_logits((0, 0, 0, 0), (1, 1, 2, 2)), SMALL)
    assert [o.box for o in found] == [(1, 1, 2, 2)]


def test_nothing_at_all() -> None:
    assert instances(class_logits([0.0, 0.0]), mask_logits((0, 0, 8, 8)), SMALL) == []


def test_only_the_hundred_most_probable_pairs() -> None:
    logits = torch.randn(40, 11, generator=torch.Generator().manual_seed(0))
    masks = torch.ones(40, 8, 8)
    found = instances(logits, masks, SMALL, min_score=-1.0)
    assert len(found) == 100
    best = logits.softmax(-1)[:, :-1].flatten().sort(descending=True).values[:100] * torch.ones(()).sigmoid()
    assert [o.score for o in found] == pytest.approx(best.tolist())


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("min_score", [-1.0, SCORE_THRESHOLD])
def test_equal_to_the_slow_version(seed: int, min_score: float) -> None:
    classes, masks = random_logits(seed)
    expected = [o for o in slow_instances(classes, masks, CROPPED) if o.score > min_score]
    assert len(expected) >= 3
    found = [o for o in instances(classes, masks, CROPPED, min_score=min_score) if o.score > min_score]
    assert_same(found, expected, tolerance=1e-5)


@pytest.mark.parametrize("seed", range(20))
def test_leaving_out_improbable_classes_early_changes_nothing(seed: int) -> None:
    classes, masks = random_logits(seed)
    everything = instances(classes, masks, CROPPED, min_score=-1.0)
    with_shortcut = instances(classes, masks, CROPPED)
    assert len(with_shortcut) < len(everything)
    above = [[o for o in found if o.score > SCORE_THRESHOLD] for found in (with_shortcut, everything)]
    assert_same(above[0], above[1], tolerance=0.0)


def test_the_shortcut_is_exact_at_the_threshold() -> None:
    # In float32, 0.3 is 0.30000001 and so above the rules' 0.3. With a mask that is sure the score is the same number.
    probability = torch.tensor(0.3)
    logits = torch.tensor([[0.0, 0.0]])
    logits[0, 0] = (probability.double() / (1 - probability.double())).log().float()
    assert float(logits.softmax(-1)[0, 0]) == float(probability) > SCORE_THRESHOLD
    (found,) = instances(logits, mask_logits((0, 0, 8, 8), inside=100.0), SMALL)
    assert found.score == float(probability)


def test_any_number_of_masks_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    classes, masks = random_logits(0)
    together = instances(classes, masks, CROPPED)
    monkeypatch.setattr(module, "MASK_PIXELS_PER_PASS", 1)
    assert_same(instances(classes, masks, CROPPED), together, tolerance=0.0)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("where", [0, 1])
def test_logits_that_are_not_finite_are_an_error_and_not_an_empty_image(value: float, where: int) -> None:
    logits = [class_logits([0.9]), mask_logits((0, 0, 8, 8))]
    logits[where].view(-1)[0] = value
    with pytest.raises(FloatingPointError, match="NaN"):
        instances(logits[0], logits[1], SMALL)


def random_logits(seed: int) -> tuple[Tensor, Tensor]:
    """Twelve queries, three classes, masks of smooth blobs at a quarter of the padded size."""
    rng = torch.Generator().manual_seed(seed)
    blobs = torch.randn(12, 1, 3, 4, generator=rng) * 4
    masks = torch.nn.functional.interpolate(blobs, size=(8, 16), mode="bicubic")[:, 0]
    masks[3] = -1.0  # an empty one
    return torch.randn(12, 4, generator=rng) * 2, masks


def assert_same(found: Sequence[Instance], expected: Sequence[Instance], tolerance: float) -> None:
    def in_order(objects: Sequence[Instance]) -> list[Instance]:
        return sorted(objects, key=lambda o: (o.label, o.box, o.score))

    assert len(found) == len(expected)
    for one, other in zip(in_order(found), in_order(expected), strict=True):
        assert (one.label, one.box) == (other.label, other.box)
        assert one.score == pytest.approx(other.score, abs=tolerance)
        assert np.array_equal(one.mask, other.mask)


def slow_instances(classes: Tensor, masks: Tensor, sizes: Geometry) -> list[Instance]:
    """Every pair of query and class, one after the other, in float64."""
    powers = np.exp(classes.double().numpy())
    probabilities = (powers / powers.sum(axis=1, keepdims=True))[:, :-1]
    pairs = sorted(np.ndindex(*probabilities.shape), key=lambda pair: -probabilities[pair])[:100]
    height, width = sizes.resized
    enlarged = [
        slow_bilinear(slow_bilinear(mask, sizes.padded)[:height, :width], sizes.original) for mask in masks.numpy()
    ]
    found = []
    for query, label in pairs:
        logits = enlarged[query]
        inside = logits > 0
        if not inside.any():
            continue
        score = probabilities[query, label] * np.mean(1 / (1 + np.exp(-logits[inside])))
        ys, xs = np.nonzero(inside)
        x0, y0, x1, y1 = int(xs.min()), int(ys.min()), int(xs.max()) + 1, int(ys.max()) + 1
        found.append(Instance(label, float(score), (x0, y0, x1, y1), inside[y0:y1, x0:x1]))
    return found


def slow_bilinear(image: NDArray[np.generic], size: Size) -> NDArray[np.float64]:
    """Each new pixel's centre lies between four old centres; beyond the outermost ones, theirs counts."""
    result = np.zeros(size)
    for row, column in np.ndindex(*size):
        y = min(max((row + 0.5) * image.shape[0] / size[0] - 0.5, 0), image.shape[0] - 1)
        x = min(max((column + 0.5) * image.shape[1] / size[1] - 0.5, 0), image.shape[1] - 1)
        for i, j in np.ndindex(2, 2):
            i, j = int(y) + i, int(x) + j
            weight = max(0.0, 1 - abs(y - i)) * max(0.0, 1 - abs(x - j))
            if weight > 0:
                result[row, column] += weight * float(image[i, j])
    return result
