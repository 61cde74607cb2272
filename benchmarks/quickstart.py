"""Run the quickstart for several seeds and write what it achieved to benchmarks/results/.

    python benchmarks/quickstart.py --seeds 0 1 2
    python benchmarks/quickstart.py --seeds 0 --full
    python benchmarks/quickstart.py --out benchmarks/results/quickstart_options.json --config.sample.merge_lora=True

Per seed: seconds of the whole script (the environment being installed), peak resident memory of all its processes
together, held-out accuracy before and after, the paired gain and its standard error, once with all images taken as
independent and once clustered by prompt (an evaluation has several images of each). Linux only (reads /proc).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from provenance import ROOT, provenance

from awm.report.statistics import paired_gain
from awm.training.metrics import read_metrics

SCORE = "geneval.strict"


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--full", action="store_true", help="the longer run")
    parser.add_argument("--out", type=Path, help="JSON to write (default: benchmarks/results/quickstart[_full].json)")
    arguments, words = parser.parse_known_args()
    if unknown := [word for word in words if not word.startswith("--config.")]:
        parser.error(
            f"unknown: {' '.join(unknown)}; further words are --config.section.key=value, as the script takes them"
        )
    if words and arguments.out is None:
        parser.error(
            "with --config.section.key=value the result is not the quickstart's: give it a file of its own, --out"
        )
    out = arguments.out or ROOT / "benchmarks/results" / f"quickstart{'_full' if arguments.full else ''}.json"
    results: dict[str, Any] = provenance("torch", "diffusers", "transformers", "accelerate", "peft")
    results |= {"score": SCORE, "options": words, "runs": []}
    for seed in arguments.seeds:
        results["runs"].append(run(seed, arguments.full, words))
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(results, indent=2) + "\n")
        print(json.dumps(results["runs"][-1], indent=2))
    print(out)


def run(seed: int, full: bool, words: Sequence[str]) -> dict[str, Any]:
    """One quickstart from scratch, in a run folder of its own."""
    name = f"benchmark{'-full' if full else ''}-seed{seed}-{time.strftime('%Y%m%d%H%M%S')}"
    command = ["bash", "train_scripts/quickstart.sh", "--seed", str(seed), "--run-name", name, *words]
    started, peak = time.monotonic(), 0
    process = subprocess.Popen(command + (["--full"] if full else []), cwd=ROOT)
    while process.poll() is None:
        peak = max(peak, _tree_memory(process.pid))
        time.sleep(0.5)
    if process.returncode:
        sys.exit(f"seed {seed}: the quickstart failed with status {process.returncode}")
    return {"seed": seed, "seconds": round(time.monotonic() - started, 1), "peak_memory_mb": peak >> 20} | summary(
        ROOT / "logs" / name
    )


def summary(folder: Path) -> dict[str, Any]:
    """Before and after of a run folder."""
    metrics = read_metrics(folder / "metrics.jsonl")
    evaluated = sorted((folder / "eval").glob("epoch_*"))
    (before, prompts), (after, _) = (_scores(evaluated[i]) for i in (0, -1))
    gain = paired_gain(before, after)
    clustered = paired_gain(before, after, prompts)
    key = f"eval/{SCORE}"
    return {
        "epochs": metrics[-1]["epoch"],
        "optimizer_steps": metrics[-1]["step"],
        "held_out_images": gain.n,
        "before": round(gain.before, 4),
        "after": round(gain.after, 4),
        "gain": round(gain.gain, 4),
        "standard_error": round(gain.standard_error, 4),
        "gain_in_standard_errors": round(gain.in_standard_errors, 2),
        "clustered_standard_error": round(clustered.standard_error, 4),
        "gain_in_clustered_standard_errors": round(clustered.in_standard_errors, 2),
        "curve": {line["epoch"]: round(line[key], 4) for line in metrics if key in line},
        "tasks_before": _tasks(metrics[0]),
        "tasks_after": _tasks(metrics[-1]),
        "epoch_seconds": round(sum(m["time/epoch_s"] for m in metrics[1:]) / (len(metrics) - 1), 2),
    }


def _tasks(line: dict[str, Any]) -> dict[str, float]:
    prefix = f"eval/{SCORE}/"
    return {name.removeprefix(prefix): round(v, 4) for name, v in line.items() if name.startswith(prefix)}


def _scores(folder: Path) -> tuple[list[float | None], list[str]]:
    """Scores and prompts of all images, in order."""
    records = read_metrics(folder / "scores.jsonl")
    return [record["scores"].get(SCORE) for record in records], [record["prompt"] for record in records]


def _tree_memory(root: int) -> int:
    """Resident bytes of a process and all its descendants."""
    parents, sizes = {}, {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            parents[int(entry.name)], sizes[int(entry.name)] = (
                int(fields[1]),
                int(fields[21]) * os.sysconf("SC_PAGESIZE"),
            )
    tree, total = {root}, 0
    while tree:
        total += sum(sizes.get(pid, 0) for pid in tree)
        tree = {pid for pid, parent in parents.items() if parent in tree}
    return total


if __name__ == "__main__":
    main()
