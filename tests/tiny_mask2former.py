"""A random Mask2Former on disk, built in a moment, in the format of the real ones and for the same 80 classes."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation, SwinConfig

STAGES = ["stage1", "stage2", "stage3", "stage4"]


def save_tiny_mask2former(folder: Path, seed: int = 0) -> Path:
    """Write the model into ``folder`` and return it; the same seed writes the same weights."""
    tiny_mask2former(seed).save_pretrained(folder)
    return folder


def tiny_mask2former(seed: int = 0) -> Mask2FormerForUniversalSegmentation:
    """A model with every kind of weight the real one has, shifted windows included; it is sure of some objects."""
    # Stages of two, one, two and one blocks: only every second block of a stage shifts its windows.
    backbone = SwinConfig(embed_dim=16, depths=[2, 1, 2, 1], num_heads=[1, 2, 4, 8], window_size=7, out_features=STAGES)
    widths = {"hidden_dim": 32, "feature_size": 32, "mask_feature_size": 32, "num_attention_heads": 4}
    depths = {"encoder_layers": 2, "decoder_layers": 3, "encoder_feedforward_dim": 64, "dim_feedforward": 48}
    config = Mask2FormerConfig(backbone_config=backbone, num_labels=80, num_queries=12, **widths, **depths)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Mask2FormerForUniversalSegmentation(config)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.ndim > 1:  # as initialised, every query would say the same
                    parameter.copy_(torch.randn_like(parameter) * (0.05 if "sampling_offsets" in name else 0.25))
                elif name.endswith("bias"):
                    parameter.copy_(torch.randn_like(parameter) * 0.1)
            model.class_predictor.weight.mul_(3.0)
    return model.eval()
