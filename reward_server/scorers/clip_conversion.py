"""open_clip checkpoints as transformers' ``CLIPModel``, without installing open_clip (which needs torchvision).

The architecture follows from the shapes of the weights. Not covered: text towers that are not CLIP's own, pooling
other than the class token, SigLIP. open_clip: https://doi.org/10.5281/zenodo.5143773.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from reward_server.scorers.clip_files import CLIPConfig, CLIPModel, load_tokenizer
from reward_server.scorers.weights import read_weights

HEAD_WIDTHS = {1280: 80, 1408: 88, 1664: 104}  # of ViT-H, g and bigG by their width; of all other towers 64

_WHOLE = {
    "logit_scale": "logit_scale",
    "text_projection": "text_projection.weight",
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "ln_final.weight": "text_model.final_layer_norm.weight",
    "ln_final.bias": "text_model.final_layer_norm.bias",
    "visual.proj": "visual_projection.weight",
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.ln_pre.weight": "vision_model.pre_layrnorm.weight",
    "visual.ln_pre.bias": "vision_model.pre_layrnorm.bias",
    "visual.ln_post.weight": "vision_model.post_layernorm.weight",
    "visual.ln_post.bias": "vision_model.post_layernorm.bias",
}
_TRANSPOSED = ("text_projection", "visual.proj")  # [in, out] there, [out, in] here
_IN_BLOCK = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
_BLOCK = re.compile(r"(visual\.)?transformer\.resblocks\.(\d+)\.(.+?)[._](weight|bias)")


def convert_open_clip(
    checkpoint: Path, destination: Path, *, tokenizer: str | None = None, activation: str = "gelu"
) -> None:
    """Write an open_clip checkpoint as a folder that ``CLIPModel.from_pretrained`` loads.

    Args:
        checkpoint: .pt file, a state dict or {"state_dict": ...}.
        destination: folder to write.
        tokenizer: folder or Hugging Face id whose tokenizer is stored with the model.
        activation: "gelu"; "quick_gelu" for OpenAI's own weights and models whose open_clip name says quickgelu.

    Raises:
        ValueError: the file is missing or is no such checkpoint.
    """
    text_tokens = load_tokenizer(tokenizer) if tokenizer else None
    load_open_clip(checkpoint, torch.float32, activation=activation).save_pretrained(destination)
    if text_tokens is not None:
        text_tokens.save_pretrained(destination)


def load_open_clip(checkpoint: Path, dtype: torch.dtype, *, activation: str = "gelu") -> Any:
    """The ``CLIPModel`` of an open_clip checkpoint, frozen, in evaluation mode, on the CPU.

    Args:
        checkpoint: .pt file, a state dict or {"state_dict": ...}.
        dtype: of the weights.
        activation: as in ``convert_open_clip``.

    Raises:
        ValueError: the file is missing or is no such checkpoint.
    """
    read = read_weights(checkpoint, "an open_clip checkpoint (.pt)")
    weights = {name.removeprefix("module."): tensor for name, tensor in read.items()}
    try:
        state = convert_weights(weights)
        config = config_of(weights, activation=activation)
    except KeyError as error:
        raise ValueError(
            f"{checkpoint} is no open_clip checkpoint of a CLIP model: {error.args[0]} is missing"
        ) from error
    model, report = CLIPModel.from_pretrained(
        None, config=config, state_dict=state, dtype=dtype, output_loading_info=True
    )
    if wrong := sorted({*report["missing_keys"], *report["unexpected_keys"]}):
        raise ValueError(f"{checkpoint} is no open_clip checkpoint of a CLIP model: {', '.join(wrong[:3])} do not fit")
    return model.eval().requires_grad_(False)


def convert_weights(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights in open_clip's naming as weights of ``CLIPModel``, each exactly once.

    Raises:
        ValueError: naming a weight that CLIP does not have.
    """
    state: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        if block := _BLOCK.fullmatch(name):
            state.update(_convert_block(name, block, tensor))
        elif name in _WHOLE:
            tensor = tensor.T if name in _TRANSPOSED else tensor
            state[_WHOLE[name]] = tensor.reshape(()) if name == "logit_scale" else tensor.contiguous()
        else:
            raise ValueError(_unknown(name))
    return state


def config_of(weights: Mapping[str, Tensor], *, activation: str) -> Any:
    """The ``CLIPConfig`` that follows from the shapes of open_clip's weights."""
    width, _, patch, _ = weights["visual.conv1.weight"].shape
    grid = round((weights["visual.positional_embedding"].shape[0] - 1) ** 0.5)
    vocabulary, text_width = weights["token_embedding.weight"].shape
    dimension = weights["visual.proj"].shape[1]
    vision = {
        "image_size": grid * patch,
        "patch_size": patch,
        "num_attention_heads": max(1, width // HEAD_WIDTHS.get(width, 64)),
    }
    text = {
        "vocab_size": vocabulary,
        "max_position_embeddings": weights["positional_embedding"].shape[0],
        "num_attention_heads": max(1, text_width // 64),
        "bos_token_id": vocabulary - 2,
        "eos_token_id": vocabulary - 1,  # open_clip reads the text at the largest id
    }
    return CLIPConfig(
        vision_config={**vision, **_tower(weights, "visual.transformer", dimension, activation)},
        text_config={**text, **_tower(weights, "transformer", dimension, activation)},
        projection_dim=dimension,
    )


def _tower(weights: Mapping[str, Tensor], prefix: str, dimension: int, activation: str) -> dict[str, Any]:
    inner, width = weights[f"{prefix}.resblocks.0.mlp.c_fc.weight"].shape
    return {
        "hidden_size": width,
        "intermediate_size": inner,
        "num_hidden_layers": sum(name.startswith(prefix) and name.endswith("mlp.c_fc.weight") for name in weights),
        "projection_dim": dimension,
        "hidden_act": activation,
    }


def _convert_block(name: str, block: re.Match[str], tensor: Tensor) -> dict[str, Tensor]:
    visual, number, part, kind = block.groups()
    layer = f"{'vision' if visual else 'text'}_model.encoder.layers.{number}"
    if part == "attn.in_proj":
        parts = zip("qkv", tensor.chunk(3), strict=True)
        return {f"{layer}.self_attn.{letter}_proj.{kind}": third.contiguous() for letter, third in parts}
    if part not in _IN_BLOCK:
        raise ValueError(_unknown(name))
    return {f"{layer}.{_IN_BLOCK[part]}.{kind}": tensor}


def _unknown(name: str) -> str:
    return f"{name} is no weight of a CLIP model in open_clip's naming; only ViTs with CLIP's own text tower convert"
