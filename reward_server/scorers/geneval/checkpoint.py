"""Reading checkpoints of mmdet (https://arxiv.org/abs/1906.07155) without trusting them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

PUBLISHED = (
    "https://download.openmmlab.com/mmdetection/v3.0/mask2former/mask2former_swin-s-p4-w7-224_8xb2-lsj-50e_coco/"
    "mask2former_swin-s-p4-w7-224_8xb2-lsj-50e_coco_20220504_001756-c9d0c4f2.pth"
)
"""GenEval's detector under the names of mmdet 3.x; the file of 2.x is of the same training run (20220504_001756)."""


def read_checkpoint(source: Path) -> Mapping[str, Tensor]:
    """The ``state_dict`` of a .pth file, read as plain data: no code in the file can run.

    Raises:
        ValueError: there is no such file, or it holds something else.
    """
    if not source.is_file():
        raise ValueError(f"there is no file {source}; GenEval's detector is at {PUBLISHED}")
    try:
        content = torch.load(source, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever is wrong with the file: pickle, zip, end of file
        raise ValueError(
            f"{source} cannot be read as a checkpoint of plain tensors: {error}. The published files can; a file "
            "with a training state must be reduced to {'state_dict': ...} where it was made"
        ) from error
    state = content.get("state_dict") if isinstance(content, Mapping) else None
    if not isinstance(state, Mapping) or not all(isinstance(tensor, Tensor) for tensor in state.values()):
        raise ValueError(f"{source} has no 'state_dict' of tensors; expected a checkpoint of mmdet 2.x or 3.x")
    return state
