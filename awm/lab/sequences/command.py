"""The command ``awm-lab sequences``: prepare, run every method with every seed, write table, JSON and figure."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from awm.lab.options import experiment_parser
from awm.lab.record import write_result
from awm.lab.sequences.cache import Cache, fingerprint
from awm.lab.sequences.evaluation import Bench, run_method
from awm.lab.sequences.figure import draw
from awm.lab.sequences.prepare import prepare, quality
from awm.lab.sequences.settings import METHODS, QUICK, Settings, check_method
from awm.lab.sequences.table import format_table, mean_curves, summarise

NAME = "sequences"
CACHE = Path("logs/lab/sequences")
SHOWN = ("predicted", "held_out", "true", "nll_pretrained", "hamming")
ORIGIN = ("cpu_seconds", "commit")
DESCRIPTION = """\
SiMPO on a discrete task: a masked-diffusion model of synthetic regulatory DNA sequences is fine-tuned to raise what a
reward model predicts of them, as in SiMPO's table 3 (arXiv 2603.10250). Every method samples and scores the same number
of sequences and starts from the same pre-trained model; a reward model of held-out measurements and the true activity
are judges that no method sees. About 4 minutes to prepare, then half a minute a method and seed, on one CPU core.
The same command continues where it was stopped."""


def main(argv: Sequence[str], program: str) -> int:
    """Run the experiment; returns the exit status, 1 if a method stopped because its loss was not finite.

    Args:
        argv: options, without the experiment's name.
        program: what the user typed before them.
    """
    options = parse(argv, program)
    started = time.monotonic()
    settings = replace(QUICK if options.quick else Settings(), centred=options.centred)
    name = f"{NAME}_centred" if options.centred else NAME
    cache = Cache(options.cache)
    bench = prepare(settings, cache, log=lambda line: print(line, flush=True))
    runs, stopped = run_methods(bench, cache, options.methods, options.seeds)
    rows = summarise(runs)
    print(format_table(rows))
    figure = draw(rows, runs, batch=settings.batch, folder=options.out, name=name)
    finals = {method: [run["final"] | {key: run[key] for key in ORIGIN} for run in runs[method]] for method in runs}
    results = {"summary": rows, "models": quality(bench), "runs": finals, "curves": mean_curves(runs)}
    results["stopped"] = stopped
    words = [*program.split(), *argv]
    seconds = time.monotonic() - started
    record = write_result(options.out, name, command=words, settings=asdict(settings), results=results, seconds=seconds)
    print(f"{record}\n{figure}")
    return int(bool(stopped))


def parse(argv: Sequence[str], program: str) -> argparse.Namespace:
    """The options; unknown methods raise ValueError."""
    parser = experiment_parser(program, DESCRIPTION, seeds=3)
    parser.add_argument(
        "--methods", nargs="+", default=list(METHODS), metavar="NAME", help=f"of {', '.join(METHODS)} (default: all)"
    )
    parser.add_argument(
        "--cache",
        type=Path,
        default=CACHE,
        metavar="FOLDER",
        help=f"trained models and finished runs (default: {CACHE})",
    )
    parser.add_argument(
        "--centred",
        action="store_true",
        help="credit W - 1 and a pull to the sampling model, in place of the weights W",
    )
    parser.add_argument(
        "--quick", action="store_true", help="tiny sizes: seconds, to see that it works; proves nothing"
    )
    options = parser.parse_args(argv)
    options.methods = list(dict.fromkeys(check_method(method) for method in options.methods))
    return options


def run_methods(
    bench: Bench, cache: Cache, methods: Sequence[str], seeds: int
) -> tuple[dict[str, list[dict[str, Any]]], dict[str, str]]:
    """Results of the methods that finished every seed, and why the others stopped.

    A method with a seed missing is in no table: the mean over the seeds that are left would flatter it.
    """
    runs: dict[str, list[dict[str, Any]]] = {}
    stopped: dict[str, str] = {}
    for method in methods:
        try:
            runs[method] = run_seeds(bench, cache, method, seeds)
        except FloatingPointError as error:
            stopped[method] = str(error)
            print(f"{method} stopped and is in no table: {error}", file=sys.stderr)
    if not runs:
        raise FloatingPointError(f"no method finished, nothing was written; {stopped.popitem()[1]}")
    return runs, stopped


def run_seeds(bench: Bench, cache: Cache, method: str, seeds: int) -> list[dict[str, Any]]:
    """Results of seeds 0 to ``seeds`` - 1, one printed line each."""
    key = fingerprint(bench.settings, models_only=False)
    results = []
    for seed in range(seeds):
        result = cache.record(f"{method}-{seed}", key, lambda seed=seed: run_method(bench, method, seed=seed))  # type: ignore[misc]
        final = result["final"]
        shown = ", ".join(f"{name} {final[name]:.3f}" for name in SHOWN)
        print(f"{method:<11} seed {seed}: {shown}", flush=True)
        results.append(result)
    return results
