"""Every way of naming weights, and what is said about the wrong ones."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from awm.weight_paths import locate, run_config

LAYER = "transformer.transformer_blocks.0.attn.to_q"


def lora(folder: Path, value: float) -> Path:
    folder.mkdir(parents=True)
    tensors = {f"{LAYER}.lora_{half}.weight": torch.full((2, 2), value) for half in "AB"}
    save_file(tensors, folder / "pytorch_lora_weights.safetensors")
    return folder


def make_checkpoint(run: Path, epoch: int) -> Path:
    path = run / "checkpoints" / f"epoch_{epoch:06d}"
    lora(path / "lora", epoch)
    lora(path / "lora_average", epoch + 0.5)
    (path / "state.pt").write_bytes(b"")
    (path / "config.json").write_text(json.dumps({"run_name": run.name}))
    files = [file for file in path.rglob("*") if file.is_file()]
    manifest = {str(file.relative_to(path)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
    (path / "manifest.json").write_text(json.dumps(manifest))
    return path


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "my_run"
    for epoch in (1, 2):
        make_checkpoint(folder, epoch)
    (folder / "config.json").write_text(json.dumps({"run_name": "my_run"}))
    return folder


def test_a_run_means_its_newest_checkpoint_and_that_the_average(run: Path):
    newest = run / "checkpoints/epoch_000002"
    for path in (run, run / "checkpoints", newest):
        located = locate(path)
        assert located.weights.folder == newest / "lora_average"
        assert located.label == "my_run epoch_000002 average"
    assert locate(run, "current").weights.folder == newest / "lora"
    assert locate(run / "checkpoints/epoch_000001").label == "my_run epoch_000001 average"


def test_a_copy_of_the_weights_has_the_same_digest(run: Path):
    inside = locate(run)
    alone = locate(run / "checkpoints/epoch_000002/lora_average")
    assert inside.digest == alone.digest != locate(run, "current").digest
    file = run / "checkpoints/epoch_000002/lora_average/pytorch_lora_weights.safetensors"
    assert locate(file).digest == alone.digest and alone.label == str(file.parent)


def test_a_damaged_newest_checkpoint_is_reported_and_the_one_before_is_used(run: Path, capsys: pytest.CaptureFixture):
    file = run / "checkpoints/epoch_000002/lora_average/pytorch_lora_weights.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    assert locate(run).label == "my_run epoch_000001 average"
    assert "epoch_000002 is damaged: lora_average/pytorch_lora_weights" in capsys.readouterr().err
    # The other weights of that checkpoint are whole, and the optimizer's state is not looked at.
    (run / "checkpoints/epoch_000002/state.pt").write_bytes(b"other")
    assert locate(run, "current").label == "my_run epoch_000002 current"
    with pytest.raises(ValueError, match="epoch_000002 is damaged"):
        locate(run / "checkpoints/epoch_000002")
    for epoch in (1, 2):
        (run / f"checkpoints/epoch_00000{epoch}/manifest.json").unlink()
    with pytest.raises(ValueError, match=r"no checkpoint in .* is whole.*manifest\.json is missing"):
        locate(run)


def test_mistakes_are_named(run: Path, tmp_path: Path):
    with pytest.raises(ValueError, match=r"there is no .*my_rum\. Did you mean 'my_run'\?"):
        locate(tmp_path / "my_rum")
    with pytest.raises(ValueError, match=r"not even .*nowhere exists"):
        locate(tmp_path / "nowhere" / "x")
    with pytest.raises(ValueError, match="--weights current chooses between the weights of a checkpoint, but"):
        locate(run / "checkpoints/epoch_000001/lora", "current")
    with pytest.raises(ValueError, match=r"there are no weights in .*\n.*newest whole checkpoint"):
        locate(tmp_path)
    (tmp_path / "young/checkpoints").mkdir(parents=True)
    with pytest.raises(ValueError, match="is a run without a checkpoint yet"):
        locate(tmp_path / "young")


def test_the_run_that_weights_belong_to_knows_the_configuration(run: Path, tmp_path: Path):
    of_checkpoint = run / "checkpoints/epoch_000001/config.json"
    assert run_config(run) == run / "config.json"
    assert run_config(run / "checkpoints/epoch_000001") == of_checkpoint
    assert run_config(run / "checkpoints/epoch_000001/lora_average") == of_checkpoint
    transformer = tmp_path / "elsewhere/transformer"
    transformer.mkdir(parents=True)
    (transformer / "config.json").write_text(json.dumps({"_class_name": "SD3Transformer2DModel"}))
    assert run_config(transformer) is None
