"""Run the quickstart once with every learning rule and compare what each has learnt, on the same prompts and noise.

    python benchmarks/quickstart_algorithms.py --epochs 16

All rules share the recipe, which was tuned for AWM: the question is whether each of them learns, not which is best.
Per rule: held-out accuracy before and after, the paired gain and its standard error (independent images, and clustered
by prompt), and the curve of the training reward. A rule whose run folder exists goes on where it stopped,
and a finished one is only read.
Rules of an earlier call stay in the file; each says which commit it was run with.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from provenance import ROOT, provenance
from quickstart import SCORE, summary

from awm.training.metrics import read_metrics

SIMPO = ("--config.train.algorithm=simpo",)
RULES: dict[str, tuple[str, ...]] = {
    "awm": (),
    "simpo_exp": (*SIMPO, "--config.train.simpo_weighting=exp"),
    "simpo_linear": (*SIMPO, "--config.train.simpo_weighting=linear"),
    "simpo_square": (*SIMPO, "--config.train.simpo_weighting=square"),
    "simpo_power": (*SIMPO, "--config.train.simpo_weighting=power", "--config.train.simpo_power=1.5"),
    "simpo_linear_neg": (*SIMPO, "--config.train.simpo_weighting=linear", "--config.train.simpo_floor=-0.5"),
    "simpo_square_neg": (*SIMPO, "--config.train.simpo_weighting=square", "--config.train.simpo_floor=-0.5"),
    "simpo_wd1": (*SIMPO, "--config.train.simpo_weighting=wd1"),
    "rfm": ("--config.train.algorithm=rfm",),
}


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rules", nargs="+", choices=RULES, default=list(RULES), metavar="RULE", help=", ".join(RULES))
    parser.add_argument("--epochs", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/quickstart_algorithms.json")
    arguments = parser.parse_args()
    results: dict[str, Any] = provenance("torch", "diffusers", "transformers", "accelerate", "peft")
    commit = {name: results.pop(name) for name in ("commit", "clean")}
    earlier = json.loads(arguments.out.read_text())["runs"] if arguments.out.exists() else []
    results |= {
        "score": SCORE,
        "seed": arguments.seed,
        "runs": [r for r in earlier if r["rule"] not in arguments.rules],
    }
    for rule in arguments.rules:
        results["runs"].append(commit | run(rule, arguments.epochs, arguments.seed))
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(results, indent=2) + "\n")
        print(json.dumps(results["runs"][-1], indent=2), flush=True)
    print(arguments.out)


def run(rule: str, epochs: int, seed: int) -> dict[str, Any]:
    """One quickstart with this rule; it evaluates before the first and after the last epoch."""
    name = f"algorithms-{rule}-seed{seed}-{epochs}epochs"
    overrides = [*RULES[rule], f"--config.num_epochs={epochs}", f"--config.eval_freq={epochs}"]
    command = ["bash", "train_scripts/quickstart.sh", "--seed", str(seed), "--run-name", name, *overrides]
    if status := subprocess.run(command, cwd=ROOT).returncode:
        sys.exit(f"{rule}: the quickstart failed with status {status}")
    metrics = read_metrics(ROOT / "logs" / name / "metrics.jsonl")
    rewards = [round(line["reward/mean"], 4) for line in metrics if "reward/mean" in line]
    weights = {key: round(value, 4) for key, value in metrics[-1].items() if key.startswith(("weight/", "rfm/"))}
    return {
        "rule": rule,
        "overrides": overrides,
        **summary(ROOT / "logs" / name),
        "training_reward": rewards,
        "weights_of_last_epoch": weights,
    }


if __name__ == "__main__":
    main()
