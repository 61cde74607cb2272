"""A checkpoint's modules without its weights: built on PyTorch's meta device from the JSON files beside them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, SD3Transformer2DModel
from huggingface_hub import hf_hub_download
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, T5Config, T5EncoderModel

from awm.models.checkpoint_folder import resolve_sd3
from awm.models.latents import latent_shape

DEFAULT_T5_TOKENS = 128
META = torch.device("meta")


class MissingConfigError(Exception):
    """The JSON files of a checkpoint on the hub are not on this machine and cannot be had."""


@dataclass(frozen=True, slots=True)
class Weightless:
    """The parts of an SD3 checkpoint on the meta device.

    Attributes:
        transformer: the velocity network.
        autoencoder: decodes latents.
        text_encoders: two CLIPs, and T5 if the checkpoint has it.
        clip_tokens: tokens of a prompt for CLIP.
        t5_tokens: tokens for T5, or of zeros in its place.
    """

    transformer: Any
    autoencoder: Any
    text_encoders: tuple[nn.Module, ...]
    clip_tokens: int
    t5_tokens: int

    def latent_shape(self, resolution: int) -> tuple[int, int, int]:
        """See :func:`awm.models.latents.latent_shape`."""
        config = self.transformer.config
        return latent_shape(
            resolution,
            channels=config.in_channels,
            patch=config.patch_size,
            positions=config.pos_embed_max_size,
            scale=2 ** (len(self.autoencoder.config.block_out_channels) - 1),
        )

    def transformer_inputs(self, resolution: int) -> dict[str, Tensor]:
        """Arguments of the transformer for one row."""
        config, dtype = self.transformer.config, self.transformer.dtype
        tokens = self.clip_tokens + self.t5_tokens
        return {
            "hidden_states": torch.empty(1, *self.latent_shape(resolution), dtype=dtype, device=META),
            "timestep": torch.empty(1, device=META),
            "encoder_hidden_states": torch.empty(1, tokens, config.joint_attention_dim, dtype=dtype, device=META),
            "pooled_projections": torch.empty(1, config.pooled_projection_dim, dtype=dtype, device=META),
        }


def load_weightless(
    model: str, *, revision: str | None, max_sequence_length: int | None, dtype: torch.dtype
) -> Weightless:
    """Build ``model`` (hub id, local folder or "tiny") without reading a weight.

    Raises:
        ValueError: a local folder that is no SD3 checkpoint, as :meth:`awm.models.sd3.SD3.load` raises it.
        MissingConfigError: a hub id whose configuration files are not here and cannot be downloaded.
    """
    try:
        location, has_t5 = resolve_sd3(model, revision=revision or None)
    except ValueError as error:
        if model == "tiny" or Path(model).exists() or model.count("/") != 1:
            raise
        raise MissingConfigError(str(error)) from error

    def read(name: str) -> dict[str, Any]:
        return _read(location, name, revision or None)

    clips = [read(f"{part}/config.json") for part in ("text_encoder", "text_encoder_2")]
    t5 = read("text_encoder_3/config.json") if has_t5 else None
    longest = int(read("tokenizer_3/tokenizer_config.json").get("model_max_length", 512)) if has_t5 else 512
    tokens = max_sequence_length or min(DEFAULT_T5_TOKENS, longest)
    with META:
        return Weightless(
            transformer=SD3Transformer2DModel.from_config(read("transformer/config.json"))
            .to(dtype)
            .requires_grad_(False),
            autoencoder=AutoencoderKL.from_config(read("vae/config.json")).to(dtype).requires_grad_(False),
            text_encoders=tuple(encoder.to(dtype).requires_grad_(False) for encoder in _encoders(clips, t5)),
            clip_tokens=int(clips[0]["max_position_embeddings"]),
            t5_tokens=tokens,
        )


def _encoders(clips: list[dict[str, Any]], t5: Mapping[str, Any] | None) -> list[nn.Module]:
    encoders: list[nn.Module] = [CLIPTextModelWithProjection(CLIPTextConfig(**values)) for values in clips]
    return encoders if t5 is None else [*encoders, T5EncoderModel(T5Config(**t5))]


def _read(location: str, name: str, revision: str | None) -> dict[str, Any]:
    file = Path(location) / name
    if not Path(location).is_dir():
        try:
            file = Path(hf_hub_download(location, name, revision=revision))
        except Exception as error:  # offline, gated, gone: the library has a class for each
            raise MissingConfigError(f"{name} of {location} is not here ({type(error).__name__}).") from error
    values: dict[str, Any] = json.loads(file.read_text())
    return values
