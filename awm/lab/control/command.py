"""``awm-lab control``: online RL with SiMPO and RFM on Gymnasium environments.

Trains every combination of --algorithm, --weighting or --estimator, and --path, with several seeds each, and writes
FOLDER/NAME.json (every evaluation of every run), FOLDER/NAME.png (return against steps) and a table. Algorithm frozen
trains the critics only: what the policy's own training adds shows beside it.

  learning visible in minutes    awm-lab control --algorithm simpo frozen --seeds 3
  the paper's runs               awm-lab control --env Hopper-v5 --weighting linear_neg --seeds 5 --preset paper
"""

from __future__ import annotations

import argparse
import itertools
import shlex
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch

from awm.lab.control import settings as known
from awm.lab.control.landscapes import LANDSCAPES
from awm.lab.control.results import FINISHED, INTERRUPTED, Evaluation, RunRecord, merged, read_runs, summary, table
from awm.lab.control.settings import ControlSettings, preset
from awm.lab.options import experiment_parser, positive
from awm.lab.record import write_result
from awm.provenance import provenance
from awm.registry import nearest


def main(argv: Sequence[str], program: str) -> int:
    """Run what ``argv`` asks for; see the module's docstring.

    Returns:
        0; 1 if a run's loss became infinite; 130 if Ctrl-C ended it. What had been measured is written either way.
    """
    options = make_parser(program).parse_args(argv)
    plan = [(settings, seed) for settings in variants(options) for seed in seeds(options)]
    name = options.name or default_name(options)
    path = options.out / f"{name}.json"
    check_device(options.device)
    old = read_runs(path, options.env) if options.add and path.is_file() else []
    # Only now: --help and mistakes in options need no Gymnasium.
    from awm.lab.control.loop import train

    start = time.monotonic()
    new: list[RunRecord] = []
    command = [*program.split(), *argv]
    code = provenance(shlex.join(command), ())
    with limited_threads(options.threads):
        for settings, seed in plan:
            run = train(settings, seed=seed, device=options.device)
            new.append(follow(run, settings, seed, code))
            if runs := merged(old, new):
                write(options.out, name, command, runs, options.env, time.monotonic() - start)
            if new[-1].ended == INTERRUPTED:
                break
    if runs:
        print(table(summary(runs)))
        print(f"wrote {path} and {path.with_suffix('.png')}")
    if new[-1].ended == INTERRUPTED:
        return 130
    return int(any(run.ended != FINISHED for run in new))


def check_device(name: str) -> None:
    """Raise ValueError if torch cannot compute there."""
    try:
        torch.zeros(1, device=name)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"cannot compute on --device {name}: {error}") from error


@contextmanager
def limited_threads(count: int) -> Iterator[None]:
    """Inside the block torch uses this many threads: networks as small as these gain nothing from more."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def follow(run: Iterator[Evaluation], settings: ControlSettings, seed: int, code: Mapping[str, Any]) -> RunRecord:
    """Run one seed, a line per evaluation; a run that Ctrl-C or its own numbers stop keeps what it found.

    Args:
        run: gives its evaluations.
        settings: of the run.
        seed: of the run.
        code: command, commit and clean, see ``awm.provenance``.
    """
    evaluations: list[Evaluation] = []
    ended = FINISHED
    try:
        for evaluation in run:
            evaluations.append(evaluation)
            print(progress_line(settings, seed, evaluations), flush=True)
    except KeyboardInterrupt:
        ended = INTERRUPTED
        print("stopped; writing what there is", file=sys.stderr)
    except FloatingPointError as error:
        ended = str(error)
        print(f"{settings.variant}, seed {seed} stopped: {error}", file=sys.stderr)
    origin = {name: code[name] for name in ("command", "commit", "clean")}
    return RunRecord.of(settings, seed, evaluations, ended=ended, **origin)


def progress_line(settings: ControlSettings, seed: int, evaluations: Sequence[Evaluation]) -> str:
    """Variant, seed, steps, return, speed and time left."""
    now = evaluations[-1]
    before = evaluations[-2] if len(evaluations) > 1 else now
    speed = (now.step - before.step) / max(now.seconds - before.seconds, 1e-9)
    left = f"{max(settings.total_steps - now.step, 0) / speed:.0f} s left" if speed else "starting"
    return (
        f"{settings.variant}, seed {seed}: {now.step}/{settings.total_steps} steps, "
        f"return {now.mean:.0f} +- {now.spread:.0f}, {speed:.0f} steps/s, {left}"
    )


def write(
    folder: Path, name: str, command: Sequence[str], runs: Sequence[RunRecord], environment: str, seconds: float
) -> None:
    """Write the JSON and the figure of all runs so far."""
    from awm.lab.control.figure import returns_figure
    from awm.lab.figures import save_figure

    results = {
        "table": summary(runs),
        "runs": [asdict(run) for run in runs],
    }
    settings = {"environment": environment}
    write_result(folder, name, command=command, settings=settings, results=results, seconds=seconds)
    save_figure(returns_figure(runs, environment), folder, name)


def make_parser(program: str) -> argparse.ArgumentParser:
    """The options of the command."""
    parser = experiment_parser(program, __doc__, seeds=1)
    add = parser.add_argument
    add("--env", default="Pendulum-v1", metavar="ID", help="Gymnasium id, Hopper-v5 (default: Pendulum-v1)")
    add("--algorithm", nargs="+", default=["simpo"], choices=known.ALGORITHMS, help="one or more (default: simpo)")
    add("--weighting", nargs="+", choices=tuple(known.WEIGHTINGS), help="of SiMPO, one or more (default: linear)")
    add("--estimator", nargs="+", choices=known.ESTIMATORS, help="of RFM, one or more (default: combined)")
    add("--path", nargs="+", default=["flow"], choices=known.PATHS, help="flow, diffusion or both (default: flow)")
    add("--landscape", choices=tuple(LANDSCAPES), help="reward forward speed by this function instead (HalfCheetah)")
    add(
        "--preset",
        choices=known.PRESETS,
        default="quick",
        help="paper: 1e6 steps, wide networks, days on a CPU; use --device cuda:0 (default: quick)",
    )
    add("--steps", type=positive, metavar="N", help="transitions per run; default: the preset's")
    add("--first-seed", type=int, default=0, metavar="K", help="seeds K to K + N - 1 (default: 0)")
    add("--set", nargs="+", default=[], metavar="NAME=VALUE", help="any other setting, width=128 (see settings.py)")
    add("--name", help="of the files; default: control_ENVIRONMENT")
    add("--add", action="store_true", help="keep the runs already in FOLDER/NAME.json and draw them too")
    add("--device", default="cpu", help="where networks and replay buffer live, cuda:0 (default: cpu)")
    add("--threads", type=positive, default=1, help="threads of torch (default: 1)")
    return parser


def seeds(options: argparse.Namespace) -> range:
    """The seeds that were asked for."""
    if options.first_seed < 0:
        raise ValueError(f"--first-seed must be at least 0, not {options.first_seed}.")
    return range(options.first_seed, options.first_seed + options.seeds)


def variants(options: argparse.Namespace) -> list[ControlSettings]:
    """Every combination of path, algorithm and its weighting or estimator."""
    common = overrides(options.set) | {"landscape": options.landscape}
    if options.steps is not None:
        common["total_steps"] = options.steps
    chosen: list[dict[str, Any]] = []
    for algorithm, option, default in (("simpo", "weighting", "linear"), ("rfm", "estimator", "combined")):
        values = getattr(options, option)
        if algorithm in options.algorithm:
            chosen += [{"algorithm": algorithm, option: value} for value in values or [default]]
        elif values:
            raise ValueError(f"--{option} is an option of {algorithm}: add it, --algorithm {algorithm}.")
    if "frozen" in options.algorithm:
        chosen.append({"algorithm": "frozen"})
    pairs = itertools.product(options.path, chosen)
    return [preset(options.preset, options.env, path=path, **choice, **common) for path, choice in pairs]


def overrides(assignments: Sequence[str]) -> dict[str, Any]:
    """``["width=128"]`` as settings of the right types."""
    types = {field.name: str(field.type) for field in fields(ControlSettings)}
    result: dict[str, Any] = {}
    for assignment in assignments:
        name, _, text = assignment.partition("=")
        if types.get(name) not in ("int", "float"):
            numbers = sorted(key for key, kind in types.items() if kind in ("int", "float"))
            raise ValueError(f"--set {assignment}: no number of that name.{nearest(name, numbers)}")
        try:
            result[name] = int(text) if types[name] == "int" else float(text)
        except ValueError:
            raise ValueError(f"--set {assignment}: {text!r} is no {types[name]}.") from None
    return result


def default_name(options: argparse.Namespace) -> str:
    """control_hopper of Hopper-v5; with the landscape if there is one."""
    short = options.env.partition("-")[0].rpartition("/")[2].lower()
    return "_".join(["control", short, *([options.landscape] if options.landscape else [])])
