"""Low-rank adapters on an SD3 transformer, stored as diffusers stores them.

W x + (alpha / rank) B A x, see LoRA, https://arxiv.org/abs/2106.09685.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers import StableDiffusion3Pipeline
from diffusers.loaders.lora_base import LORA_WEIGHT_NAME_SAFE
from peft import LoraConfig
from peft.tuners.lora import LoraLayer
from torch import Tensor

from awm.models.adapted_linear import use_adapted_linear

LoraType = Literal["attn", "ffn", "all"]
Transformer = Any
"""A diffusers ``SD3Transformer2DModel``; its adapter methods have no type hints."""

ATTENTION = (
    *("to_q", "to_k", "to_v", "to_out.0"),
    *("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"),
)
FEED_FORWARD = ("ff.net.0.proj", "ff.net.2", "ff_context.net.0.proj", "ff_context.net.2")
TARGETS: dict[str, tuple[str, ...]] = {"attn": ATTENTION, "ffn": FEED_FORWARD, "all": ATTENTION + FEED_FORWARD}


def add_lora(transformer: Transformer, *, lora_type: LoraType, rank: int, alpha: int, seed: int) -> None:
    """Give ``transformer`` trainable float32 adapters: A ~ N(0, 1 / rank^2) drawn from ``seed``, B = 0.

    Args:
        transformer: a diffusers ``SD3Transformer2DModel``, frozen.
        lora_type: "attn" for the projections of every attention in both streams, "ffn" for both feed-forwards.
        rank: rows of A, columns of B.
        alpha: the adapter is scaled by alpha / rank.
        seed: the same seed gives the same A on any device and in any dtype.

    Raises:
        ValueError: if the type is unknown or no layer has one of its names.
    """
    if lora_type not in TARGETS:
        raise ValueError(f"lora_type={lora_type!r} is unknown; use one of {', '.join(TARGETS)}.")
    names = TARGETS[lora_type]
    if not any(name.endswith(tuple(f".{target}" for target in names)) for name, _ in transformer.named_modules()):
        raise ValueError(
            f"lora_type={lora_type!r} binds to no layer of this {type(transformer).__name__}: none is called "
            f"{', '.join(names)}. Training would change nothing; use an SD3 transformer from diffusers."
        )
    transformer.add_adapter(LoraConfig(r=rank, lora_alpha=alpha, target_modules=list(names)))
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in transformer.named_parameters():
        if parameter.requires_grad:
            start = torch.zeros(parameter.shape)
            if ".lora_A." in name:
                start.normal_(0, 1 / rank, generator=generator)
            parameter.data = start.to(parameter.device)
    for layer in _layers(transformer):
        # The adapters are float32 while a half-precision model hands them half-precision activations. PEFT would
        # copy those to float32 first, only for autocast to copy them back.
        layer.cast_input_dtype_enabled = layer.get_base_layer().weight.dtype == torch.float32
    if transformer.device.type == "cpu":
        use_adapted_linear(transformer)


def count_lora(transformer: Transformer) -> int:
    """How many modules of ``transformer`` have an adapter."""
    return sum(1 for _ in _layers(transformer))


def set_adapters_enabled(transformer: Transformer, enabled: bool) -> None:
    """Switch the adapters' contribution without touching ``requires_grad``.

    PEFT's own ``enable_adapters`` also freezes the adapters and thaws them again, which must not happen between
    a forward pass and its backward pass.
    """
    for layer in _layers(transformer):
        layer._disable_adapters = not enabled


def save_lora(transformer: Transformer, folder: Path, weights: Mapping[str, Tensor]) -> None:
    """Write adapters so that ``StableDiffusion3Pipeline.load_lora_weights(folder)`` rebuilds them exactly.

    Args:
        transformer: the network they belong to.
        folder: where ``pytorch_lora_weights.safetensors`` goes.
        weights: the adapters' whole tensors by parameter name.
    """
    StableDiffusion3Pipeline.save_lora_weights(
        folder,
        # Float32 as trained: half precision would not give the same image back.
        transformer_lora_layers={_file_name(name): weight.contiguous() for name, weight in weights.items()},
        # Without it diffusers assumes alpha = rank.
        transformer_lora_adapter_metadata=transformer.peft_config["default"].to_dict(),
    )


@torch.no_grad()
def load_lora(transformer: Transformer, folder: Path) -> None:
    """Read what ``save_lora`` or a diffusers training script wrote into the adapters of ``transformer``.

    Raises:
        ValueError: if there is no such file, or it holds another rank, scale or set of layers.
    """
    if not (folder / LORA_WEIGHT_NAME_SAFE).is_file():
        raise ValueError(f"lora_path={folder} holds no {LORA_WEIGHT_NAME_SAFE}; give the folder that contains it.")
    state, metadata = StableDiffusion3Pipeline.lora_state_dict(
        folder, weight_name=LORA_WEIGHT_NAME_SAFE, local_files_only=True, return_lora_metadata=True
    )
    saved = {name.removeprefix("transformer."): weight for name, weight in state.items()}
    ours = _weights(transformer)
    if saved.keys() != ours.keys():
        name = min(saved.keys() ^ ours.keys())
        raise ValueError(
            f"lora_path={folder} adapts other layers than this run: {name} is only in "
            f"{'the file' if name in saved else 'the model'}. Set lora_type to what it was trained with."
        )
    _check_scale(folder, next(w.shape[0] for name, w in saved.items() if ".lora_A." in name), metadata, transformer)
    for name, weight in ours.items():
        if weight.shape != saved[name].shape:
            raise ValueError(
                f"lora_path={folder} was trained on another model: {name} is {list(saved[name].shape)} there and "
                f"{list(weight.shape)} here."
            )
        weight.copy_(saved[name])


def _check_scale(folder: Path, rank: int, metadata: dict[str, object] | None, transformer: Transformer) -> None:
    alpha = (metadata or {}).get("transformer.lora_alpha", rank)
    config = transformer.peft_config["default"]
    if (rank, alpha) != (config.r, config.lora_alpha):
        raise ValueError(
            f"lora_path={folder} has rank {rank} and alpha {alpha}, this run {config.r} and {config.lora_alpha}; "
            f"set lora_rank={rank} and lora_alpha={alpha}."
        )


def _weights(transformer: Transformer) -> dict[str, Tensor]:
    """The adapters' parameters under the names they have in a file."""
    return {
        _file_name(name): parameter
        for name, parameter in transformer.named_parameters()
        if ".lora_A." in name or ".lora_B." in name
    }


def _file_name(parameter: str) -> str:
    """The name a parameter has in a file, which knows nothing of PEFT's adapter names."""
    return parameter.replace(".default.", ".")


def _layers(transformer: Transformer) -> Iterator[LoraLayer]:
    return (module for module in transformer.modules() if isinstance(module, LoraLayer))
