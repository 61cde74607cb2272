"""mmdet's weights of Mask2Former with a Swin backbone under the names, and in the layout, of transformers.

The two are the same network. Apart from names, mmdet packs query, key and value of self-attention into one tensor,
and its patch merging lists the four pixels it joins in another order. Accepted are the names of mmdet 3.x and of
2.x. Mask2Former, https://arxiv.org/abs/2112.01527; Swin, https://arxiv.org/abs/2103.14030
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from torch import Tensor

ENCODER = "model.pixel_level_module.encoder."
DECODER = "model.pixel_level_module.decoder."
TRANSFORMER = "model.transformer_module."

_BEFORE_3 = (
    # The operations of a decoder layer are cross-attention, self-attention, feed-forward, and 2.x numbers them.
    (r"(\.pixel_decoder\.encoder\.layers\.\d+)\.attentions\.0\.", r"\1.self_attn."),
    (r"(\.transformer_decoder\.layers\.\d+)\.attentions\.0\.", r"\1.cross_attn."),
    (r"(\.transformer_decoder\.layers\.\d+)\.attentions\.1\.", r"\1.self_attn."),
    (r"(_decoder\.(?:encoder\.)?layers\.\d+)\.ffns\.0\.", r"\1.ffn."),
)
_BLOCK = r"backbone\.stages\.(\d+)\.blocks\.(\d+)\."
_BLOCK_HERE = ENCODER + r"swin.encoder.layers.\1.blocks.\2."
_HEAD = r"panoptic_head\."
_PIXEL = _HEAD + r"pixel_decoder\."
_PIXEL_LAYER = _PIXEL + r"encoder\.layers\.(\d+)\."
_PIXEL_LAYER_HERE = DECODER + r"encoder.layers.\1."
_QUERY_LAYER = _HEAD + r"transformer_decoder\.layers\.(\d+)\."
_QUERY_LAYER_HERE = TRANSFORMER + r"decoder.layers.\1."
_END = r"(weight|bias)"

_RENAMED = (
    (rf"backbone\.patch_embed\.projection\.{_END}", ENCODER + r"swin.embeddings.patch_embeddings.projection.\1"),
    (rf"backbone\.patch_embed\.norm\.{_END}", ENCODER + r"swin.embeddings.norm.\1"),
    (rf"{_BLOCK}norm1\.{_END}", _BLOCK_HERE + r"layernorm_before.\3"),
    (rf"{_BLOCK}norm2\.{_END}", _BLOCK_HERE + r"layernorm_after.\3"),
    (rf"{_BLOCK}attn\.w_msa\.proj\.{_END}", _BLOCK_HERE + r"attention.o_proj.\3"),
    (
        rf"{_BLOCK}attn\.w_msa\.relative_position_bias_table",
        _BLOCK_HERE + "attention.relative_position_bias.relative_position_bias_table",
    ),
    (rf"{_BLOCK}ffn\.layers\.0\.0\.{_END}", _BLOCK_HERE + r"mlp.fc1.\3"),
    (rf"{_BLOCK}ffn\.layers\.1\.{_END}", _BLOCK_HERE + r"mlp.fc2.\3"),
    (rf"{_PIXEL}input_convs\.(\d+)\.conv\.{_END}", DECODER + r"input_projections.\1.0.\2"),
    (rf"{_PIXEL}input_convs\.(\d+)\.gn\.{_END}", DECODER + r"input_projections.\1.1.\2"),
    (
        rf"{_PIXEL_LAYER}self_attn\.(sampling_offsets|attention_weights|value_proj|output_proj)\.{_END}",
        _PIXEL_LAYER_HERE + r"self_attn.\2.\3",
    ),
    (rf"{_PIXEL_LAYER}norms\.0\.{_END}", _PIXEL_LAYER_HERE + r"self_attn_layer_norm.\2"),
    (rf"{_PIXEL_LAYER}norms\.1\.{_END}", _PIXEL_LAYER_HERE + r"final_layer_norm.\2"),
    (rf"{_PIXEL_LAYER}ffn\.layers\.0\.0\.{_END}", _PIXEL_LAYER_HERE + r"fc1.\2"),
    (rf"{_PIXEL_LAYER}ffn\.layers\.1\.{_END}", _PIXEL_LAYER_HERE + r"fc2.\2"),
    (rf"{_PIXEL}level_encoding\.weight", DECODER + "level_embed"),
    (rf"{_PIXEL}lateral_convs\.0\.conv\.{_END}", DECODER + r"adapter_1.0.\1"),
    (rf"{_PIXEL}lateral_convs\.0\.gn\.{_END}", DECODER + r"adapter_1.1.\1"),
    (rf"{_PIXEL}output_convs\.0\.conv\.{_END}", DECODER + r"layer_1.0.\1"),
    (rf"{_PIXEL}output_convs\.0\.gn\.{_END}", DECODER + r"layer_1.1.\1"),
    (rf"{_PIXEL}mask_feature\.{_END}", DECODER + r"mask_projection.\1"),
    (rf"{_QUERY_LAYER}cross_attn\.attn\.(in_proj_weight|in_proj_bias)", _QUERY_LAYER_HERE + r"cross_attn.\2"),
    (rf"{_QUERY_LAYER}cross_attn\.attn\.out_proj\.{_END}", _QUERY_LAYER_HERE + r"cross_attn.out_proj.\2"),
    (rf"{_QUERY_LAYER}self_attn\.attn\.out_proj\.{_END}", _QUERY_LAYER_HERE + r"self_attn.out_proj.\2"),
    (rf"{_QUERY_LAYER}norms\.0\.{_END}", _QUERY_LAYER_HERE + r"cross_attn_layer_norm.\2"),
    (rf"{_QUERY_LAYER}norms\.1\.{_END}", _QUERY_LAYER_HERE + r"self_attn_layer_norm.\2"),
    (rf"{_QUERY_LAYER}norms\.2\.{_END}", _QUERY_LAYER_HERE + r"final_layer_norm.\2"),
    (rf"{_QUERY_LAYER}ffn\.layers\.0\.0\.{_END}", _QUERY_LAYER_HERE + r"fc1.\2"),
    (rf"{_QUERY_LAYER}ffn\.layers\.1\.{_END}", _QUERY_LAYER_HERE + r"fc2.\2"),
    (rf"{_HEAD}transformer_decoder\.post_norm\.{_END}", TRANSFORMER + r"decoder.layernorm.\1"),
    (rf"{_HEAD}query_embed\.weight", TRANSFORMER + "queries_embedder.weight"),
    (rf"{_HEAD}query_feat\.weight", TRANSFORMER + "queries_features.weight"),
    (rf"{_HEAD}level_embed\.weight", TRANSFORMER + "level_embed.weight"),
    (rf"{_HEAD}cls_embed\.{_END}", r"class_predictor.\1"),
    (rf"{_HEAD}mask_embed\.0\.{_END}", TRANSFORMER + r"decoder.mask_predictor.mask_embedder.0.0.\1"),
    (rf"{_HEAD}mask_embed\.2\.{_END}", TRANSFORMER + r"decoder.mask_predictor.mask_embedder.1.0.\1"),
    (rf"{_HEAD}mask_embed\.4\.{_END}", TRANSFORMER + r"decoder.mask_predictor.mask_embedder.2.0.\1"),
)
_QUERY_KEY_VALUE = (
    (rf"{_BLOCK}attn\.w_msa\.qkv\.{_END}", _BLOCK_HERE + r"attention.{part}_proj.\3"),
    (rf"{_QUERY_LAYER}self_attn\.attn\.in_proj_{_END}", _QUERY_LAYER_HERE + r"self_attn.{part}_proj.\2"),
)
_PATCH_MERGING = (
    rf"backbone\.stages\.(\d+)\.downsample\.(norm|reduction)\.{_END}",
    ENCODER + r"swin.encoder.layers.\1.downsample.\2.\3",
)
_STAGE_NORM = rf"backbone\.norm(\d+)\.{_END}"
_RECOMPUTED = r".*\.relative_position_index"  # follows from the window size


def to_transformers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights under the names ``Mask2FormerForUniversalSegmentation`` has for them in memory.

    Args:
        state: all weights of an mmdet ``Mask2Former`` with a ``SwinTransformer`` backbone.

    Raises:
        ValueError: some of them belong to no such network.
    """
    renamed: dict[str, Tensor] = {}
    unknown: list[str] = []
    for name, tensor in state.items():
        current = _substituted(name, _BEFORE_3)
        if re.fullmatch(_RECOMPUTED, current):
            continue
        parts = _converted(current, tensor)
        if not parts:
            unknown.append(name)
        renamed |= parts
    if unknown:
        raise ValueError(
            f"{len(unknown)} of {len(state)} tensors belong to no Mask2Former with a Swin backbone, such as "
            f"{', '.join(unknown[:5])}; expected the state_dict of an mmdet 2.x or 3.x checkpoint of that model"
        )
    return renamed


def concatenated_order(weight: Tensor) -> Tensor:
    """Inputs of patch merging [..., 4C] from the order of ``nn.Unfold`` to that of concatenation.

    Both list the C channels of four neighbouring pixels. mmdet's ``nn.Unfold`` goes channel by channel, and within
    one over (row, column) = (0, 0), (0, 1), (1, 0), (1, 1); transformers concatenates whole pixels, in the order
    (0, 0), (1, 0), (0, 1), (1, 1).
    """
    by_channel = weight.reshape(*weight.shape[:-1], -1, 4)
    return by_channel[..., [0, 2, 1, 3]].transpose(-1, -2).reshape(weight.shape)


def _converted(name: str, tensor: Tensor) -> dict[str, Tensor]:
    """One mmdet 3.x tensor as one or three of transformers; none if the name is unknown."""
    for pattern, template in _RENAMED:
        if match := re.fullmatch(pattern, name):
            return {match.expand(template): tensor}
    for pattern, template in _QUERY_KEY_VALUE:
        if match := re.fullmatch(pattern, name):
            packed = zip("qkv", tensor.chunk(3), strict=True)
            return {match.expand(template).format(part=part): chunk.clone() for part, chunk in packed}
    if match := re.fullmatch(_PATCH_MERGING[0], name):
        return {match.expand(_PATCH_MERGING[1]): concatenated_order(tensor)}
    if match := re.fullmatch(_STAGE_NORM, name):
        return {f"{ENCODER}hidden_states_norms.stage{int(match[1]) + 1}.{match[2]}": tensor}
    return {}


def _substituted(name: str, rules: Iterable[tuple[str, str]]) -> str:
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name
