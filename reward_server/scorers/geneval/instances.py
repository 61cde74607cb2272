"""Pixels in, objects out: what surrounds the Mask2Former network, as mmdet does it.

transformers' own image processor is not used. Its size comes from a file on the hub, it resizes with PIL, and its
instance post-processing works at 384 x 384, enlarges masks by nearest neighbour and lets later objects overwrite
earlier ones; GenEval's published numbers come from mmdet, whose arithmetic this is.

Mask2Former: https://arxiv.org/abs/2112.01527; mmdet: https://arxiv.org/abs/1906.07155
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from reward_server.scorers.geneval.byte_resize import resize_bytes
from reward_server.scorers.geneval.rules import SCORE_THRESHOLD

LONG_SIDE, SHORT_SIDE = 1333, 800  # pixels the resized image may have at most
PAD_MULTIPLE = 32  # the coarsest features have one cell for that many pixels
MEAN = (123.675, 116.28, 103.53)  # of ImageNet, RGB in [0, 255]
STD = (58.395, 57.12, 57.375)
MAX_OBJECTS = 100  # the most probable (query, class) pairs
MASK_PIXELS_PER_PASS = 2**26  # how many mask values are enlarged together; 256 MiB in float32

Size = tuple[int, int]
"""Height, width in pixels."""


@dataclass(frozen=True, slots=True)
class Geometry:
    """Sizes of one image on its way through the network: as it came, resized, and with the padding."""

    original: Size
    resized: Size
    padded: Size


@dataclass(frozen=True, slots=True, eq=False)
class Instance:
    """One object.

    Attributes:
        label: index of its class.
        score: probability of the class times the mean of sigmoid(mask logit) over the mask.
        box: x0, y0, x1, y1 in pixels of the original image; x1 and y1 are exclusive.
        mask: [y1 - y0, x1 - x0] bool, the box's pixels that are the object's.
    """

    label: int
    score: float
    box: tuple[int, int, int, int]
    mask: NDArray[np.bool_]


def geometry(height: int, width: int) -> Geometry:
    """The sizes for an image of ``height`` x ``width`` pixels: as large as the limits on both sides allow."""
    scale = min(LONG_SIDE / max(height, width), SHORT_SIDE / min(height, width))
    # The side of a very long image can round to nothing.
    resized = max(1, int(height * scale + 0.5)), max(1, int(width * scale + 0.5))
    padded = _next_multiple(resized[0]), _next_multiple(resized[1])
    return Geometry((height, width), resized, padded)


def prepare(image: NDArray[np.uint8], sizes: Geometry, *, device: torch.device, bytes_first: bool = False) -> Tensor:
    """Resized (bilinear), normalised and padded image.

    Args:
        image: [H, W, 3] uint8 RGB.
        sizes: its geometry.
        device: where to work.
        bytes_first: resize bytes, with OpenCV's rounding, as mmdet 2.x does; otherwise floats, as 3.x.

    Returns:
        [3, *sizes.padded] float32; the padding, on the right and below, is zero, which is ImageNet's mean colour.
    """
    # The copy is for arrays that must not be written to, which torch warns about.
    pixels = torch.from_numpy(image.copy()).to(device).permute(2, 0, 1)
    if bytes_first:
        pixels = resize_bytes(pixels, sizes.resized).float()
    else:
        pixels = _bilinear(pixels.float(), sizes.resized)
    mean, std = (torch.tensor(values, device=device)[:, None, None] for values in (MEAN, STD))
    below, right = (padded - resized for padded, resized in zip(sizes.padded, sizes.resized, strict=True))
    return functional.pad((pixels - mean) / std, (0, right, 0, below))


def instances(
    class_logits: Tensor, mask_logits: Tensor, sizes: Geometry, *, min_score: float = SCORE_THRESHOLD
) -> list[Instance]:
    """The objects among the network's queries, most probable class first.

    One query can give several objects, one per class. Objects whose mask is empty are left out, and so are those
    whose class is no more probable than ``min_score``: as the score is that probability times a mean of numbers
    below one, they cannot score above it, and their masks need not be enlarged (100 masks of a 1024 x 1024 image
    are 420 MB).

    Args:
        class_logits: [Q, C + 1]; the last class means "no object".
        mask_logits: [Q, h, w] at any resolution that covers the padded image.
        sizes: of the image.
        min_score: objects scoring no more may be left out.

    Raises:
        FloatingPointError: the logits are not finite. "No object" would be a wrong answer, not a missing one.
    """
    if not bool(class_logits.isfinite().all() and mask_logits.isfinite().all()):
        raise FloatingPointError("the detector returned NaN or infinity; with dtype float16, try bfloat16 or float32")
    probabilities = class_logits.float().softmax(dim=-1)[:, :-1]
    num_classes = probabilities.shape[1]
    best, pairs = probabilities.flatten().topk(min(MAX_OBJECTS, probabilities.numel()))
    kept = best.double() > min_score  # in float64, as the rules compare: in float32 a score could tie with 0.3
    best, pairs = best[kept].cpu(), pairs[kept].cpu()
    if len(best) == 0:
        return []
    queries, which = torch.unique(pairs // num_classes, return_inverse=True)
    masks = [_cut(logits) for chunk in _chunks(mask_logits, queries, sizes) for logits in chunk]
    found = []
    for probability, label, number in zip(best, pairs % num_classes, which, strict=True):
        if (mask := masks[int(number)]) is not None:
            confidence, box, inside = mask
            found.append(Instance(int(label), float(probability * confidence), box, inside))
    return found


def _next_multiple(size: int) -> int:
    return -(-size // PAD_MULTIPLE) * PAD_MULTIPLE


def _bilinear(images: Tensor, size: Size) -> Tensor:
    """[N, H, W] resized to [N, *size]; pixel centres are at halves, as in OpenCV."""
    return functional.interpolate(images[None], size=size, mode="bilinear", align_corners=False)[0]


def _chunks(mask_logits: Tensor, queries: Tensor, sizes: Geometry) -> Iterator[Tensor]:
    """Mask logits [n, H, W] of the queries in the original image's pixels, a few at a time."""
    height, width = sizes.resized
    area = max(sizes.padded[0] * sizes.padded[1], sizes.original[0] * sizes.original[1])
    for part in torch.split(queries, max(1, MASK_PIXELS_PER_PASS // area)):
        logits = _bilinear(mask_logits[part.to(mask_logits.device)].float(), sizes.padded)
        yield _bilinear(logits[:, :height, :width], sizes.original)


def _cut(logits: Tensor) -> tuple[Tensor, tuple[int, int, int, int], NDArray[np.bool_]] | None:
    """Confidence, box and mask of an object's logits [H, W]; None if no pixel is above zero."""
    inside = logits > 0
    mask = inside.cpu().numpy()
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if len(rows) == 0:
        return None
    y0, y1, x0, x1 = int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1
    # One mask at a time: the last bit of a mean over several at once would depend on how many there are.
    confidence = logits[inside].sigmoid().mean().cpu()
    return confidence, (x0, y0, x1, y1), mask[y0:y1, x0:x1].copy()
