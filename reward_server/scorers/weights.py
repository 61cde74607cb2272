"""Files of weights, read as plain data: nothing in them can run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor


def read_weights(path: Path, expected: str) -> dict[str, Tensor]:
    """Name -> tensor of a .pt or .pth file: a state dict, or a checkpoint with one under ``state_dict``.

    Args:
        path: the file.
        expected: what it should be and where to get it, for the error.

    Raises:
        ValueError: there is no such file, or it holds something else.
    """
    if not path.is_file():
        raise ValueError(f"there is no file {path}; expected {expected}")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever is wrong with the file: pickle, zip, end of file
        raise ValueError(
            f"{path} cannot be read as weights alone: {error}; expected {expected}. A file with a training state must "
            "be reduced to its state dict where it was made"
        ) from error
    state = content.get("state_dict", content) if isinstance(content, Mapping) else content
    if not isinstance(state, Mapping) or not all(isinstance(tensor, Tensor) for tensor in state.values()):
        raise ValueError(f"{path} holds no state dict; expected {expected}")
    return {str(name): tensor for name, tensor in state.items()}
