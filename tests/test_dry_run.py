"""What --dry_run promises: the run's numbers and errors, from nothing but its configuration and the model's JSON."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from ml_collections import ConfigDict

from awm.command_line import parse
from awm.dry_run import dry_run
from awm.planning.plan import make_plan

ROOT = Path(__file__).parents[1]
Make = Callable[..., ConfigDict]

TRANSFORMER = {
    "sample_size": 128, "patch_size": 2, "in_channels": 16, "out_channels": 16, "num_layers": 24,
    "attention_head_dim": 64, "num_attention_heads": 24, "joint_attention_dim": 4096, "caption_projection_dim": 1536,
    "pooled_projection_dim": 2048, "pos_embed_max_size": 384, "dual_attention_layers": list(range(13)),
    "qk_norm": "rms_norm",
}  # fmt: skip
AUTOENCODER = {
    "down_block_types": ["DownEncoderBlock2D"] * 4, "up_block_types": ["UpDecoderBlock2D"] * 4,
    "block_out_channels": [128, 256, 512, 512], "layers_per_block": 2, "latent_channels": 16,
    "use_quant_conv": False, "use_post_quant_conv": False,
}  # fmt: skip
CLIP_L = {
    "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
    "projection_dim": 768, "max_position_embeddings": 77,
}  # fmt: skip
CLIP_G = CLIP_L | {
    "hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 20,
    "projection_dim": 1280,
}  # fmt: skip
T5_XXL = {
    "d_model": 4096, "d_ff": 10240, "num_layers": 24, "num_heads": 64, "d_kv": 64, "vocab_size": 32128,
    "feed_forward_proj": "gated-gelu",
}  # fmt: skip


@pytest.fixture(scope="module")
def medium(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stable Diffusion 3.5 Medium as its JSON files describe it, without a single weight."""
    folder = tmp_path_factory.mktemp("sd35_medium")
    parts = {
        "transformer": TRANSFORMER, "vae": AUTOENCODER, "text_encoder": CLIP_L, "text_encoder_2": CLIP_G,
        "text_encoder_3": T5_XXL, "tokenizer": {}, "tokenizer_2": {}, "tokenizer_3": {}, "scheduler": {},
    }  # fmt: skip
    for part, config in parts.items():
        (folder / part).mkdir()
        (folder / part / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer_3" / "tokenizer_config.json").write_text('{"model_max_length": 512}')
    classes = {"transformer": "SD3Transformer2DModel", "vae": "AutoencoderKL", "text_encoder_3": "T5EncoderModel"}
    classes |= dict.fromkeys(("text_encoder", "text_encoder_2"), "CLIPTextModelWithProjection")
    index = {part: ["library", classes.get(part, "Other")] for part in parts}
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "StableDiffusion3Pipeline", **index}))
    return folder


@pytest.fixture
def recipe(monkeypatch: pytest.MonkeyPatch) -> Callable[..., ConfigDict]:
    monkeypatch.chdir(ROOT)  # recipes name their prompts by a path in the repository

    def load(name: str, *overrides: str) -> ConfigDict:
        return parse(["--config", f"config/awm.py:{name}", *overrides], program="awm-train", purpose="")

    return load


def test_the_medium_model_costs_what_is_known_of_it(
    medium: Path, recipe: Callable[..., ConfigDict], capsys: pytest.CaptureFixture[str]
):
    dry_run(recipe("geneval_sd3_no_cfg_1node", f"--config.pretrained.model={medium}"), 8)
    lines = capsys.readouterr().out.splitlines()

    def cells(start: str) -> list[float]:
        text = next(line for line in lines if line.strip().startswith(start)).strip().removeprefix(start)
        return [float(cell.strip("%").replace(",", "")) for cell in text.split()]

    # TFLOP at 512 pixels: a forward 2.25 (2.22 and the adapters), T5 with 128 tokens 1.2, decoding 2.5.
    assert cells("text encoders, per prompt")[:2] == [pytest.approx(1.2 + 0.11, rel=0.02), 72]
    assert cells("sampling, per row")[:2] == [pytest.approx(2.25, rel=0.01), 1728 * 14]
    assert cells("decoding, per image")[:2] == [pytest.approx(2.5, rel=0.01), 1728]
    without, rows = cells("training without gradient, per row")[:2]
    training, trained = cells("training with gradient, per row")[:2]
    assert (rows, trained) == (2 * 6 * 1728, 6 * 1728)  # reference and anchor; one update, so no old policy
    assert training - without == pytest.approx(2.6, abs=0.15)  # the backward pass skips the frozen weights' gradients
    total = cells("an epoch, per rank")[0] * 8
    assert total == pytest.approx(1728 * (14 * 2.257 + 2.515 + 12 * 2.257 + 6 * 4.818) + 72 * 1.3, rel=0.001)
    # Two bytes a weight, the table of position embeddings included.
    assert cells("transformer, frozen") == [pytest.approx((2243.17e6 + 384**2 * 1536) * 2 / 2**30, abs=0.006)]
    assert cells("text encoders ") == [pytest.approx(10.4, abs=0.02)]
    adapters = next(line for line in lines if "LoRA on 243 modules, 23.89 M numbers" in line)
    assert float(adapters.split()[-1]) == pytest.approx(23.888e6 * 6 * 4 / 2**30, abs=0.006)


@pytest.mark.parametrize(
    ("fp8", "label", "gib"),
    [
        # 243 adapted projections of 1536 x 1536 in bfloat16.
        (False, "merged copy for sampling", 243 * 1536**2 * 2 / 2**30),
        # These and 47 feed-forwards in one byte, and four for each output.
        (
            True,
            "merged copy for sampling, in 8 bits",
            (243 * 1536 * (1536 + 4) + 47 * (2 * 1536 * 6144 + 4 * (1536 + 6144))) / 2**30,
        ),
    ],
)
def test_a_copy_for_sampling_counts_as_what_it_does_not_share(
    medium: Path,
    recipe: Callable[..., ConfigDict],
    capsys: pytest.CaptureFixture[str],
    fp8: bool,
    label: str,
    gib: float,
):
    words = [f"--config.pretrained.model={medium}", "--config.sample.merge_lora=True", f"--config.sample.fp8={fp8}"]
    dry_run(recipe("geneval_sd3_no_cfg_1node", *words), 8)
    line = next(line for line in capsys.readouterr().out.splitlines() if line.strip().startswith("merged copy"))
    assert line.strip().startswith(f"{label}  ")
    assert float(line.split()[-1]) == pytest.approx(gib, abs=0.006)


def test_the_plan_is_the_run_s_geometry_and_leaves_nothing_behind(
    make_config: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    config = make_config(
        train__updates_per_inner_epoch=3, train__num_inner_epochs=2, reward_server__urls=("http://no",)
    )
    dry_run(config, 2)
    out = capsys.readouterr().out
    assert "3 of 4 prompts x 4 images = 12 images, 6 per rank" in out
    assert "1 of 3 cross ranks: 1 on ranks 0-1" in out
    assert "3 batches of 2 per rank" in out
    assert "2 passes of 3 optimizer steps of 1 micro-batch of 2 images x 2 times" in out
    assert "3 images before the run, every 2 epochs and at the end" in out
    assert "MiB per rank" in out and "LoRA on 19 modules" in out
    assert not Path(config.logdir).exists()


@pytest.mark.parametrize(
    ("changes", "plain", "trained"),
    [
        ({}, 2 * 2, 2),  # reference and anchor, at two times each
        ({"train__beta": 0.0}, 2, 2),
        ({"train__beta": 0.0, "train__ema_beta": 0.0}, 0, 2),
        ({"train__num_inner_epochs": 3}, 3 * 4 + 2 * 2, 3 * 2),  # the old policy in the two later passes
        ({"train__num_inner_epochs": 3, "train__old_policy": "current"}, 3 * 4, 3 * 2),
        ({"train__updates_per_inner_epoch": 4}, 4 + 2 * 3 / 4, 2),  # ... and in three of four updates
        ({"sample__guidance_scale": 3.0, "train__cfg": True}, 2 * 4, 2 * 2),
    ],
    ids=lambda value: str(value).replace("train__", ""),
)
def test_rows_are_those_the_objective_makes(
    make_config: Make, changes: dict[str, object], plain: float, trained: float
):
    plan = make_plan(make_config(**changes), 1)
    assert (plan.training.plain, plan.training.trained) == (pytest.approx(plain), pytest.approx(trained))
    assert plan.sampling.plain == 6 * (2 if "train__cfg" in changes else 1)


def test_the_estimate_of_activations_is_what_autocast_keeps():
    from diffusers import SD3Transformer2DModel

    from awm.models.flops import _SavedBytes
    from awm.models.lora import add_lora

    small = TRANSFORMER | {
        "num_layers": 2, "dual_attention_layers": [0], "num_attention_heads": 4, "caption_projection_dim": 256,
        "joint_attention_dim": 64, "pooled_projection_dim": 32, "pos_embed_max_size": 16,
    }  # fmt: skip
    kept = {}
    for device in ("meta", "cpu"):
        with torch.device(device):
            transformer = SD3Transformer2DModel.from_config(small).to(torch.bfloat16).requires_grad_(False)
            inputs = {
                "hidden_states": torch.zeros(2, 16, 32, 32, dtype=torch.bfloat16),
                "timestep": torch.zeros(2),
                "encoder_hidden_states": torch.zeros(2, 40, 64, dtype=torch.bfloat16),
                "pooled_projections": torch.zeros(2, 32, dtype=torch.bfloat16),
            }
        add_lora(transformer, lora_type="attn", rank=4, alpha=8, seed=0)
        if device == "meta":
            transformer.to(torch.bfloat16)
        with torch.autocast("cpu", torch.bfloat16, enabled=device == "cpu"), _SavedBytes(transformer) as counter:
            transformer(**inputs)
        kept[device] = counter.total
    assert kept["meta"] == pytest.approx(kept["cpu"], rel=0.03)


def test_gradient_checkpointing_trades_activations_for_another_forward(checkpoint: Path):
    from awm.models.flops import count_costs
    from awm.models.weightless import load_weightless

    parts = load_weightless(str(checkpoint), revision="", max_sequence_length=None, dtype=torch.float32)
    parts.transformer.requires_grad_(True)
    plain, again = (
        count_costs(parts, resolution=32, gradient_checkpointing=checkpointing) for checkpointing in (False, True)
    )
    assert plain.training == pytest.approx(3 * plain.forward, rel=0.1)  # both factors of every product get a gradient
    assert again.training == plain.training + plain.forward
    assert again.saved_bytes < plain.saved_bytes


def test_a_model_that_is_not_here_leaves_the_geometry(
    make_config: Make, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    from awm.models import weightless

    def nowhere(model: str, **_: object) -> tuple[str, bool]:
        raise ValueError(f"The model {model} could not be had")

    monkeypatch.setattr(weightless, "resolve_sd3", nowhere)
    dry_run(make_config(pretrained__model="nobody/nothing"), None)
    out = capsys.readouterr().out
    assert "= 12 images, 12 per rank" in out and "The model nobody/nothing could not be had" in out
    with pytest.raises(ValueError, match="/nowhere"):
        dry_run(make_config(pretrained__model="/nowhere/at/all"), None)


@pytest.mark.parametrize(
    ("changes", "world_size", "message"),
    [
        ({}, 5, "12 images per epoch do not split over 5 ranks"),
        ({"resolution": 33}, 1, "resolution=33 does not fit this checkpoint"),
        ({"train__loss_type": "x"}, 1, "train.loss_type='x' is not valid"),
        ({"sample__num_prompts_per_epoch": 9}, 1, "has only 4 for training"),
        ({"train__train_timesteps": 50}, 1, "train_timesteps=50 does not fit"),
    ],
)
def test_mistakes_are_those_of_the_run(make_config: Make, changes: dict[str, object], world_size: int, message: str):
    with pytest.raises(ValueError, match=message):
        dry_run(make_config(**changes), world_size)


def test_under_torchrun_the_first_rank_speaks_for_all(
    make_config: Make, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("RANK", "3")
    dry_run(make_config(), None)
    assert capsys.readouterr().out == ""
    monkeypatch.setenv("RANK", "0")
    dry_run(make_config(), None)
    assert "= 12 images, 3 per rank" in capsys.readouterr().out


def test_the_command_prints_the_plan_and_exits_0(tmp_path: Path):
    command = [sys.executable, "-m", "awm.train", "--config", f"{ROOT}/config/awm.py:quickstart", "--dry-run"]
    command += [f"--config.dataset={ROOT}/dataset/shapes", "--world_size=4"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    assert "= 256 images, 64 per rank" in done.stdout and "an epoch, per rank" in done.stdout
    assert list(tmp_path.iterdir()) == []
