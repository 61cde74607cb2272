"""What awm-sample promises: the images an evaluation would make, where the user wants them."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from awm import sample
from awm.held_out.records import read_records
from awm.validation import SAMPLERS
from tests.models.test_weights import foreign_lora
from tests.test_evaluate import evaluated

RED = ("--prompt", "a red circle")
Make = Callable[..., ConfigDict]


def draw(checkpoint: Path | None, out: Path | str, *arguments: str) -> None:
    model = [] if checkpoint is None else ["--model", str(checkpoint)]
    sample.draw(sample.parser().parse_args([*model, "--out", str(out), "--steps", "3", *arguments]))


@pytest.fixture(scope="module")
def lora(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return foreign_lora(checkpoint, tmp_path_factory.mktemp("sample") / "lora", 2, 2, ["attn.to_q", "attn.to_v"])


def test_one_prompt_becomes_one_image_of_the_model_s_size(checkpoint: Path, tmp_path: Path):
    draw(checkpoint, tmp_path / "x.png", *RED)
    assert Image.open(tmp_path / "x.png").size == (32, 32)


def test_the_seed_decides_the_image(checkpoint: Path, tmp_path: Path):
    images = []
    for i, seed in enumerate((1, 1, 2)):
        draw(checkpoint, tmp_path / f"{i}.png", *RED, "--seed", str(seed))
        images.append((tmp_path / f"{i}.png").read_bytes())
    assert images[0] == images[1] != images[2]


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_several_images_become_a_grid_with_a_row_per_prompt(checkpoint: Path, tmp_path: Path, sampler: str):
    prompts = [*RED, "--prompt", "a star", "--num-images", "3"]
    draw(checkpoint, tmp_path / "g.png", *prompts, "--sampler", sampler, "--noise-level", "0.4")
    grid = Image.open(tmp_path / "g.png")
    assert grid.width > grid.height > 32


def test_every_sampler_can_be_chosen():
    (action,) = [action for action in sample.parser()._actions if action.dest == "sampler"]
    assert action.choices == list(SAMPLERS)


def test_a_folder_gets_a_file_per_image_whatever_the_batches(checkpoint: Path, tmp_path: Path):
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"prompt": "a star", "tag": "x"}\n\na ring\n')
    arguments = ("--prompts", str(file), *RED, "--num-images", "2")
    draw(checkpoint, f"{tmp_path}/one.by.one/", *arguments, "--batch-size", "1")
    draw(checkpoint, tmp_path / "all", *arguments, "--batch-size", "6")
    index = [json.loads(line) for line in (tmp_path / "all/index.jsonl").read_text().splitlines()]
    assert [(line["prompt"], line["copy"]) for line in index] == [
        (prompt, copy) for prompt in ("a red circle", "a star", "a ring") for copy in (0, 1)
    ]
    for line in index:
        one, together = (Image.open(tmp_path / name / line["image"]) for name in ("one.by.one", "all"))
        assert np.abs(np.asarray(one, dtype=int) - np.asarray(together, dtype=int)).max() <= 1  # matrix products round


def test_the_images_are_those_of_an_evaluation(make_config: Make, checkpoint: Path, lora: Path, tmp_path: Path):
    config = make_config(sample__eval_sampler="flow_sde", sample__sde_frac=0.5, evaluation__seed=7)
    options = ("--weights-from", str(lora), "--num-images-per-prompt", "2", "--baseline")
    assert evaluated(config, tmp_path / "eval", *options) == 0
    arguments = ["--steps", "4", "--sampler", "flow_sde", "--noise-level", "0.4", "--sde-frac", "0.5", "--seed", "7"]
    arguments += ["--weights-from", str(lora), "--compare", "--num-images", "2", "--batch-size", "2"]
    draw(checkpoint, tmp_path / "pictures", *arguments, "--prompts", str(Path(config.dataset) / "test.txt"))
    records = read_records(tmp_path / "eval")
    assert len(records) == 6
    for record in records:
        name = f"{record.index:05d}"
        for theirs, ours in ((f"{name}.png", f"{name}.png"), (f"../base/images/{name}.png", f"{name}_base.png")):
            evaluation = (tmp_path / "eval/images" / theirs).read_bytes()
            assert evaluation == (tmp_path / "pictures" / ours).read_bytes()
    assert (tmp_path / "pictures/00000.png").read_bytes() != (tmp_path / "pictures/00000_base.png").read_bytes()


def test_compared_images_stand_in_pairs(checkpoint: Path, lora: Path, tmp_path: Path):
    compare = ("--weights-from", str(lora), "--compare")
    draw(checkpoint, tmp_path / "pair.png", *RED, *compare)
    draw(checkpoint, tmp_path / "alone.png", *RED, "--prompt", "a star")
    pair, alone = Image.open(tmp_path / "pair.png"), Image.open(tmp_path / "alone.png")
    assert pair.width == alone.width and pair.height > alone.height  # a line more, which says whose it is
    draw(checkpoint, tmp_path / "rows.png", *RED, "--num-images", "2", *compare)
    assert Image.open(tmp_path / "rows.png").width > 1.9 * pair.width


def test_weights_of_a_run_bring_their_model_and_size(checkpoint: Path, lora: Path, tmp_path: Path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.json").write_text(
        json.dumps({"run_name": "run", "resolution": 24, "pretrained": {"model": str(checkpoint), "revision": ""}})
    )
    (run / "lora").symlink_to(lora)
    draw(None, tmp_path / "x.png", *RED, "--weights-from", str(run / "lora"))
    assert Image.open(tmp_path / "x.png").size == (24, 24)
    draw(None, tmp_path / "y.png", *RED, "--weights-from", str(run / "lora"), "--resolution", "32")
    assert Image.open(tmp_path / "y.png").size == (32, 32)


@pytest.mark.parametrize(
    ("out", "arguments", "message"),
    [
        ("nowhere/x.png", RED, "no folder"),
        ("x.gif", RED, r"must end in \.png"),
        ("x.png", (), "nothing to draw; give --prompt TEXT"),
        ("x.png", ("--prompts", "nothing.txt"), "--prompts nothing.txt is no file"),
        ("x.png", (*RED, "--weights-from", "/nowhere"), "there is no /nowhere"),
        ("x.png", (*RED, "--weights", "current"), "needs --weights-from RUN"),
        ("x.png", (*RED, "--compare"), "draws with and without weights; say which with --weights-from"),
        ("x.png", (*RED, "--resolution", "33"), "33"),
        ("x.png", (*RED, "--num-images", "0"), "give 1 or more"),
        ("x.png", (*RED, "--seed", "-1"), "--seed -1 is negative"),
        ("x.png", (*RED, "--guidance-scale", "nan"), "--guidance-scale nan is no number"),
        ("x.png", (*RED, "--steps", "1", "--sampler", "sa_solver"), "at least 2 sampling steps"),
    ],
)
def test_mistakes_are_named(checkpoint: Path, tmp_path: Path, out: str, arguments: tuple[str, ...], message: str):
    with pytest.raises(ValueError, match=message):
        draw(checkpoint, tmp_path / out, *arguments)


@pytest.mark.parametrize("module", ["awm.evaluate", "awm.sample"])
def test_help_needs_no_torch(module: str):
    code = f"import sys, {module} as m; m.parser().format_help(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
