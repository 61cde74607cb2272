"""Compare learning rules on the tiny world: the same base model, prompts, noise and budget for all.

Every arm first tries a small declared grid of settings, each once, with a seed that is not reported, and scored by
its training reward. Its best setting then runs with two sets of seeds. Held-out prompts are scored on the way.

  awm-bench algorithms                                                                everything; hours on two cores
  awm-bench algorithms --out logs/few --arms awm rfm --images 1024 --evaluations 4    less
  awm-bench algorithms --out benchmarks/results/algorithms --stage page               only write the page again

Run it in the repository. Ctrl-C at any time: the same command goes on where it stopped, also on another machine that
has the folder. A run whose loss is not finite has diverged, which is its result. One that broke for another reason is
tried again by the next call; its arm waits for it.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import shlex
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from awm.bench.arms import ARMS, BASE, RECIPES, Arm, chosen_arms
from awm.bench.board import Board
from awm.bench.comparison import Comparison, compare
from awm.bench.identity import digest
from awm.bench.jobs import SCORE, SECOND, Record, all_jobs, jobs_to_run, num_jobs_left
from awm.bench.options import parse_options
from awm.bench.page import page, verdict
from awm.bench.records import Records, rounded
from awm.bench.schedule import run_all
from awm.bench.settings import NAME, Settings, keep_settings, open_settings
from awm.bench.stability import Stability, stability
from awm.command_line import parse
from awm.provenance import provenance
from awm.quiet import quiet_libraries
from awm.report.text import count
from reward_server.process import write_atomically

PACKAGES = ("torch", "diffusers", "transformers", "accelerate", "peft", "numpy")


def main(argv: Sequence[str], program: str) -> int:
    """Run what is missing, then write algorithms.json and algorithms.html.

    Returns:
        0, or 1 if a run of this call broke.

    Raises:
        ValueError: the command line, the folder or an arm's configuration is not valid; no run was started.
        KeyboardInterrupt: after Ctrl-C or SIGTERM; everything is saved.
    """
    options = parse_options(argv, program, __doc__)
    if not Path(RECIPES).is_file():
        raise ValueError(f"there is no {RECIPES} here; run {program} in the folder of the repository.")
    arms = chosen_arms(options.arms)
    if not options.stages and not (options.out / NAME).exists():
        raise ValueError(f"{options.out} holds no comparison; run one first, or give the --out of one.")
    settings = open_settings(options.out, options.given, _precision)
    command = shlex.join([*program.split(), *argv])
    broken = run(arms, settings, options, command) if options.stages else []
    print(write_page(settings, options.out, command))
    if broken:
        first = f"{broken[0]['name']}: {broken[0]['message']}"
        print(f"{count(len(broken), 'run')} broke, the first {first}", file=sys.stderr)
    return 1 if broken else 0


def run(arms: dict[str, Arm], settings: Settings, options: argparse.Namespace, command: str) -> list[Record]:
    """All missing runs of these arms and stages; returns the records of those that broke."""
    quiet_libraries()
    # Imported late: --help and mistakes in the command line are answered before torch is loaded.
    from awm.bench.server import RewardServer
    from awm.bench.trainers import Trainers
    from awm.bench.work import arm_work

    work = arm_work(arms, settings)
    with _alone(options.out), _terminated_as_interrupted():
        if open_settings(options.out, options.given, _precision) != settings:
            raise ValueError(f"another call has begun {options.out} meanwhile; give this command again.")
        # What broke in an earlier call is tried again, but only by a call that is about runs of its kind.
        known = {
            name: record
            for name, record in read(settings, options.out).items()
            if record["status"] != "broken" or record["stage"] not in options.stages
        }
        keep_settings(options.out, settings)

        def left() -> int:
            return num_jobs_left(arms, settings, known, options.stages)

        if not left():
            return []
        logs = options.out / "logs"
        with RewardServer((SCORE.partition(".")[0], SECOND), logs) as server:
            origin = provenance(command, PACKAGES)
            origin.pop("command")
            trainers = Trainers(settings, Records(options.out), work, lambda: server.url, logs, options.keep, origin)
            try:
                ended = run_all(
                    lambda: jobs_to_run(arms, settings, known, options.stages),
                    trainers.start,
                    Board(left()),
                    known,
                    parallel=options.jobs or _num_cores(),
                    left=left,
                    watch=server.ensure,
                )
            except KeyboardInterrupt:
                write_page(settings, options.out, command)
                raise
    return [record for record in ended if record["status"] == "broken"]


def read(settings: Settings, folder: Path) -> dict[str, Record]:
    """The results of all arms, each checked against its arm's configuration of today."""
    return Records(folder).read(all_jobs(ARMS, settings), lambda job: digest(job, settings))


def write_page(settings: Settings, folder: Path, command: str) -> Path:
    """Write both files from the records of all arms, and say who leads."""
    known = read(settings, folder)
    comparison = compare(ARMS, settings, known)
    ranking = stability(comparison.rows, settings)
    write_atomically(folder / "algorithms.json", json.dumps(rounded(_summary(comparison, ranking, settings)), indent=1))
    html = folder / "algorithms.html"
    write_atomically(html, page(comparison, ranking, settings, known, folder, command))
    print(f"{verdict(comparison)} {ranking.sentence}")
    return html


def _summary(comparison: Comparison, ranking: Stability, settings: Settings) -> dict[str, Any]:
    values = asdict(comparison)
    names = ("name", "status", "message")
    values["unfinished"] = [{name: record[name] for name in names} for record in comparison.unfinished]
    return {"score": SCORE, "settings": asdict(settings), "stability": asdict(ranking), **values}


def _precision() -> str:
    """Of the recipe on this machine."""
    return str(parse([f"--config={RECIPES}:{BASE}"], program="awm-bench", purpose="").mixed_precision)


def _num_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Inside the block no other call of this machine works on ``folder``; ends with the process, however it dies."""
    (folder / "logs").mkdir(parents=True, exist_ok=True)
    with (folder / "logs" / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ValueError(f"another awm-bench works on {folder}; wait for it, or give another --out.") from error
        yield


@contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """Inside the block SIGTERM is Ctrl-C."""
    previous = signal.signal(signal.SIGTERM, _interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def _interrupt(number: int, frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt
