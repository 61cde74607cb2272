"""A run that is hurt again and again comes out as if it never was: a short one here, the long one is a benchmark."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from tests.training import faults
from tests.training.jobs import (
    ENVIRONMENT,
    ROOT,
    Process,
    Ranks,
    arguments,
    lines_of,
    lora_of,
    run_folder,
    running,
    torchrun,
)

Make = Callable[..., ConfigDict]
# Each start gets a little further, in this order; the moments within it are drawn.
HURTS: tuple[Callable[[int], faults.Hurt | None], ...] = (
    lambda call: faults.at(faults.SAMPLING, call, 1, faults.killed),
    lambda call: faults.at(faults.UPDATE, call, 0, faults.killed),
    lambda call: faults.at(faults.SAVING, 1 + call % 2, 0, partial(faults.killed_while_writing, 5 + call)),
    lambda call: faults.at(faults.UPDATE, call, 1, partial(faults.signalled, signal.SIGTERM)),
    lambda call: faults.at(faults.SAMPLING, call, 0, partial(faults.signalled, signal.SIGINT)),
)


def test_a_run_hurt_at_random_moments_equals_an_undisturbed_one(make_config: Make, tmp_path: Path):
    changes = {"num_epochs": 10, "eval_freq": 5, "train__updates_per_inner_epoch": 2, "num_checkpoint_limit": 2}
    whole, hurt = (make_config(run_name=name, **changes) for name in ("whole", "hurt"))
    with Ranks(arguments(whole, tmp_path), tmp_path, 2) as ranks:
        assert ranks.wait() == [0, 0]
    rng = random.Random(0)
    for number, kind in enumerate(HURTS):
        command = arguments(hurt, tmp_path, "--config.resume_from=auto")
        with Ranks(command, tmp_path, 2, kind(rng.randint(2, 5))) as ranks:
            ranks.wait()
            assert lines_of(hurt)[-1]["epoch"] < 10, f"hurt number {number} came too late\n{ranks.describe()}"
    newest = sorted((run_folder(hurt) / "checkpoints").glob("epoch_*"))[-1]
    (newest / "state.pt").write_bytes(b"torn")
    with Ranks(arguments(hurt, tmp_path, "--config.resume_from=auto"), tmp_path, 2) as ranks:
        assert ranks.wait() == [0, 0]
        assert "is damaged: state.pt" in ranks.outputs[0]
    assert lines_of(hurt) == lines_of(whole)
    assert lora_of(hurt, 10) == lora_of(whole, 10)


def test_orphans_of_a_killed_launcher_save_and_end(make_config: Make, tmp_path: Path):
    config = make_config(num_epochs=400, eval_freq=0, save_freq=400)
    command = torchrun(arguments(config, tmp_path), ranks=2)
    with running(Process(command, tmp_path / "torchrun.log")) as job:
        job.wait_for(lambda: "epoch 1/400" in job.output)
        ranks = [job.rank(0), job.rank(1)]
        job.popen.kill()
        for rank in ranks:
            rank.wait(60)
        assert not job.descendants()
        assert "the launcher is gone" in job.output and "resume_from=auto" in job.output
    assert len(list((run_folder(config) / "checkpoints").glob("epoch_*"))) == 1


@pytest.mark.slow
def test_the_chaos_benchmark_passes(tmp_path: Path):
    out = tmp_path / "chaos.json"
    command = [sys.executable, "benchmarks/chaos.py", "--disturbances", "8", "--epochs", "60", "--out", str(out)]
    started = time.monotonic()
    done = subprocess.run(command, cwd=ROOT, env=os.environ | ENVIRONMENT, capture_output=True, text=True, timeout=3600)
    assert done.returncode == 0, f"after {time.monotonic() - started:.0f} s: {done.stderr[-3000:]}"
    results = json.loads(out.read_text())
    assert results["metrics_equal"] and results["lora_equal"] and len(results["disturbances"]) == 8
