"""Reading checkpoints of mmdet (https://arxiv.org/abs/1906.07155) without trusting them."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from reward_server.scorers.weights import read_weights

PUBLISHED = (
    "https://download.openmmlab.com/mmdetection/v3.0/mask2former/mask2former_swin-s-p4-w7-224_8xb2-lsj-50e_coco/"
    "mask2former_swin-s-p4-w7-224_8xb2-lsj-50e_coco_20220504_001756-c9d0c4f2.pth"
)
"""GenEval's detector under the names of mmdet 3.x; the file of 2.x is of the same training run (20220504_001756)."""


def read_checkpoint(source: Path) -> dict[str, Tensor]:
    """The weights in a .pth file of mmdet, read as plain data.

    Raises:
        ValueError: there is no such file, or it holds something else.
    """
    return read_weights(source, f"a checkpoint of mmdet 2.x or 3.x, such as GenEval's detector at {PUBLISHED}")
