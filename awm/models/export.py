"""A fully fine-tuned transformer on disk, as ``from_pretrained`` reads it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


def save_transformer(kind: type[Any], transformer: Any, folder: Path, weights: Mapping[str, Tensor]) -> None:
    """Write ``weights`` with the configuration of ``transformer``, whose own may be sharded or another set's.

    Args:
        kind: the transformer's diffusers class; sharding gives the object another one.
        transformer: where the configuration and the buffers are from.
        folder: gets ``config.json`` and safetensors.
        weights: whole tensors of all parameters by name.
    """
    with torch.device("meta"):
        shell = kind.from_config(transformer.config)
    buffers = {name: value.cpu() for name, value in transformer.named_buffers() if name in shell.state_dict()}
    shell.load_state_dict({**weights, **buffers}, assign=True)
    shell.save_pretrained(folder)
