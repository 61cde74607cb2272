from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from awm import evaluate
from awm.configuration import config_to_dict
from tests.training.test_trainer import run

Make = Callable[..., ConfigDict]


def test_a_checkpoint_scores_what_the_run_said_it_did(make_config: Make, tmp_path: Path):
    config = make_config(num_epochs=2)
    trainer = run(config)
    folder = trainer.outputs.run
    evaluate.evaluate(config, folder / "checkpoints/epoch_000002/lora_average", tmp_path / "out")
    theirs = (folder / "eval/epoch_000002/scores.jsonl").read_text().splitlines()
    ours = (tmp_path / "out/scores.jsonl").read_text().splitlines()
    assert [json.loads(line)["scores"] for line in ours] == [json.loads(line)["scores"] for line in theirs]
    assert json.loads((tmp_path / "out/summary.json").read_text())["eval/jpeg_compressibility"] < 0


def test_the_base_model_needs_no_lora(make_config: Make, tmp_path: Path):
    evaluate.evaluate(make_config(evaluation__max_prompts=2), None, tmp_path / "out")
    assert len((tmp_path / "out/scores.jsonl").read_text().splitlines()) == 2


def test_out_is_asked_for_and_never_overwritten(
    make_config: Make,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    (tmp_path / "config.json").write_text(json.dumps(config_to_dict(make_config())))
    command = ["awm-eval", "--config", str(tmp_path / "config.json")]
    monkeypatch.setattr("sys.argv", command)
    with pytest.raises(SystemExit, match="--out DIR is missing"):
        evaluate.main()
    (tmp_path / "scores.jsonl").write_text("")
    monkeypatch.setattr("sys.argv", [*command, "--out", str(tmp_path)])
    with pytest.raises(SystemExit, match="already holds an evaluation"):
        evaluate.main()
