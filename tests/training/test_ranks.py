"""Runs that are killed, stopped or misused; tests/training/test_engines.py has those of several ranks."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from ml_collections import ConfigDict

from awm.configuration import config_to_dict
from awm.training.metrics import read_metrics

ROOT = Path(__file__).parents[2]
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
Make = Callable[..., ConfigDict]


def train_command(config: ConfigDict, folder: Path, *overrides: str) -> list[str]:
    path = folder / "run_config.json"
    path.write_text(json.dumps(config_to_dict(config)))
    return [sys.executable, "-m", "awm.train", "--config", str(path), *overrides]


def test_kill_9_and_resume_give_the_undisturbed_run(make_config: Make, tmp_path: Path):
    from tests.training.test_trainer import run, timeless

    config = make_config(num_epochs=4)
    command = train_command(config, tmp_path, "--config.num_epochs=400")
    process = subprocess.Popen(command, env=ENVIRONMENT, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    second = Path(config.logdir) / "run" / "checkpoints" / "epoch_000002" / "manifest.json"
    deadline = time.monotonic() + 120
    while not second.exists():
        assert process.poll() is None, process.stderr.read().decode()[-3000:] if process.stderr else ""
        assert time.monotonic() < deadline, "no second checkpoint within two minutes"
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    saved = sorted((Path(config.logdir) / "run" / "checkpoints").glob("epoch_*"))
    resumed = make_config(num_epochs=int(saved[-1].name[-6:]) + 2, resume_from="auto")
    actual = run(resumed).policy.state_dict()
    whole = make_config(run_name="whole", num_epochs=resumed.num_epochs)
    expected = run(whole).policy.state_dict()
    for weights in expected:
        for name, tensor in expected[weights].items():
            assert torch.equal(tensor, actual[weights][name]), f"{weights} {name}"
    lines = [timeless(read_metrics(Path(c.logdir) / c.run_name / "metrics.jsonl")) for c in (resumed, whole)]
    assert lines[0] == lines[1]


def test_sigterm_saves_exits_0_and_says_how_to_go_on(make_config: Make, tmp_path: Path):
    config = make_config(num_epochs=400, save_freq=400, eval_freq=0)
    process = subprocess.Popen(
        train_command(config, tmp_path), env=ENVIRONMENT, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    metrics = Path(config.logdir) / "run" / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not (metrics.exists() and metrics.stat().st_size):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.terminate()
    output = process.communicate(timeout=60)[0].decode()
    assert process.returncode == 0, output[-2000:]
    assert "resume_from=auto" in output
    assert list((Path(config.logdir) / "run" / "checkpoints").glob("epoch_*"))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("--config.train.learning_rte=1", "unknown configuration key 'train.learning_rte'"),
        ("--config.reward_fn=geneval=1", "http://127.0.0.1:9"),
        ("--config.sample.num_prompts_per_epoch=99", "99 prompts per epoch"),
    ],
)
def test_mistakes_end_with_one_message_and_a_non_zero_status(
    make_config: Make, tmp_path: Path, override: str, message: str
):
    config = make_config(reward_server__urls=("http://127.0.0.1:9",))
    command = train_command(config, tmp_path, override)
    done = subprocess.run(command, env=ENVIRONMENT, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert message in done.stderr
    assert "Traceback" not in done.stderr
