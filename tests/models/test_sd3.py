"""What SD3 promises: diffusers' own numbers, guidance in the right order, and errors before weights are read."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusion3Pipeline

from awm.models.sd3 import SD3
from tests.tiny_sd3 import build_tiny_sd3

PROMPTS = ["a photo of a red circle", "a photo of a star and a ring", "a photo of three blue squares"]


@pytest.fixture(scope="module")
def plain(checkpoint: Path) -> StableDiffusion3Pipeline:
    pipeline = StableDiffusion3Pipeline.from_pretrained(checkpoint)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def noise(batch: int = 3, seed: int = 0) -> torch.Tensor:
    return torch.randn(batch, 4, 8, 8, generator=torch.Generator().manual_seed(seed))


def test_encode_equals_diffusers_bit_for_bit(model: SD3, plain: StableDiffusion3Pipeline) -> None:
    with torch.no_grad():
        embeds, negative, pooled, negative_pooled = plain.encode_prompt(PROMPTS, None, None, max_sequence_length=16)
    condition = model.encode(PROMPTS)
    assert torch.equal(condition.embeds, embeds)
    assert torch.equal(condition.pooled, pooled)
    empty = model.encode([""] * 3)
    assert torch.equal(empty.embeds, negative)
    assert torch.equal(empty.pooled, negative_pooled)
    assert not condition.embeds.requires_grad


def test_encode_splits_long_lists(model: SD3) -> None:
    condition = model.encode(PROMPTS * 11)
    assert condition.embeds.shape == (33, 32, 48)
    torch.testing.assert_close(condition.embeds[30:], model.encode(PROMPTS).embeds)


def test_without_t5_its_tokens_are_zero(tmp_path: Path) -> None:
    folder = build_tiny_sd3(tmp_path / "no_t5", with_t5=False)
    with torch.no_grad():
        plain = StableDiffusion3Pipeline.from_pretrained(folder, text_encoder_3=None, tokenizer_3=None)
        embeds, *_ = plain.encode_prompt(
            PROMPTS, None, None, do_classifier_free_guidance=False, max_sequence_length=128
        )
    condition = SD3.load(str(folder), dtype=torch.float32).encode(PROMPTS)
    assert torch.equal(condition.embeds, embeds)
    assert condition.embeds.shape[1] == 16 + 128
    assert condition.embeds[:, 16:].count_nonzero() == 0


def test_max_sequence_length_sets_the_t5_tokens(checkpoint: Path) -> None:
    model = SD3.load(str(checkpoint), dtype=torch.float32, max_sequence_length=8)
    assert model.encode(PROMPTS).embeds.shape == (3, 16 + 8, 48)


@torch.no_grad()
def test_velocity_is_the_transformer_at_1000_t(model: SD3, plain: StableDiffusion3Pipeline) -> None:
    condition, t = model.encode(PROMPTS), torch.tensor([0.1, 0.5, 1.0])
    expected = plain.transformer(noise(), condition.embeds, condition.pooled, 1000 * t).sample
    assert torch.equal(model.velocity(noise(), t, condition), expected)


@torch.no_grad()
@pytest.mark.parametrize("times", [1, 2], ids=["B", "K-packed"])
def test_guidance_pairs_every_row_with_its_own_prompt_and_time(model: SD3, times: int) -> None:
    # Public code ordered the prompts [neg, pos] x K and the latents [K * B, K * B]: rows met the wrong prompt.
    condition, negative = model.encode(PROMPTS).repeat(times), model.encode([""])
    x_t, t = noise(3 * times), torch.linspace(0.1, 0.9, 3 * times)
    rows = []
    for i in range(3 * times):
        one = torch.tensor([i])
        v_neg = model.velocity(x_t[one], t[one], negative)
        v_pos = model.velocity(x_t[one], t[one], condition.take(one))
        rows.append(v_neg + 4.5 * (v_pos - v_neg))
    torch.testing.assert_close(model.velocity(x_t, t, condition, 4.5), torch.cat(rows), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_guidance_one_is_a_single_forward(model: SD3) -> None:
    batches = []
    model.transformer.register_forward_pre_hook(
        lambda module, args, kwargs: batches.append(len(kwargs["hidden_states"])), with_kwargs=True
    )
    condition, t = model.encode(PROMPTS), torch.full((3,), 0.5)
    model.velocity(noise(), t, condition)
    model.velocity(noise(), t, condition, 2.0)
    assert batches == [3, 6]


def test_gradient_reaches_the_latents_and_not_the_frozen_parts(model: SD3) -> None:
    x_t = noise().requires_grad_()
    model.velocity(x_t, torch.full((3,), 0.5), model.encode(PROMPTS), 2.0).square().mean().backward()
    assert x_t.grad is not None and x_t.grad.abs().sum() > 0
    assert all(p.grad is None for p in model.transformer.parameters())


def test_gradient_checkpointing_gives_the_same_gradient(checkpoint: Path, model: SD3) -> None:
    recomputing = SD3.load(str(checkpoint), dtype=torch.float32, gradient_checkpointing=True)
    gradients = []
    for each in (model, recomputing):
        x_t = noise().requires_grad_()
        each.velocity(x_t, torch.full((3,), 0.5), each.encode(PROMPTS)).square().mean().backward()
        gradients.append(x_t.grad)
    assert recomputing.transformer.gradient_checkpointing
    torch.testing.assert_close(*gradients)


@torch.no_grad()
def test_decode_undoes_scale_and_shift(model: SD3, plain: StableDiffusion3Pipeline) -> None:
    raw = noise()
    expected = (plain.vae.decode(raw).sample * 0.5 + 0.5).clamp(0, 1)
    images = model.decode((raw - plain.vae.config.shift_factor) * plain.vae.config.scaling_factor)
    assert images.shape == (3, 3, 32, 32) and images.dtype == torch.float32
    torch.testing.assert_close(images, expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize(("limit", "value", "sizes"), [("DECODE_CHUNK", 1024, [1, 1, 1]), ("DECODE_IMAGES", 2, [2, 1])])
def test_decode_in_chunks_is_decode(
    model: SD3, monkeypatch: pytest.MonkeyPatch, limit: str, value: int, sizes: list[int]
) -> None:
    whole, seen = model.decode(noise()), []
    decode = model._pipeline.vae.decode
    monkeypatch.setattr(model._pipeline.vae, "decode", lambda z, **named: seen.append(len(z)) or decode(z, **named))
    monkeypatch.setattr(f"awm.models.sd3.{limit}", value)
    torch.testing.assert_close(model.decode(noise()), whole)
    assert seen == sizes


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_close_and_returns_float32(checkpoint: Path, model: SD3, dtype: torch.dtype) -> None:
    half, t = SD3.load(str(checkpoint), dtype=dtype), torch.full((3,), 0.5)
    assert next(half.transformer.parameters()).dtype == dtype
    v = half.velocity(noise(), t, half.encode(PROMPTS), 2.0)
    images = half.decode(noise())
    assert v.dtype == images.dtype == torch.float32
    torch.testing.assert_close(v, model.velocity(noise(), t, model.encode(PROMPTS), 2.0), rtol=0.1, atol=0.1)
    torch.testing.assert_close(images, model.decode(noise()), rtol=0.1, atol=0.1)


def test_latent_shape(model: SD3) -> None:
    assert model.latent_shape(32) == (4, 8, 8)
    with pytest.raises(ValueError, match=r"resolution=30 .* multiples of 8 .* use 32"):
        model.latent_shape(30)
    with pytest.raises(ValueError, match="up to 128 pixels; use 128"):
        model.latent_shape(512)


@torch.no_grad()
def test_released_text_encoders_leave_guidance_working(model: SD3) -> None:
    condition = model.encode(PROMPTS)
    model.offload_text_encoders("cpu")
    assert torch.equal(model.encode(PROMPTS).embeds, condition.embeds)
    model.release_text_encoders()
    assert model.velocity(noise(), torch.full((3,), 0.5), condition, 2.0).isfinite().all()
    with pytest.raises(RuntimeError, match="were released"):
        model.encode(PROMPTS)


def test_a_folder_that_is_not_sd3_is_named_before_weights_load(checkpoint: Path, tmp_path: Path) -> None:
    def altered(name: str, **changes: object) -> str:
        folder = tmp_path / name
        folder.mkdir()
        index = json.loads((checkpoint / "model_index.json").read_text()) | changes
        (folder / "model_index.json").write_text(json.dumps(index))
        return str(folder)

    with pytest.raises(ValueError, match="holds FluxPipeline, but StableDiffusion3Pipeline is needed"):
        SD3.load(altered("flux", _class_name="FluxPipeline"))
    with pytest.raises(ValueError, match="has no text_encoder_2"):
        SD3.load(altered("half", text_encoder_2=[None, None]))
    with pytest.raises(ValueError, match=r"transformer of .* is a FluxTransformer2DModel"):
        SD3.load(altered("mixed", transformer=["diffusers", "FluxTransformer2DModel"]))
    with pytest.raises(ValueError, match=r"lacks transformer, vae.*text_encoder_3"):
        SD3.load(altered("empty"))
    with pytest.raises(ValueError, match=r"no model_index\.json"):
        SD3.load(str(checkpoint / "vae"))
    with pytest.raises(ValueError, match="is a file"):
        SD3.load(str(checkpoint / "model_index.json"))
    with pytest.raises(ValueError, match="There is no folder"):
        SD3.load(str(tmp_path / "no" / "such" / "folder"))


def test_an_unreachable_hub_model_is_one_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match="could not be had from the Hugging Face Hub"):
        SD3.load("stabilityai/no-such-model-for-a-test")


def test_tiny_is_the_packaged_checkpoint(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("awm.models.checkpoint_folder.files", lambda package: tmp_path)
    with pytest.raises(ValueError, match="tiny checkpoint is not in"):
        SD3.load("tiny")
    shutil.copytree(checkpoint, tmp_path / "assets" / "tiny_sd3")
    assert SD3.load("tiny", dtype=torch.float32).latent_shape(32) == (4, 8, 8)
