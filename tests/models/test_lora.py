"""What a trained adapter promises: plain diffusers draws the same image from it, bit for bit."""

from itertools import pairwise
from pathlib import Path

import pytest
import torch
from diffusers import SD3Transformer2DModel, StableDiffusion3Pipeline

from awm.models import lora
from awm.models.policy import Policy
from awm.models.sd3 import SD3

PROMPT = "a photo of a red circle and a star"
STEPS = 4


def noise() -> torch.Tensor:
    return torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))


def disturb(policy: Policy, seed: int = 0) -> None:
    """Stands for training: every parameter moves, B leaves zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in policy.trainable_parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)


def draw(pipeline: StableDiffusion3Pipeline, guidance_scale: float, output_type: str = "latent") -> torch.Tensor:
    pipeline.set_progress_bar_config(disable=True)
    return pipeline(
        PROMPT,
        height=32,
        width=32,
        num_inference_steps=STEPS,
        guidance_scale=guidance_scale,
        max_sequence_length=16,
        latents=noise(),
        output_type=output_type,
    ).images


@torch.no_grad()
def integrate(model: SD3, sigmas: list[float], guidance_scale: float) -> torch.Tensor:
    condition, x = model.encode([PROMPT]), noise()
    for t, s in pairwise(sigmas):
        x = x + (s - t) * model.velocity(x, t[None], condition, guidance_scale)
    return x


@pytest.mark.parametrize("guidance_scale", [1.0, 4.5])
@pytest.mark.parametrize("lora_type", ["attn", "all"])
def test_plain_diffusers_reproduces_the_image(
    checkpoint: Path, tmp_path: Path, lora_type: lora.LoraType, guidance_scale: float
) -> None:
    policy = Policy(SD3.load(str(checkpoint), dtype=torch.float32), lora_type=lora_type, lora_rank=4, lora_alpha=12)
    disturb(policy)
    policy.export(tmp_path, policy.state_dict()["current"])
    plain = StableDiffusion3Pipeline.from_pretrained(checkpoint)
    base = draw(plain, guidance_scale)
    plain.load_lora_weights(tmp_path)
    latents = draw(plain, guidance_scale)
    ours = integrate(policy.model, plain.scheduler.sigmas, guidance_scale)
    assert torch.equal(ours, latents)
    assert (latents - base).abs().max() > 0.01
    # The autoencoder runs in channels_last here, which sums convolutions in another order.
    images = draw(plain, guidance_scale, "pt")
    torch.testing.assert_close(policy.model.decode(ours), images, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_a_new_policy_is_the_pretrained_model(checkpoint: Path, model: SD3) -> None:
    condition, t = model.encode([PROMPT]), torch.tensor([0.5])
    before = model.velocity(noise(), t, condition)
    Policy(model, lora_rank=4)
    assert torch.equal(model.velocity(noise(), t, condition), before)


def test_first_weights_depend_on_the_seed_alone(checkpoint: Path) -> None:
    def start(seed: int, dtype: torch.dtype) -> list[torch.Tensor]:
        torch.manual_seed(torch.seed())
        return Policy(SD3.load(str(checkpoint), dtype=dtype), lora_rank=4, seed=seed).trainable_parameters()

    first = start(3, torch.float32)
    assert all(torch.equal(a, b) for a, b in zip(first, start(3, torch.bfloat16), strict=True))
    assert not torch.equal(first[0], start(4, torch.float32)[0])
    assert all(p.dtype == torch.float32 for p in first)
    assert first[0].detach().std() == pytest.approx(1 / 4, rel=0.3)
    assert not any(p.any() for p in first[1::2])


def test_targets_are_every_projection_of_both_streams(checkpoint: Path) -> None:
    layers = {}
    for kind in ("attn", "ffn", "all"):
        policy = Policy(SD3.load(str(checkpoint), dtype=torch.float32), lora_type=kind, lora_rank=2)
        layers[kind] = len(policy.trainable_parameters()) // 2
    # Block 0: joint attention 8 and dual attention 4. Block 1 is the last, its text stream has no output.
    assert layers == {"attn": 12 + 7, "ffn": 4 + 2, "all": 25}


def test_binding_to_nothing_is_an_error(model: SD3, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(lora.TARGETS, "attn", ("query", "key"))
    with pytest.raises(ValueError, match="binds to no layer of this SD3Transformer2DModel"):
        Policy(model)
    with pytest.raises(ValueError, match="lora_type='qkv' is unknown; use one of attn, ffn, all"):
        Policy(model, lora_type="qkv")


@torch.no_grad()
def test_lora_path_starts_every_set_there(checkpoint: Path, model: SD3, tmp_path: Path) -> None:
    trained = Policy(model, lora_rank=4, lora_alpha=12)
    disturb(trained)
    trained.export(tmp_path, trained.state_dict()["current"])
    options = {"lora_rank": 4, "lora_alpha": 12, "lora_path": str(tmp_path)}
    restarted = Policy(SD3.load(str(checkpoint), dtype=torch.float32), **options)
    state, expected = restarted.state_dict(), trained.state_dict()["current"]
    for name in ("current", "anchor", "average"):
        assert all(torch.equal(state[name][key], expected[key]) for key in expected)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lora_rank": 8}, "rank 4 and alpha 12, this run 8 and 12; set lora_rank=4"),
        ({"lora_alpha": 4}, "set lora_rank=4 and lora_alpha=12"),
        ({"lora_type": "all"}, "Set lora_type to what it was trained with"),
        ({"use_lora": False}, "needs use_lora=True"),
        ({"lora_path": "nowhere"}, r"holds no pytorch_lora_weights\.safetensors"),
    ],
)
def test_lora_path_that_does_not_fit(
    checkpoint: Path, model: SD3, tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    policy = Policy(model, lora_rank=4, lora_alpha=12)
    policy.export(tmp_path, policy.state_dict()["current"])
    options = {"lora_rank": 4, "lora_alpha": 12, "lora_path": str(tmp_path)} | changes
    with pytest.raises(ValueError, match=message):
        Policy(SD3.load(str(checkpoint), dtype=torch.float32), **options)


@torch.no_grad()
def test_full_fine_tuning_saves_a_transformer_diffusers_loads(model: SD3, tmp_path: Path) -> None:
    policy = Policy(model, use_lora=False)
    disturb(policy)
    policy.export(tmp_path, policy.state_dict()["current"])
    transformer = SD3Transformer2DModel.from_pretrained(tmp_path / "transformer")
    condition, t = model.encode([PROMPT]), torch.tensor([0.5])
    expected = transformer(noise(), condition.embeds, condition.pooled, 1000 * t).sample
    assert torch.equal(model.velocity(noise(), t, condition), expected)
