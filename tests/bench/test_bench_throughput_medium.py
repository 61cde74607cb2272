"""SD3.5 Medium's sizes for ``awm-bench throughput``: the published counts, and random weights that are shared."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from ml_collections import ConfigDict

from awm.bench.throughput.case import Case
from awm.bench.throughput.medium import AUTOENCODER, CLIP_G, CLIP_L, T5_XXL, TRANSFORMER, write_checkpoint
from awm.bench.throughput.models import MODELS, configuration, loading, prepared
from awm.bench.throughput.operations import phase_operations
from awm.bench.throughput.random_weights import RandomWeights
from awm.models.weightless import load_weightless

ROOT = Path(__file__).parents[2]
MEDIUM = MODELS["sd35m_random"]
SMALL = {
    "transformer": TRANSFORMER
    | {
        **{"num_layers": 2, "dual_attention_layers": [0], "num_attention_heads": 2, "attention_head_dim": 16},
        **{"caption_projection_dim": 32, "joint_attention_dim": 48, "pooled_projection_dim": 40},
        **{"pos_embed_max_size": 16, "sample_size": 8},
    },
    "vae": AUTOENCODER
    | {
        **{"block_out_channels": [16, 16], "down_block_types": ["DownEncoderBlock2D"] * 2, "layers_per_block": 1},
        **{"up_block_types": ["UpDecoderBlock2D"] * 2, "norm_num_groups": 8, "sample_size": 16},
    },
    "text_encoder": CLIP_L
    | {
        **{"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2},
        **{"projection_dim": 16, "vocab_size": 640},
    },
    "text_encoder_2": CLIP_G
    | {
        **{"hidden_size": 24, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2},
        **{"projection_dim": 24, "vocab_size": 640},
    },
    "text_encoder_3": T5_XXL
    | {"d_model": 48, "d_kv": 16, "d_ff": 64, "num_layers": 1, "num_heads": 2, "vocab_size": 136},
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_checkpoint(tmp_path / "random", SMALL)
    return tmp_path / "random"


def test_the_medium_model_has_the_published_sizes_and_costs(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(ROOT)
    with prepared(MEDIUM, "full") as place:
        config = configuration(MEDIUM, [], place)
        parts = load_weightless(config.pretrained.model, revision="", max_sequence_length=None, dtype=torch.bfloat16)
        encoders = [sum(p.numel() for p in encoder.parameters()) for encoder in parts.text_encoders]
        operations = phase_operations(config, 1)
    assert sum(p.numel() for p in parts.transformer.parameters()) == pytest.approx(2243.17e6, rel=1e-5)
    assert encoders == [
        pytest.approx(123.65e6, rel=1e-3),
        pytest.approx(694.66e6, rel=1e-3),
        pytest.approx(4.762e9, rel=1e-3),
    ]
    assert (parts.clip_tokens, parts.t5_tokens) == (77, 128)
    images, rows = 24, 24 * 14
    assert (config.sample.num_prompts_per_epoch * config.sample.num_image_per_prompt, config.resolution) == (
        images,
        512,
    )
    assert operations["sampling"] / rows == pytest.approx(2.25e12, rel=0.01)
    assert operations["decode"] / images == pytest.approx(2.5e12, rel=0.01)
    assert operations["encode"] / 2 == pytest.approx(1.31e12, rel=0.02)
    assert operations["train"] / images == pytest.approx(56.8e12, rel=0.02)  # six times: forward, backward, two others


def test_small_text_encoders_are_a_shorter_t5(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(ROOT)
    counts = []
    for size in ("full", "small"):
        with prepared(MEDIUM, size) as place:
            model = configuration(MEDIUM, [], place).pretrained.model
            parts = load_weightless(model, revision="", max_sequence_length=None, dtype=torch.bfloat16)
        counts.append([sum(p.numel() for p in encoder.parameters()) for encoder in parts.text_encoders])
        assert parts.text_encoders[2].config.d_model == 4096
    assert counts[0][:2] == counts[1][:2] and counts[1][2] < 0.12 * counts[0][2]


def test_random_weights_are_drawn_once_and_shared(folder: Path):
    weights = RandomWeights(folder, share=True)
    cpu = torch.device("cpu")
    first, second = (weights.pipeline(torch.bfloat16, torch.bfloat16, cpu) for _ in range(2))
    wide = weights.pipeline(torch.bfloat16, torch.float32, cpu)
    assert first.vae is second.vae and first.text_encoder_3 is wide.text_encoder_3
    assert first.transformer is not second.transformer
    for a, b, c in zip(*(pipe.transformer.parameters() for pipe in (first, second, wide)), strict=True):
        assert a.data_ptr() == b.data_ptr() != c.data_ptr() and not a.requires_grad
        assert a.dtype == torch.bfloat16 and torch.equal(a.float(), c)
    assert not any(value.is_meta for value in (*wide.transformer.parameters(), *wide.transformer.buffers()))
    assert weights.shared_bytes() > sum(p.numel() * 6 for p in first.transformer.parameters())
    # A model is charged for what it uses, not for the other dtype's weights.
    ours, theirs = (weights.shared_bytes(SimpleNamespace(_pipeline=pipe)) for pipe in (first, wide))
    numbers = sum(value.numel() for value in first.transformer.state_dict().values())
    assert (theirs - ours, weights.shared_bytes() - ours) == (2 * numbers, 4 * numbers)
    own = RandomWeights(folder, share=False)
    pair = [own.pipeline(torch.float32, torch.float32, cpu) for _ in range(2)]
    pointers = [next(pipe.transformer.parameters()).data_ptr() for pipe in pair]
    assert pointers[0] != pointers[1]


def test_a_model_with_random_weights_trains(folder: Path, make_config: Callable[..., ConfigDict]):
    config = make_config(
        pretrained__model=str(folder), mixed_precision="bf16", resolution=16, eval_freq=0, num_epochs=99, save_freq=99
    )
    weights = loading(MEDIUM, config)
    cases = [Case(config, loading=weights) for _ in range(2)]
    found = []
    for case in cases:
        case.build()
        found.append([case.epoch().metrics for _ in range(2)])
    for metrics in found[0]:
        assert 0 < metrics["reward/mean"] < 1 and metrics["grad_norm"] > 0
    # What one trainer learnt has not changed the weights that the other one shares with it.
    assert [m["reward/mean"] for m in found[0]] == [m["reward/mean"] for m in found[1]]
    frozen = [
        p for case in cases for n, p in case.trainer.policy.model.transformer.named_parameters() if "base_layer" in n
    ]
    half = len(frozen) // 2
    assert half and all(a.data_ptr() == b.data_ptr() for a, b in zip(frozen[:half], frozen[half:], strict=True))
