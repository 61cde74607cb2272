"""Stable Diffusion 3.5 Medium as its published JSON files describe it, as a folder without a single weight.

The sizes are those of ``stabilityai/stable-diffusion-3.5-medium``; the words are the shipped tiny model's, whose
tokenizers stand in for the real ones: every prompt is padded to the same number of tokens anyway.
"""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path
from typing import Any

TRANSFORMER: dict[str, Any] = {
    "_class_name": "SD3Transformer2DModel",
    "sample_size": 128,
    "patch_size": 2,
    "in_channels": 16,
    "out_channels": 16,
    "num_layers": 24,
    "attention_head_dim": 64,
    "num_attention_heads": 24,
    "joint_attention_dim": 4096,
    "caption_projection_dim": 1536,
    "pooled_projection_dim": 2048,
    "pos_embed_max_size": 384,
    "dual_attention_layers": list(range(13)),
    "qk_norm": "rms_norm",
}
AUTOENCODER: dict[str, Any] = {
    "_class_name": "AutoencoderKL",
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "block_out_channels": [128, 256, 512, 512],
    "layers_per_block": 2,
    "latent_channels": 16,
    "sample_size": 1024,
    "scaling_factor": 1.5305,
    "shift_factor": 0.0609,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
}
CLIP_L: dict[str, Any] = {
    "vocab_size": 49408,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "projection_dim": 768,
    "max_position_embeddings": 77,
    "hidden_act": "quick_gelu",
    "bos_token_id": 622,  # the stand-in tokenizers'
    "eos_token_id": 623,
    "pad_token_id": 623,
}
CLIP_G: dict[str, Any] = CLIP_L | {
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_hidden_layers": 32,
    "num_attention_heads": 20,
    "projection_dim": 1280,
    "hidden_act": "gelu",
    "pad_token_id": 0,
}
T5_XXL: dict[str, Any] = {
    "vocab_size": 32128,
    "d_model": 4096,
    "d_kv": 64,
    "d_ff": 10240,
    "num_layers": 24,
    "num_heads": 64,
    "feed_forward_proj": "gated-gelu",
    "dropout_rate": 0.0,
    "decoder_start_token_id": 0,
}
SHORT_T5_LAYERS = 2
TOKENS = {"tokenizer": 77, "tokenizer_2": 77, "tokenizer_3": 256}
CLASSES = {
    "transformer": "SD3Transformer2DModel",
    "vae": "AutoencoderKL",
    "text_encoder": "CLIPTextModelWithProjection",
    "text_encoder_2": "CLIPTextModelWithProjection",
    "text_encoder_3": "T5EncoderModel",
}


def medium_configs(text_encoders: str) -> dict[str, dict[str, Any]]:
    """Part -> its config; with ``text_encoders="small"`` T5 has 2 of its 24 layers, as wide as all of them."""
    t5 = T5_XXL | ({"num_layers": SHORT_T5_LAYERS} if text_encoders == "small" else {})
    return {
        "transformer": TRANSFORMER,
        "vae": AUTOENCODER,
        "text_encoder": CLIP_L,
        "text_encoder_2": CLIP_G,
        "text_encoder_3": t5,
    }


def write_checkpoint(folder: Path, configs: dict[str, dict[str, Any]]) -> None:
    """Write a checkpoint in the layout of diffusers' pipeline, but for its weights.

    Args:
        folder: where to; made if missing.
        configs: of transformer, vae and text encoders.
    """
    for part, config in configs.items():
        _write(folder / part / "config.json", config)
    shipped = Path(str(files("awm") / "assets" / "tiny_sd3"))
    for part, tokens in TOKENS.items():
        for file in sorted((shipped / part).iterdir()):
            content = json.loads(file.read_text())
            if file.name == "tokenizer_config.json":
                content["model_max_length"] = tokens
            _write(folder / part / file.name, content)
    _write(
        folder / "scheduler" / "scheduler_config.json",
        {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0, "num_train_timesteps": 1000},
    )
    index = {part: ["", CLASSES.get(part, "")] for part in (*configs, *TOKENS, "scheduler")}
    _write(folder / "model_index.json", {"_class_name": "StableDiffusion3Pipeline", **index})


def _write(file: Path, content: Any) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content))
