from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from awm import sample


def draw(checkpoint: Path, out: Path, *arguments: str) -> Image.Image:
    command = ["--model", str(checkpoint), "--out", str(out), "--steps", "3", *arguments]
    sample.draw(sample.parser().parse_args(command))
    return Image.open(out)


def test_one_prompt_becomes_one_image_of_the_model_s_size(checkpoint: Path, tmp_path: Path):
    assert draw(checkpoint, tmp_path / "x.png", "--prompt", "a red circle").size == (32, 32)


def test_the_seed_decides_the_image(checkpoint: Path, tmp_path: Path):
    images = [
        draw(checkpoint, tmp_path / f"{i}.png", "--prompt", "a red circle", "--seed", str(seed)).tobytes()
        for i, seed in enumerate((1, 1, 2))
    ]
    assert images[0] == images[1] != images[2]


@pytest.mark.parametrize("sampler", ["ddim", "sa_solver", "flow_sde"])
def test_several_images_become_a_grid_with_a_row_per_prompt(checkpoint: Path, tmp_path: Path, sampler: str):
    prompts = ["--prompt", "a red circle", "--prompt", "a star", "--num-images", "3"]
    grid = draw(checkpoint, tmp_path / "g.png", *prompts, "--sampler", sampler, "--noise-level", "0.4")
    assert grid.width > grid.height > 32


@pytest.mark.parametrize(
    ("out", "arguments", "message"),
    [
        ("nowhere/x.png", [], "no folder"),
        ("x.gif", [], r"must end in \.png"),
        ("x.png", ["--lora", "/nowhere"], "holds no pytorch_lora_weights.safetensors"),
        ("x.png", ["--resolution", "33"], "33"),
        ("x.png", ["--num-images", "0"], "give 1 or more"),
        ("x.png", ["--steps", "1", "--sampler", "sa_solver"], "at least 2 sampling steps"),
    ],
)
def test_mistakes_are_named(checkpoint: Path, tmp_path: Path, out: str, arguments: list[str], message: str):
    with pytest.raises(ValueError, match=message):
        draw(checkpoint, tmp_path / out, "--prompt", "a red circle", *arguments)
