"""Throughput on several processes of this machine, each a call of the benchmark by torchrun, and a model of many."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from awm.bench.throughput import sweep
from awm.bench.throughput.models import MODELS
from awm.bench.throughput.scaling import Epoch, Network, efficiency, epoch_seconds
from reward_server.process import write_atomically

KEPT = (
    *("benchmark", "model", "device", "recipe", "smaller_than_the_recipe", "changed", "images_per_epoch", "resolution"),
    *("mixed_precision", "warmup_epochs", "reward", "commit", "clean", "machine", "versions"),
)
"""What the measurements of all numbers of ranks have in common."""
STARTING_S = 600  # beyond --minutes: building, and the epochs that are always made
LARGE = (8, 16, 32, 64, 128)
RECIPE = Epoch(images=1728, seconds_per_image=0.18, updates=1, gradient_bytes=4 * 23.89e6, prompts=72)
"""SD3.5 Medium's GenEval recipe at 91 TFLOP an image and half of 989 TFLOP/s: assumed, not measured."""


def sweep_world_sizes(options: argparse.Namespace, folder: Path, command: str) -> dict[str, Any]:
    """Measure the default on each number of ranks, one after the other, and write and print what came out.

    Each rank has one thread, so that more ranks than cores share cores: the file says how many there are.

    Raises:
        ValueError: a call failed; the message has its last words.
    """
    begun = time.monotonic()
    values = options.points or MODELS[options.model].points["world_size"]
    results = [_on_ranks(value, options, folder) for value in values]
    rows = [result["variants"]["default"] for result in results]
    points = [
        sweep.Point(
            value, result["images_per_epoch"], sum(row["operations"].values()), row["seconds"]["epoch"]["median"]
        )
        for value, result, row in zip(values, results, rows, strict=True)
    ]
    first = results[0]
    found = {
        **{name: first[name] for name in KEPT},
        "command": command,
        "ceilings": {f"world_size={v}": result["ceiling"] for v, result in zip(values, results, strict=True)},
        "took_s": round(time.monotonic() - begun, 1),
        "cores": _cores(),
        "variants": {f"world_size={v}": row | {"meaning": f"{v} ranks"} for v, row in zip(values, rows, strict=True)},
        "sweep": {"of": "world_size", "points": sweep.against_linear("world_size", points)},
        "model_of_many_ranks": many_ranks(RECIPE, Network()),
    }
    write_atomically(options.out, json.dumps(found, indent=1) + "\n")
    print("\n".join([*sweep.table("world_size", found["sweep"]["points"]), "", *model_lines(), "", str(options.out)]))
    return found


def many_ranks(epoch: Epoch, network: Network, sizes: Sequence[int] = LARGE) -> dict[str, Any]:
    """What ``awm.bench.throughput.scaling`` expects, with what it assumes."""
    assumed: dict[str, Any] = asdict(epoch) | asdict(network)
    rows = [
        {"world_size": n, "seconds": epoch_seconds(epoch, n, network), "efficiency": efficiency(epoch, n, network)}
        for n in sizes
    ]
    return {"assumed": assumed, "epochs": rows}


def model_lines() -> list[str]:
    """The model of many ranks for people."""
    found = many_ranks(RECIPE, Network())
    assumed = found["assumed"]
    return [
        f"A model, not measured: {assumed['images']} images an epoch at {assumed['seconds_per_image']} s each, "
        f"{assumed['updates']} update of {assumed['gradient_bytes'] / 1e6:.0f} MB of gradients, "
        f"{assumed['bytes_per_s'] / 1e9:.0f} GB/s and {assumed['latency_s'] * 1e6:.0f} us between ranks",
        *(f"{row['world_size']:>6} ranks {row['seconds']:>8.2f} s, {row['efficiency']:.1%}" for row in found["epochs"]),
    ]


def _on_ranks(number: int, options: argparse.Namespace, folder: Path) -> Mapping[str, Any]:
    out = folder / f"ranks_{number}.json"
    words = ["--model", options.model, "--device", options.device, "--variants", "default"]
    words += ["--epochs", str(options.epochs), "--warmup", str(options.warmup), "--out", str(out)]
    words += ["--minutes", str(options.minutes)]
    words += ["--reward-ms", str(options.reward_ms), "--tied", str(options.tied), *options.words]
    launch = [sys.executable, "-m", "torch.distributed.run", "--nnodes=1", f"--nproc_per_node={number}"]
    launch += ["--rdzv_backend=c10d", "--rdzv_endpoint=127.0.0.1:0", "-m", "awm.bench", "throughput", *words]
    print(f"{number} ranks ...", flush=True)
    begun = time.monotonic()
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    status, stderr = _run(launch, environment, limit_s=60 * options.minutes + STARTING_S)
    if status or not out.exists():
        said = [line for line in stderr.splitlines() if line.startswith("error:")] or [stderr[-400:]]
        raise ValueError(f"{number} ranks ended with status {status}: {said[0]} ({shlex.join(launch)})")
    print(f"{number} ranks: {time.monotonic() - begun:.0f} s", flush=True)
    found: Mapping[str, Any] = json.loads(out.read_text())
    return found


def _run(command: Sequence[str], environment: Mapping[str, str], limit_s: float) -> tuple[int, str]:
    """Status and stderr; nothing of the command is left running, whatever ends this.

    Raises:
        ValueError: it took too long.
    """
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=environment)
    try:
        _, stderr = process.communicate(timeout=limit_s)
    except subprocess.TimeoutExpired as error:
        raise ValueError(f"no result after {limit_s:.0f} s, stopped: {shlex.join(command)}") from error
    finally:
        process.terminate()  # torchrun ends its workers, which nobody else could find
        process.wait()
    return process.returncode, stderr


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
