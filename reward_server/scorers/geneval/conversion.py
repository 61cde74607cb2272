"""From a checkpoint of mmdet's Mask2Former to a folder transformers can load; needs neither mmdet nor its config.

GenEval's published numbers come from mmdet's own training run, which the Hugging Face hub does not have:
https://github.com/djghosh13/geneval
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping
from importlib.metadata import version
from math import isqrt
from pathlib import Path

from torch import Tensor
from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation, SwinConfig

from reward_server.scorers.geneval.checkpoint import read_checkpoint
from reward_server.scorers.geneval.coco import CLASSES, check_classes
from reward_server.scorers.geneval.mask2former import necessary
from reward_server.scorers.geneval.mmdet_names import DECODER, ENCODER, TRANSFORMER, to_transformers

LEVELS, POINTS = 3, 4  # of the pixel decoder's deformable attention, the same in all models of both libraries


def convert_mask2former(source: Path, destination: Path) -> None:
    """Write an mmdet checkpoint as a folder for ``GenevalScorer(detector="hf", model=folder)``.

    Args:
        source: .pth file of mmdet 2.x or 3.x: Mask2Former, Swin backbone, the 80 classes of COCO instances.
        destination: folder to create.

    Raises:
        ValueError: the file is not such a checkpoint, or the folder exists and is not empty.
        OSError: the folder cannot be written.
    """
    if destination.exists() and (not destination.is_dir() or any(destination.iterdir())):
        raise ValueError(f"{destination} exists and is not an empty folder; name a new one")
    weights = to_transformers(read_checkpoint(source))
    config = infer_config(weights)
    check_classes(config.num_labels, {}, str(source))
    config.id2label = dict(enumerate(CLASSES))
    config.label2id = {name: index for index, name in enumerate(CLASSES)}
    config.converted_from = "mmdet"  # the detector's fingerprint reports it
    model = Mask2FormerForUniversalSegmentation(config)
    _load(model, weights)
    destination.parent.mkdir(parents=True, exist_ok=True)
    # Written beside its place and renamed: an interrupted conversion leaves no folder that looks finished.
    with tempfile.TemporaryDirectory(dir=destination.parent, prefix=".converting-") as unfinished:
        folder = Path(unfinished, "model")
        model.save_pretrained(folder)
        folder.replace(destination)


def infer_config(weights: Mapping[str, Tensor]) -> Mask2FormerConfig:
    """The network the weights fit, read off their shapes.

    Args:
        weights: with transformers' names, as ``to_transformers`` returns them.

    Raises:
        ValueError: a weight that is needed for that is missing.
    """
    try:
        patches = weights[ENCODER + "swin.embeddings.patch_embeddings.projection.weight"]  # [width, 3, patch, patch]
        blocks = ENCODER + "swin.encoder.layers.{}.blocks."
        depths = [_count(weights, blocks.format(stage)) for stage in range(_count(weights, blocks.split("{")[0]))]
        tables = [
            weights[blocks.format(stage) + "0.attention.relative_position_bias.relative_position_bias_table"]
            for stage in range(len(depths))
        ]  # [(2 window - 1)^2, heads]
        expanded, width = weights[blocks.format(0) + "0.mlp.fc1.weight"].shape
        backbone = SwinConfig(
            image_size=224,  # of ImageNet training; sets nothing here, as the windows slide over any size
            patch_size=patches.shape[-1],
            embed_dim=patches.shape[0],
            depths=depths,
            num_heads=[table.shape[1] for table in tables],
            window_size=(isqrt(tables[0].shape[0]) + 1) // 2,
            mlp_ratio=expanded / width,
            out_features=[f"stage{stage + 1}" for stage in range(len(depths))],
        )
        pixel_layer, query_layer = DECODER + "encoder.layers.", TRANSFORMER + "decoder.layers."
        offsets = weights[pixel_layer + "0.self_attn.sampling_offsets.weight"]  # [heads * levels * points * 2, width]
        queries = weights[TRANSFORMER + "queries_embedder.weight"]  # [queries, width]
        return Mask2FormerConfig(
            backbone_config=backbone,
            num_labels=weights["class_predictor.weight"].shape[0] - 1,  # the last one means "no object"
            num_queries=queries.shape[0],
            hidden_dim=queries.shape[1],
            feature_size=weights[DECODER + "input_projections.0.0.weight"].shape[0],
            mask_feature_size=weights[DECODER + "mask_projection.weight"].shape[0],
            encoder_layers=_count(weights, pixel_layer),
            decoder_layers=_count(weights, query_layer) + 1,  # transformers also counts the heads on the bare queries
            num_attention_heads=offsets.shape[0] // (LEVELS * POINTS * 2),
            encoder_feedforward_dim=weights[pixel_layer + "0.fc1.weight"].shape[0],
            dim_feedforward=weights[query_layer + "0.fc1.weight"].shape[0],
        )
    except KeyError as error:
        raise ValueError(f"the checkpoint is not complete: what becomes {error} is missing") from error


def _count(weights: Mapping[str, Tensor], prefix: str) -> int:
    """How many different numbers follow the prefix in the names."""
    pattern = re.compile(re.escape(prefix) + r"(\d+)\.")
    return len({match[1] for name in weights if (match := pattern.match(name))})


def _load(model: Mask2FormerForUniversalSegmentation, weights: Mapping[str, Tensor]) -> None:
    """Put the weights into the model; each must find its place, and each place that matters its weight."""
    try:
        missing, unexpected = model.load_state_dict(weights, strict=False)
    except RuntimeError as error:
        raise ValueError(f"the checkpoint's tensors do not fit together: {error}") from error
    if missing := necessary(missing):
        raise ValueError(f"the checkpoint is not complete: {len(missing)} weights are missing: {', '.join(missing)}")
    if unexpected:
        raise ValueError(
            f"transformers {version('transformers')} has no place for {len(unexpected)} weights: "
            f"{', '.join(unexpected)}; install the version this was written for: pip install 'transformers==5.23.*'"
        )
