"""The command ``awm-lab boltzmann``: measure the estimators, train a flow with each, write table, JSON and figure."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from awm.flow.rng import sample_generator
from awm.lab.boltzmann.accuracy import ESTIMATORS, Accuracy, Proposal, measure, true_fisher
from awm.lab.boltzmann.figure import draw
from awm.lab.boltzmann.flows import METHODS, FlowSettings, Method, train_flow
from awm.lab.boltzmann.judging import describe, judge, sample_flow, true_velocity_samples
from awm.lab.boltzmann.mixture import GaussianMixture, triangle_mixture, unequal_mixture
from awm.lab.boltzmann.summary import Row, accuracy_row, accuracy_table, flow_row, flow_table
from awm.lab.figures import save_figure
from awm.lab.options import experiment_parser
from awm.lab.record import write_result

NAME = "boltzmann"
TARGETS = {"unequal": unequal_mixture, "triangle": triangle_mixture}
PROPOSALS: tuple[Proposal, ...] = ("reverse", "mixture")
DESCRIPTION = """\
Reverse flow matching (arXiv 2601.08136) on two-dimensional Boltzmann targets whose velocity is known: bias and variance
of its estimators over times and numbers of candidates, then a flow trained with each on the log density alone. The
reference "samples" is ordinary flow matching on exact draws. 10-20 minutes on one CPU core."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What is measured.

    Attributes:
        times: of the noisy points.
        sizes: numbers of candidates N.
        points: noisy points for each seed and cell.
        budget: candidates at each point, shared out into sets of N.
        flow_sizes: numbers of candidates that flows are trained with.
        flow: training.
    """

    times: tuple[float, ...] = (0.1, 0.3, 0.5, 0.7, 0.9)
    sizes: tuple[int, ...] = (4, 16, 64, 256)
    points: int = 400
    budget: int = 2048
    flow_sizes: tuple[int, ...] = (16, 64)
    flow: FlowSettings = field(default_factory=FlowSettings)


QUICK = Settings((0.1, 0.5, 0.9), (4, 16), 100, 64, (16,), FlowSettings(steps=30, own=256, sampling_steps=12, width=32))


def main(argv: Sequence[str], program: str) -> int:
    """Run the experiment; returns the exit status.

    Args:
        argv: options, without the experiment's name.
        program: what the user typed before them.
    """
    parser = experiment_parser(program, DESCRIPTION, seeds=3)
    parser.add_argument(
        "--quick", action="store_true", help="tiny sizes: seconds, to see that it works; proves nothing"
    )
    options = parser.parse_args(argv)
    settings, started = QUICK if options.quick else Settings(), time.monotonic()
    accuracy = [row for name in TARGETS for row in measure_all(name, settings, options.seeds)]
    for name in TARGETS:
        for proposal in PROPOSALS:
            print(accuracy_table(accuracy, name, proposal), end="\n\n", flush=True)
    target = unequal_mixture(torch.float32)
    runs, samples = train_all(target, settings, options.seeds)
    flows = summarise_flows(runs)
    print(flow_table(flows))
    unequal = [row for row in accuracy if row["target"] == "unequal"]
    figure = save_figure(draw(unequal, flows, samples, target), options.out, NAME)
    record = write_result(
        options.out,
        NAME,
        command=[*program.split(), *argv],
        settings=asdict(settings) | {"seeds": options.seeds},
        results={"accuracy": accuracy, "flows": flows, "runs": runs, "references": references(target, settings)},
        seconds=time.monotonic() - started,
    )
    print(f"{record}\n{figure}")
    return 0


def measure_all(name: str, settings: Settings, seeds: int) -> list[Row]:
    """Accuracy on one target: a row for each time, proposal, number of candidates and estimator."""
    target = TARGETS[name](torch.float32)
    fisher = true_fisher(target)
    rows = []
    for proposal in PROPOSALS:
        for t in settings.times:
            cells = [
                measure(
                    target,
                    t=t,
                    proposal=proposal,
                    sizes=settings.sizes,
                    seed=seed,
                    fisher=fisher,
                    points=settings.points,
                    budget=settings.budget,
                )
                for seed in range(seeds)
            ]
            print(f"{name} mixture, {proposal} candidates, t = {t}: measured", flush=True)
            rows += [_row(name, proposal, t, size, kind, cells) for size in settings.sizes for kind in ESTIMATORS]
    return rows


def train_all(
    target: GaussianMixture, settings: Settings, seeds: int
) -> tuple[list[dict[str, Any]], dict[str, Tensor]]:
    """A record for each trained flow, and samples of those of seed 0 with the largest N."""
    runs: list[dict[str, Any]] = []
    samples = {"target": target.sample(2000, sample_generator(0, "boltzmann/shown", 0, 0))}
    for method in METHODS:
        for size in settings.flow_sizes if method != "samples" else (None,):
            batch = settings.flow.batch if size is None else replace(settings.flow.batch, num_candidates=size)
            flow = replace(settings.flow, batch=batch)
            for seed in range(seeds):
                run, shown = train_one(target, method, size, flow, seed)
                print(f"{method} N={size} seed {seed}: velocity error {run['velocity_error']:.4f}", flush=True)
                runs.append(run)
                if seed == 0 and method != "samples":
                    samples[method] = shown
    return runs, samples


def train_one(
    target: GaussianMixture, method: Method, size: int | None, flow: FlowSettings, seed: int
) -> tuple[dict[str, Any], Tensor]:
    """Record of one training, and [2000, 2] samples of the flow."""
    trained = train_flow(target, method, flow, seed=seed)
    run: dict[str, Any] = {"method": method, "num_candidates": size, "seed": seed}
    run |= {"clipped_share": trained.clipped_share, "ess_share": trained.ess_share}
    run |= judge(target, trained.velocity, steps=flow.sampling_steps, seed=seed)
    generator = sample_generator(seed, "boltzmann/shown", 0, 1)
    return run, sample_flow(trained.velocity, 2000, generator, steps=flow.sampling_steps)


def summarise_flows(runs: Sequence[dict[str, Any]]) -> list[Row]:
    """A row for each method and number of candidates."""
    keys = list(dict.fromkeys((run["method"], run["num_candidates"]) for run in runs))
    return [
        flow_row(
            {"method": method, "num_candidates": size},
            [run for run in runs if (run["method"], run["num_candidates"]) == (method, size)],
        )
        for method, size in keys
    ]


def references(target: GaussianMixture, settings: Settings) -> dict[str, Any]:
    """What exact draws score, and what the sampler makes of the true velocity."""
    draws = target.sample(100_000, sample_generator(0, "boltzmann/references", 0, 0))
    solver = true_velocity_samples(target, 20_000, steps=settings.flow.sampling_steps)
    return {"exact_samples": describe(target, draws), "true_velocity": solver}


def _row(name: str, proposal: str, t: float, size: int, kind: str, cells: Sequence[dict[Any, Accuracy]]) -> Row:
    key = {"target": name, "proposal": proposal, "t": t, "num_candidates": size, "estimator": kind}
    return accuracy_row(key, [cell[size, kind] for cell in cells])
