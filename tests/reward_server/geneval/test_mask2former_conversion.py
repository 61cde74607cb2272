"""mmdet's weights, made here from a random transformers model, convert back to exactly that model."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import Mask2FormerForUniversalSegmentation
from transformers.models.swin.modeling_swin import SwinPatchMerging

from reward_server.scorers.geneval.coco import CLASSES
from reward_server.scorers.geneval.conversion import convert_mask2former, infer_config
from reward_server.scorers.geneval.mask2former import load_mask2former
from reward_server.scorers.geneval.mmdet_names import concatenated_order, to_transformers
from tests.tiny_mask2former import tiny_mask2former

State = dict[str, Tensor]


@pytest.fixture(scope="module")
def model() -> Mask2FormerForUniversalSegmentation:
    return tiny_mask2former()


def unfold_order(weight: Tensor) -> Tensor:
    """Inputs [..., 4C] of transformers' patch merging in the order of nn.Unfold: channel first, then pixel."""
    channels = weight.shape[-1] // 4
    result = torch.empty_like(weight)
    for position, (row, column) in enumerate([(0, 0), (1, 0), (0, 1), (1, 1)]):  # as transformers concatenates
        for channel in range(channels):
            result[..., channel * 4 + row * 2 + column] = weight[..., position * channels + channel]
    return result


def mmdet_3(model: nn.Module) -> State:
    """The model's weights under the names of mmdet 3.x, module by module."""
    state: State = {}

    def put(name: str, module: nn.Module, change: Callable[[Tensor], Tensor] = lambda t: t) -> None:
        state.update({f"{name}.{end}": change(tensor) for end, tensor in module.named_parameters(recurse=False)})

    def put_packed(name: str, q: nn.Linear, k: nn.Linear, v: nn.Linear, end: str) -> None:
        state[f"{name}weight"] = torch.cat([q.weight, k.weight, v.weight])
        state[f"{name}{end}"] = torch.cat([q.bias, k.bias, v.bias])

    net: Any = model
    backbone = net.model.pixel_level_module.encoder
    put("backbone.patch_embed.projection", backbone.swin.embeddings.patch_embeddings.projection)
    put("backbone.patch_embed.norm", backbone.swin.embeddings.norm)
    for i, stage in enumerate(backbone.swin.encoder.layers):
        for j, block in enumerate(stage.blocks):
            here = f"backbone.stages.{i}.blocks.{j}"
            put(f"{here}.norm1", block.layernorm_before)
            put(f"{here}.norm2", block.layernorm_after)
            attention = block.attention
            put_packed(f"{here}.attn.w_msa.qkv.", attention.q_proj, attention.k_proj, attention.v_proj, "bias")
            put(f"{here}.attn.w_msa.proj", attention.o_proj)
            bias = attention.relative_position_bias
            state[f"{here}.attn.w_msa.relative_position_bias_table"] = bias.relative_position_bias_table
            state[f"{here}.attn.w_msa.relative_position_index"] = bias.relative_position_index
            put(f"{here}.ffn.layers.0.0", block.mlp.fc1)
            put(f"{here}.ffn.layers.1", block.mlp.fc2)
        if stage.downsample is not None:
            put(f"backbone.stages.{i}.downsample.norm", stage.downsample.norm, unfold_order)
            put(f"backbone.stages.{i}.downsample.reduction", stage.downsample.reduction, unfold_order)
        put(f"backbone.norm{i}", backbone.hidden_states_norms[f"stage{i + 1}"])

    pixels = net.model.pixel_level_module.decoder
    for i, projection in enumerate(pixels.input_projections):
        put(f"panoptic_head.pixel_decoder.input_convs.{i}.conv", projection[0])
        put(f"panoptic_head.pixel_decoder.input_convs.{i}.gn", projection[1])
    for i, layer in enumerate(pixels.encoder.layers):
        here = f"panoptic_head.pixel_decoder.encoder.layers.{i}"
        for part in ("sampling_offsets", "attention_weights", "value_proj", "output_proj"):
            put(f"{here}.self_attn.{part}", getattr(layer.self_attn, part))
        put(f"{here}.norms.0", layer.self_attn_layer_norm)
        put(f"{here}.norms.1", layer.final_layer_norm)
        put(f"{here}.ffn.layers.0.0", layer.fc1)
        put(f"{here}.ffn.layers.1", layer.fc2)
    state["panoptic_head.pixel_decoder.level_encoding.weight"] = pixels.level_embed
    put("panoptic_head.pixel_decoder.lateral_convs.0.conv", pixels.adapter_1[0])
    put("panoptic_head.pixel_decoder.lateral_convs.0.gn", pixels.adapter_1[1])
    put("panoptic_head.pixel_decoder.output_convs.0.conv", pixels.layer_1[0])
    put("panoptic_head.pixel_decoder.output_convs.0.gn", pixels.layer_1[1])
    put("panoptic_head.pixel_decoder.mask_feature", pixels.mask_projection)

    head = net.model.transformer_module
    for i, layer in enumerate(head.decoder.layers):
        here = f"panoptic_head.transformer_decoder.layers.{i}"
        put(f"{here}.cross_attn.attn", layer.cross_attn)
        put(f"{here}.cross_attn.attn.out_proj", layer.cross_attn.out_proj)
        own = layer.self_attn
        put_packed(f"{here}.self_attn.attn.in_proj_", own.q_proj, own.k_proj, own.v_proj, "bias")
        put(f"{here}.self_attn.attn.out_proj", own.out_proj)
        put(f"{here}.norms.0", layer.cross_attn_layer_norm)
        put(f"{here}.norms.1", layer.self_attn_layer_norm)
        put(f"{here}.norms.2", layer.final_layer_norm)
        put(f"{here}.ffn.layers.0.0", layer.fc1)
        put(f"{here}.ffn.layers.1", layer.fc2)
    put("panoptic_head.transformer_decoder.post_norm", head.decoder.layernorm)
    put("panoptic_head.query_embed", head.queries_embedder)
    put("panoptic_head.query_feat", head.queries_features)
    put("panoptic_head.level_embed", head.level_embed)
    put("panoptic_head.cls_embed", net.class_predictor)
    for i, block in enumerate(head.decoder.mask_predictor.mask_embedder.children()):
        put(f"panoptic_head.mask_embed.{2 * i}", next(block.children()))
    return {name: tensor.detach().clone() for name, tensor in state.items()}


def mmdet_2(model: nn.Module) -> State:
    """The same under the names of mmdet 2.x, which numbers the operations of a layer."""
    renamed = {}
    for name, tensor in mmdet_3(model).items():
        if "pixel_decoder.encoder" in name:
            name = name.replace(".self_attn.", ".attentions.0.")
        if "transformer_decoder.layers" in name:
            name = name.replace(".cross_attn.", ".attentions.0.").replace(".self_attn.", ".attentions.1.")
        if name.startswith("panoptic_head."):
            name = name.replace(".ffn.", ".ffns.0.")
        renamed[name] = tensor
    return renamed


def saved(state: Mapping[str, Tensor], folder: Path) -> Path:
    path = folder / "detector.pth"
    torch.save({"meta": {"CLASSES": CLASSES}, "state_dict": state}, path)
    return path


@pytest.mark.parametrize("naming", [mmdet_2, mmdet_3])
def test_the_converted_model_is_the_same_function(
    naming: Callable[[nn.Module], State], model: Mask2FormerForUniversalSegmentation, tmp_path: Path
) -> None:
    convert_mask2former(saved(naming(model), tmp_path), tmp_path / "converted")
    converted = load_mask2former(str(tmp_path / "converted"))
    pixels = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected, result = model(pixel_values=pixels), converted(pixel_values=pixels)
    # Equal weights at other addresses: on some processors the alignment decides which kernel rounds the last bits.
    for name in ("class_queries_logits", "masks_queries_logits"):
        torch.testing.assert_close(result[name], expected[name], rtol=1e-5, atol=1e-5)
    assert converted.config.id2label == dict(enumerate(CLASSES))
    assert converted.config.converted_from == "mmdet"


def test_every_tensor_of_either_naming_arrives(model: Mask2FormerForUniversalSegmentation) -> None:
    expected = model.state_dict()
    for state in (mmdet_2(model), mmdet_3(model)):
        converted = to_transformers(state)
        unused = {name for name in expected if ".swin.layernorm." in name} | {"criterion.empty_weight"}
        assert converted.keys() == expected.keys() - unused
        assert all(torch.equal(tensor, expected[name]) for name, tensor in converted.items())


def test_the_network_is_read_off_the_shapes(model: Mask2FormerForUniversalSegmentation) -> None:
    config = infer_config(to_transformers(mmdet_3(model)))
    for key in (
        *("num_labels", "num_queries", "hidden_dim", "feature_size", "mask_feature_size", "encoder_layers"),
        *("decoder_layers", "num_attention_heads", "encoder_feedforward_dim", "dim_feedforward"),
    ):
        assert getattr(config, key) == getattr(model.config, key), key
    for key in ("embed_dim", "depths", "num_heads", "window_size", "mlp_ratio", "patch_size", "out_features"):
        assert getattr(config.backbone_config, key) == getattr(model.config.backbone_config, key), key


def test_patch_merging_with_unfold_is_patch_merging_with_concatenation() -> None:
    torch.manual_seed(0)
    width, height, columns = 6, 8, 10
    norm, reduction = nn.LayerNorm(4 * width), nn.Linear(4 * width, 2 * width, bias=False)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    image = torch.randn(2, height, columns, width)
    # As mmdet does it: https://github.com/open-mmlab/mmdetection, PatchMerging of its transformer layers.
    patches = functional.unfold(image.permute(0, 3, 1, 2), kernel_size=2, stride=2).transpose(1, 2)
    expected = reduction(norm(patches))
    merging = SwinPatchMerging(width)
    merging.norm.weight.data, merging.norm.bias.data = (concatenated_order(p.data) for p in (norm.weight, norm.bias))
    merging.reduction.weight.data = concatenated_order(reduction.weight.data)
    result = merging(image.reshape(2, -1, width), (height, columns))
    assert result.detach().numpy() == pytest.approx(expected.detach().numpy(), abs=1e-5)


def test_weights_of_another_network_are_refused(model: Mask2FormerForUniversalSegmentation, tmp_path: Path) -> None:
    state = mmdet_3(model) | {"backbone.layer1.0.conv1.weight": torch.zeros(1), "neck.conv.bias": torch.zeros(1)}
    with pytest.raises(ValueError, match=r"2 of \d+ tensors .* backbone\.layer1\.0\.conv1\.weight, neck\.conv\.bias"):
        convert_mask2former(saved(state, tmp_path), tmp_path / "converted")
    assert not (tmp_path / "converted").exists()


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("panoptic_head.cls_embed.bias", "class_predictor.bias"),
        ("panoptic_head.query_embed.weight", "queries_embedder.weight"),
        ("backbone.stages.1.downsample.norm.weight", "layers.1.downsample.norm.weight"),
    ],
)
def test_each_weight_is_needed(
    name: str, complaint: str, model: Mask2FormerForUniversalSegmentation, tmp_path: Path
) -> None:
    state = mmdet_3(model)
    del state[name]
    with pytest.raises(ValueError, match=f"not complete.*{re.escape(complaint)}"):
        convert_mask2former(saved(state, tmp_path), tmp_path / "converted")


def test_shapes_that_do_not_fit_are_refused(model: Mask2FormerForUniversalSegmentation, tmp_path: Path) -> None:
    state = mmdet_3(model) | {"panoptic_head.mask_embed.0.weight": torch.zeros(3, 3)}
    with pytest.raises(ValueError, match=r"(?s)do not fit together.*mask_embedder\.0\.0"):
        convert_mask2former(saved(state, tmp_path), tmp_path / "converted")


def test_a_panoptic_model_is_refused(model: Mask2FormerForUniversalSegmentation, tmp_path: Path) -> None:
    state = mmdet_3(model) | {
        "panoptic_head.cls_embed.weight": torch.zeros(134, 32),
        "panoptic_head.cls_embed.bias": torch.zeros(134),
    }
    with pytest.raises(ValueError, match="133 classes"):
        convert_mask2former(saved(state, tmp_path), tmp_path / "converted")


def test_a_folder_in_use_is_left_alone(model: Mask2FormerForUniversalSegmentation, tmp_path: Path) -> None:
    source = saved(mmdet_3(model), tmp_path)
    with pytest.raises(ValueError, match="not an empty folder"):
        convert_mask2former(source, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["detector.pth"]


def test_a_missing_file_says_where_the_published_one_is(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"download\.openmmlab\.com"):
        convert_mask2former(tmp_path / "no.pth", tmp_path / "converted")


class RunsCode:
    """What a hostile file would hold."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("touched"),))


@pytest.mark.parametrize("content", [{"state_dict": {"w": RunsCode()}}, {"model": {"w": torch.ones(1)}}, [1], np.pi])
def test_other_files_are_refused_without_running_them(
    content: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save(content, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"other\.pth"):
        convert_mask2former(tmp_path / "other.pth", tmp_path / "converted")
    assert not Path("touched").exists()


def test_junk_is_refused(tmp_path: Path) -> None:
    (tmp_path / "junk.pth").write_bytes(b"<html>404</html>")
    with pytest.raises(ValueError, match=r"junk\.pth cannot be read"):
        convert_mask2former(tmp_path / "junk.pth", tmp_path / "converted")
