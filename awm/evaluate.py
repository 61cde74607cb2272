"""``awm-eval``: held-out scores of any weights, with the images and a table by task, on any number of processes."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from awm.command_line import parse
from awm.freed_memory import keep_freed_memory
from awm.quiet import quiet_libraries
from awm.registry import nearest
from awm.rewards.errors import RewardError
from awm.training.stopping import StopRequest, StopRequestedError
from awm.weight_paths import EXPLANATION, run_config

if TYPE_CHECKING:
    from ml_collections import ConfigDict

DESCRIPTION = "Score a model on held-out prompts, with the sampler, steps, guidance and fixed noise of a configuration."

EPILOG = f"""\
--weights-from takes
{EXPLANATION}

Written to --out: scores.jsonl (a line per image: prompt, task, all scores, image file, why a score is missing),
images/, summary.json and table.md, which is printed. --baseline adds base/ with the same for the base model.

Ctrl-C, SIGTERM, a kill or a dead reward server lose at most the batches in work: the same command continues, on
any number of processes. When all is scored it only prints the table. Exit status: 0 when all is scored, and after
SIGTERM, which says so; 130 after Ctrl-C; 1 after an error.

configuration:
  --config FILE.py:RECIPE or RUN/config.json; left out, that of the run which --weights-from is in
  --config.KEY=VALUE overrides a key; those of evaluations are sample.eval_sampler, sample.eval_num_steps,
  sample.guidance_scale, sample.test_batch_size, evaluation.max_prompts, evaluation.seed, resolution, reward_fn
  and reward_server.urls. --help-keys prints all with their defaults.

examples:
  awm-eval --weights-from logs/my_run --out results/my_run --baseline
  awm-eval --config config/awm.py:geneval_sd3_no_cfg_1node --out results/base --num-images-per-prompt 4
  awm-eval --config logs/my_run/config.json --weights-from some/lora --prompts mine.jsonl --out results/mine
  torchrun --nproc_per_node 8 -m awm.evaluate --weights-from logs/my_run --out results/my_run
"""


def parser() -> argparse.ArgumentParser:
    """The options that are no keys of a configuration."""
    p = argparse.ArgumentParser(
        prog="awm-eval",
        description=DESCRIPTION,
        epilog=EPILOG,
        usage="awm-eval --out DIR [--weights-from PATH] [--config CONFIG] [options] [--config.KEY=VALUE ...]",
        formatter_class=partial(argparse.RawDescriptionHelpFormatter, width=118, max_help_position=30),
        allow_abbrev=False,
    )
    add = p.add_argument
    add("--out", type=Path, metavar="DIR", help="where the results go; one evaluation per folder (required)")
    add(
        "--weights-from",
        "--lora",
        type=Path,
        metavar="PATH",
        help="what to evaluate, see below; default: the base model",
    )
    add("--weights", choices=["average", "current"], help="weight set of a checkpoint (default: average)")
    add("--baseline", action="store_true", help="also evaluate the base model, same prompts and noise, and compare")
    add(
        "--prompts",
        type=Path,
        metavar="FILE",
        help="prompts, one a line, as prompt_fn reads them (default: test split)",
    )
    add("--num-images-per-prompt", type=int, metavar="N", help="default: evaluation.num_images_per_prompt")
    add("--num-saved-images", type=int, metavar="N", help="images kept as files, evenly spaced (default: all)")
    add("--restart", action="store_true", help="throw away the evaluation that is in --out and start over")
    return p


def main() -> None:
    """Entry point."""
    stop = StopRequest()
    stop.install(at_once=True)
    arguments, rest = parser().parse_known_args()
    try:
        config = parse(_with_config(rest, arguments.weights_from), program="awm-eval", purpose=DESCRIPTION)
        _check(arguments)
    except ValueError as error:
        sys.exit(f"awm-eval: {error}")
    sys.exit(evaluate(config, arguments, stop))


def evaluate(config: ConfigDict, arguments: argparse.Namespace, stop: StopRequest) -> int | str:
    """Run the evaluation, or what is left of it.

    Returns:
        The exit status, or the message of an error a user can act on.
    """
    quiet_libraries()
    from awm.held_out.run import HeldOutRun
    from awm.held_out.together import ElsewhereError
    from awm.training.distributed import Distributed
    from awm.training.ending import is_lost_contact

    stop.distributed = distributed = Distributed(config.mixed_precision)
    if distributed.device.type == "cpu":
        keep_freed_memory()
    try:
        run = HeldOutRun(config, arguments, distributed, stop)
        stop.install()  # from here on a signal waits for the end of a batch
        tables = run()
        if distributed.is_main:
            print(f"\n{tables}\n\nwritten to {arguments.out}")
        return 0
    except StopRequestedError as error:
        if distributed.is_main:
            print(error, file=sys.stderr)
        return error.exit_code
    except ElsewhereError:
        return 1
    except RewardError as error:
        return f"awm-eval: {error}; what is scored so far is kept, the same command continues."
    except Exception as error:
        if stop.exiting:
            return stop.exit_code
        if isinstance(error, ValueError | OSError):
            return f"awm-eval: {error}"
        if not is_lost_contact(error):
            raise
        return "awm-eval: lost contact with another rank; what is scored so far is kept, the same command continues."
    finally:
        stop.restore()
        distributed.close()


def _with_config(rest: Sequence[str], weights_from: Path | None) -> list[str]:
    """The arguments for the configuration; without ``--config``, that of the run the weights are from."""
    known = [option for action in parser()._actions for option in action.option_strings]
    for argument in rest:
        if argument.startswith("--") and not argument.startswith(("--config", "--help-keys")):
            name = argument.partition("=")[0]
            raise ValueError(f"unknown option {name}.{nearest(name, known)} awm-eval --help lists them all.")
    given = any(argument.split("=")[0] in ("--config", "--help-keys") for argument in rest)
    file = None if given or weights_from is None else run_config(weights_from)
    if not given and file is None:
        of_run = "" if weights_from is None else f", and {weights_from} is in no run folder"
        raise ValueError(
            f"no --config given{of_run}; give --config FILE.py:RECIPE or --config RUN/config.json. See awm-eval --help."
        )
    return list(rest) if file is None else ["--config", str(file), *rest]


def _check(arguments: argparse.Namespace) -> None:
    if arguments.out is None:
        raise ValueError("--out DIR is missing: the folder to write scores.jsonl, summary.json and images into.")
    if arguments.out.exists() and not arguments.out.is_dir():
        raise ValueError(f"--out {arguments.out} is a file; give a folder.")
    for name, low in (("num_images_per_prompt", 1), ("num_saved_images", 0)):
        value = getattr(arguments, name)
        if value is not None and value < low:
            raise ValueError(f"--{name.replace('_', '-')} {value} is not valid; it must be at least {low}.")
    if arguments.prompts is not None and not arguments.prompts.is_file():
        raise ValueError(f"--prompts {arguments.prompts} is no file; give a .txt or .jsonl file of prompts.")
    if arguments.weights is not None and arguments.weights_from is None:
        raise ValueError(f"--weights {arguments.weights} needs --weights-from RUN or a checkpoint of it.")


if __name__ == "__main__":
    main()
