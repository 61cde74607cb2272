"""SiMPO on one-dimensional bandits: which weighting finds the better of two optima (arXiv 2603.10250, section 5.1).

Figure 2 asks whether negative weights let a policy leave a lower optimum it starts on, figure 3 which shape of weights
suits broad and sharp optima. The paper gives neither the rewards nor the numbers of its loop; these are ours.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict

from awm.lab.bandits.learning import History, learn
from awm.lab.bandits.plots import draw
from awm.lab.bandits.policy import BanditPolicy, pretrained
from awm.lab.bandits.studies import STUDIES, Study
from awm.lab.bandits.summary import record, text_table
from awm.lab.figures import save_figure
from awm.lab.options import experiment_parser
from awm.lab.record import write_result


def main(argv: Sequence[str], program: str) -> int:
    """Run the studies, print their tables, write bandits.json and bandits.png."""
    parser = experiment_parser(program, __doc__, seeds=64)
    parser.add_argument(
        "--study",
        nargs="+",
        choices=list(STUDIES),
        metavar="NAME",
        help=f"only these of {', '.join(STUDIES)} (default: all)",
    )
    parser.add_argument(
        "--redraw", action="store_true", help="draw the figure of FOLDER/bandits.json again, run nothing"
    )
    options = parser.parse_args(argv)
    if options.redraw:
        kept = json.loads((options.out / "bandits.json").read_text())
        print(save_figure(draw(kept["results"]), options.out, "bandits"))
        return 0
    started = time.monotonic()
    chosen = {name: STUDIES[name] for name in options.study or STUDIES}
    results = {}
    for name, runs in run(chosen, range(options.seeds)):
        results[name] = record(chosen[name], runs)
        print(f"{text_table(chosen[name], runs)}\n", flush=True)
    path = write_result(
        options.out,
        "bandits",
        command=[*program.split(), *argv],
        settings={"seeds": options.seeds, "studies": {name: asdict(study) for name, study in chosen.items()}},
        results=results,
        seconds=time.monotonic() - started,
    )
    print(path, save_figure(draw(results), options.out, "bandits"), sep="\n")
    return 0


def run(studies: Mapping[str, Study], seeds: Sequence[int]) -> Iterable[tuple[str, dict[str, History]]]:
    """The histories of each study's arms; equal initial policies are trained once."""
    initial: dict[tuple[float, float, float | None], BanditPolicy] = {}
    for name, study in studies.items():
        loop = study.loop
        key = (loop.mean, loop.std, loop.bound)
        if key not in initial:
            initial[key] = pretrained(seeds, mean=loop.mean, std=loop.std, bound=loop.bound)
        yield name, {arm.name: learn(initial[key], loop, arm, seeds) for arm in study.arms}
