"""A random CLIP on disk, built in a moment: model, tokenizer and image processor in the format of the real ones."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers.pre_tokenizers import ByteLevel
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPTokenizer

EMBEDDING = 16
IMAGE_SIZE = 32  # pixels; small, so that a forward pass takes a millisecond


def save_tiny_clip(folder: Path, seed: int = 0, *, image_size: int = IMAGE_SIZE) -> Path:
    """Write the model into ``folder`` and return it; the same seed writes the same weights."""
    tokenizer = tiny_tokenizer()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = CLIPModel(_config(tokenizer, image_size))
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                # Freshly initialised CLIPs map everything to nearly the same vector; tests need them to differ.
                if parameter.ndim > 1:
                    parameter.copy_(torch.randn_like(parameter) * (0.5 if "embedding" in name else 0.3))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    size = {"height": image_size, "width": image_size}
    CLIPImageProcessorPil(size={"shortest_edge": image_size}, crop_size=size).save_pretrained(folder)
    return folder


def tiny_tokenizer() -> CLIPTokenizer:
    """Byte-level BPE without merges: every character is a token."""
    alphabet = sorted(ByteLevel.alphabet())
    tokens = [*alphabet, *(symbol + "</w>" for symbol in alphabet), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={token: i for i, token in enumerate(tokens)}, merges=[], model_max_length=77)


def _config(tokenizer: CLIPTokenizer, image_size: int) -> CLIPConfig:
    layers = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "projection_dim": EMBEDDING,
    }
    text = {
        "vocab_size": len(tokenizer),
        "max_position_embeddings": 77,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    return CLIPConfig(
        text_config={**layers, **text},
        vision_config={**layers, "image_size": image_size, "patch_size": 8},
        projection_dim=EMBEDDING,
        logit_scale_init_value=4.6052,  # ln 100, as trained models have it
    )
