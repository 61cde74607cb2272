"""launch.sh as a user runs it, with nothing of the surrounding environment in its way."""

from __future__ import annotations

import os
import socket
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]
CLUSTER = ("RANK", "WORLD_SIZE", "NODE_RANK", "NNODES", "LOCAL_RANK", "MASTER_", "SLURM_", "TORCHELASTIC_", "AWM_")
CHOICES = (
    "CONFIG",
    "EXTRA",
    "NPROC",
    "ENGINE",
    "REWARD",
    "RESUME",
    "MAX_RESTARTS",
    "CUDA_VISIBLE_DEVICES",
    "WANDB_API_KEY",
)


def clean_environment(**changes: str) -> dict[str, str]:
    """This process's environment without what launch.sh looks at, plus ``changes``."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith((*CLUSTER, *CHOICES))}
    return kept | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""} | changes


def launch(*arguments: str, script: str = "launch.sh", **environment: str) -> subprocess.Popen[str]:
    """A running script of train_scripts, in a process group of its own, as a terminal or a scheduler would start it."""
    return subprocess.Popen(
        ["bash", str(ROOT / "train_scripts" / script), *arguments],
        env=clean_environment(**environment),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def finish(process: subprocess.Popen[str], timeout_s: float = 120) -> tuple[int, str]:
    """Exit status and everything that was printed."""
    try:
        output, _ = process.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    return process.returncode, output


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])
