"""Weights on top of a checkpoint: found by content, refused before anything is loaded, drawn as diffusers does."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import SD3Transformer2DModel, StableDiffusion3Pipeline
from peft import LoraConfig
from safetensors.torch import load_file, save_file

from awm.models.policy import Policy
from awm.models.sd3 import SD3
from awm.models.weights import Weights, check_fit, find_transformer, find_weights

PROMPT = "a photo of a red circle"


def foreign_lora(checkpoint: Path, folder: Path, rank: int, alpha: int, targets: list[str]) -> Path:
    """What another training script would leave: other layers, another rank, no metadata of ours."""
    transformer = SD3Transformer2DModel.from_pretrained(checkpoint, subfolder="transformer")
    transformer.add_adapter(LoraConfig(r=rank, lora_alpha=alpha, target_modules=targets, init_lora_weights=False))
    generator = torch.Generator().manual_seed(0)
    layers = {}
    for name, parameter in transformer.named_parameters():
        if ".lora_" in name:
            layers[name.replace(".default", "")] = 0.3 * torch.randn(parameter.shape, generator=generator)
    StableDiffusion3Pipeline.save_lora_weights(folder, transformer_lora_layers=layers)
    return folder


@torch.no_grad()
def velocity(model: SD3) -> torch.Tensor:
    x = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    return model.velocity(x, torch.tensor([0.6]), model.encode([PROMPT]), 3.0)


def found(path: Path) -> Weights:
    weights = find_weights(path)
    assert weights is not None
    return weights


def test_any_lora_draws_as_in_plain_diffusers(checkpoint: Path, model: SD3, tmp_path: Path) -> None:
    folder = foreign_lora(checkpoint, tmp_path / "lora", 3, 3, ["attn.to_q", "ff.net.2"])
    base = velocity(model)
    weights = found(folder)
    check_fit(weights, str(checkpoint), None)
    model.apply(weights)
    pipeline = StableDiffusion3Pipeline.from_pretrained(checkpoint)
    pipeline.load_lora_weights(folder)
    ours = velocity(model)
    assert torch.equal(ours, velocity(SD3(pipeline, dtype=torch.float32, device="cpu")))
    assert (ours - base).abs().max() > 1e-3
    # The file itself is as good as its folder.
    again = SD3.load(str(checkpoint), dtype=torch.float32)
    again.apply(found(folder / "pytorch_lora_weights.safetensors"))
    assert torch.equal(velocity(again), ours)


def test_a_lora_of_the_text_encoders_also_changes_the_empty_prompt(
    checkpoint: Path, model: SD3, tmp_path: Path
) -> None:
    encoder = StableDiffusion3Pipeline.from_pretrained(checkpoint).text_encoder
    encoder.add_adapter(LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False))
    layers = {n.replace(".default", ""): p.detach() for n, p in encoder.named_parameters() if ".lora_" in n}
    StableDiffusion3Pipeline.save_lora_weights(tmp_path, text_encoder_lora_layers=layers)
    negative = model._negative
    model.apply(found(tmp_path))
    assert not torch.equal(model._negative.pooled, negative.pooled)


@pytest.mark.parametrize("max_shard_size", ["10GB", "100KB"])
def test_a_fully_fine_tuned_transformer_replaces_the_weights(
    checkpoint: Path, model: SD3, tmp_path: Path, max_shard_size: str
) -> None:
    policy = Policy(SD3.load(str(checkpoint), dtype=torch.float32), use_lora=False)
    with torch.no_grad():
        for parameter in policy.trainable_parameters():
            parameter *= 1.05
    policy.model.transformer.save_pretrained(tmp_path / "transformer", max_shard_size=max_shard_size)
    assert (len(list((tmp_path / "transformer").glob("*.safetensors"))) > 1) == (max_shard_size == "100KB")
    weights = found(tmp_path)
    assert weights == found(tmp_path / "transformer") and weights.kind == "transformer" and weights.is_float32
    check_fit(weights, str(checkpoint), None)
    model.apply(weights)
    assert torch.equal(velocity(model), velocity(policy.model))


@pytest.fixture(scope="module")
def lora(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return foreign_lora(checkpoint, tmp_path_factory.mktemp("weights") / "lora", 2, 2, ["attn.to_q"])


def changed(source: Path, folder: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> Path:
    folder.mkdir()
    tensors = load_file(source / "pytorch_lora_weights.safetensors")
    save_file(change(tensors), folder / "pytorch_lora_weights.safetensors")
    return folder


def test_what_is_no_sd3_weight_is_named(lora: Path, checkpoint: Path, tmp_path: Path) -> None:
    assert find_weights(tmp_path) is None
    unet = changed(lora, tmp_path / "unet", lambda t: {k.replace("transformer.", "unet.", 1): v for k, v in t.items()})
    with pytest.raises(ValueError, match=r"is no LoRA of an SD3 pipeline .* it holds unet\."):
        find_weights(unet)
    empty = changed(lora, tmp_path / "empty", lambda tensors: {})
    with pytest.raises(ValueError, match="is empty"):
        find_weights(empty)
    cut = tmp_path / "cut"
    shutil.copytree(lora, cut)
    file = cut / "pytorch_lora_weights.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ValueError, match="is damaged or no safetensors file"):
        find_weights(cut)
    (tmp_path / "pickle").mkdir()
    (tmp_path / "pickle/adapter.bin").write_bytes(b"")
    with pytest.raises(ValueError, match="is a pickle"):
        find_weights(tmp_path / "pickle")
    two = tmp_path / "two"
    two.mkdir()
    for name in ("a.safetensors", "b.safetensors"):
        shutil.copy(lora / "pytorch_lora_weights.safetensors", two / name)
    with pytest.raises(ValueError, match=r"several weight files \(a\.safetensors, b\.safetensors\)"):
        find_weights(two)
    assert found(two / "a.safetensors").kind == "lora"
    with pytest.raises(ValueError, match=r"is no \.safetensors file"):
        find_weights(checkpoint / "model_index.json")
    with pytest.raises(ValueError, match="holds AutoencoderKL, but SD3Transformer2DModel is needed"):
        find_weights(checkpoint / "vae")


def test_weights_of_another_model_are_refused_by_names_and_shapes(lora: Path, checkpoint: Path, tmp_path: Path) -> None:
    def check(path: Path) -> None:
        check_fit(found(path), str(checkpoint), None)

    deeper = changed(lora, tmp_path / "deep", lambda t: {k.replace("blocks.0", "blocks.30"): v for k, v in t.items()})
    with pytest.raises(ValueError, match=r"does not fit .*: it adapts transformer_blocks\.30\.attn\.to_q, which"):
        check(deeper)
    wider = changed(lora, tmp_path / "wide", lambda t: {k: torch.cat([v, v], 1) for k, v in t.items()})
    with pytest.raises(ValueError, match=r"lora_A.* is \[2, \d+\], but the layer maps \d+ to \d+ features there"):
        check(wider)
    shutil.copytree(checkpoint / "transformer", tmp_path / "transformer")
    file = tmp_path / "transformer/diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    first = min(name for name in tensors if name.endswith("weight"))
    save_file(tensors | {first: torch.cat([tensors[first]] * 2)}, file)
    with pytest.raises(ValueError, match=f"{first} is .*, there "):
        check(tmp_path)
    tensors.pop(first)
    save_file(tensors, file)
    with pytest.raises(ValueError, match=f"{first} is only in that model"):
        check(tmp_path)
    file.unlink()
    with pytest.raises(ValueError, match=r"lacks diffusion_pytorch_model\.safetensors; copy"):
        check(tmp_path)
    (tmp_path / "transformer/config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config\.json is damaged"):
        check(tmp_path)


def test_pretrained_transformer_takes_a_transformer_only(lora: Path, checkpoint: Path, tmp_path: Path) -> None:
    model = str(checkpoint)
    assert find_transformer("", model, None) is None
    weights = find_transformer(str(checkpoint), model, None)
    assert weights is not None and weights.folder == checkpoint / "transformer"
    with pytest.raises(ValueError, match=r"holds a LoRA, which train\.lora_path starts from"):
        find_transformer(str(lora), model, None)
    with pytest.raises(ValueError, match="holds no weights"):
        find_transformer(str(tmp_path), model, None)


def test_the_class_in_a_config_that_is_no_object_s_is_no_class(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"run_name": "a run's own config"}))
    assert find_weights(tmp_path) is None
