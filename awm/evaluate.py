"""``awm-eval``: held-out scores of a base model or a LoRA, with the images, on any number of processes."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from awm.command_line import parse
from awm.quiet import quiet_libraries
from awm.rewards.errors import RewardError

if TYPE_CHECKING:
    from ml_collections import ConfigDict

PURPOSE = """\
Score a model on the test prompts of a configuration, with its sampler, steps, guidance and fixed noise.

  --out DIR     where scores.jsonl, summary.json and the images go (required)
  --lora DIR    LoRA folder, such as RUN/checkpoints/epoch_000012/lora_average; without it, the base model"""


def main() -> None:
    """Entry point."""
    known = argparse.ArgumentParser(add_help=False)
    known.add_argument("--out", type=Path)
    known.add_argument("--lora", type=Path)
    arguments, rest = known.parse_known_args()
    try:
        config = parse(rest, program="awm-eval", purpose=PURPOSE)
        if arguments.out is None:
            raise ValueError("--out DIR is missing: the folder to write scores.jsonl, summary.json and images into.")
        if (arguments.out / "scores.jsonl").exists():
            raise ValueError(f"{arguments.out} already holds an evaluation; choose another --out.")
        evaluate(config, arguments.lora, arguments.out)
    except (ValueError, RewardError, OSError) as error:
        sys.exit(f"awm-eval: {type(error).__name__}: {error}")


def evaluate(config: ConfigDict, lora: Path | None, out: Path) -> None:
    """Run the evaluation ``config`` describes and write its results below ``out``."""
    quiet_libraries()
    from awm.building import build_evaluation, build_policy, build_reward
    from awm.data.prompts import load_prompts
    from awm.training.distributed import Distributed
    from awm.training.evaluation import summarise, write_scores
    from awm.training.progress import progress_bar
    from awm.validation import validate

    validate(config)
    prompts = load_prompts(config.dataset, "test", config.prompt_fn)
    reward = build_reward(config)
    reward.check()
    distributed = Distributed(config.mixed_precision)
    if lora is not None:
        config.train.lora_path = str(lora)
    policy = build_policy(config, distributed.device)
    evaluation = build_evaluation(config, policy, reward, distributed, prompts, "current")
    total = -(-len(evaluation) // distributed.world_size)
    with progress_bar("evaluating", total, distributed.is_main) as done:
        scored = evaluation(done)
    if distributed.is_main:
        write_scores(out, scored)
        summary = summarise(scored)
        (out / "summary.json").write_text(json.dumps(summary, indent=2))
        for name, value in summary.items():
            print(f"{name:<48} {value:.4f}")
    distributed.close()


if __name__ == "__main__":
    main()
