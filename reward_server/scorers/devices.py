"""Which device a scorer's network runs on."""

from __future__ import annotations

import os

import torch


def choose_device(asked: str | None) -> torch.device:
    """The device asked for; without a wish, that of the worker process, or else a GPU if there is one.

    Raises:
        ValueError: the server promised this process a GPU, and torch sees none; running a network of that size on the
            CPU instead would only look like a hang.
    """
    if asked is not None:
        return torch.device(asked)
    promised = os.environ.get("AWM_REWARD_DEVICE", "")
    if promised == "cuda" and not torch.cuda.is_available():
        raise ValueError(
            f"this worker shall use a GPU, and torch {torch.__version__} sees none; set devices: [cpu], or install a "
            "torch for the driver of this machine"
        )
    return torch.device(promised or ("cuda" if torch.cuda.is_available() else "cpu"))
