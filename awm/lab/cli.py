"""``awm-lab EXPERIMENT [options]``: runs one small problem and writes its numbers (JSON) and its figure (PNG)."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass

from awm.registry import Registry

PROGRAM = "awm-lab"
INSTALL = "pip install -e '.[lab]'"


@dataclass(frozen=True, slots=True)
class Experiment:
    """One line of the list: where an experiment lives and the question it answers."""

    path: str
    question: str


EXPERIMENTS = {
    "bandits": Experiment("awm.lab.bandits:main", "SiMPO: which weighting finds the best of two arms, and how fast"),
    "boltzmann": Experiment(
        "awm.lab.boltzmann:main", "RFM: bias and variance of the estimators on 2-D Boltzmann targets"
    ),
    "matching": Experiment("awm.lab.matching:main", "AWM: what matching noisy targets costs against clean ones"),
    "control": Experiment("awm.lab.control:main", "SiMPO and RFM as online RL on MuJoCo locomotion (needs gymnasium)"),
    "sequences": Experiment("awm.lab.sequences:main", "SiMPO on a masked-diffusion model of regulatory DNA sequences"),
}
REGISTRY = Registry("experiment", {name: experiment.path for name, experiment in EXPERIMENTS.items()})


def usage() -> str:
    """What ``--help`` prints: the experiments, one line each."""
    rows = "\n".join(f"  {name:<11}{experiment.question}" for name, experiment in EXPERIMENTS.items())
    return (
        f"usage: {PROGRAM} EXPERIMENT [options]\n\n"
        f"Small problems with known answers; each writes FOLDER/EXPERIMENT.json and .png and prints its table.\n\n"
        f"experiments:\n{rows}\n\n"
        f"{PROGRAM} EXPERIMENT --help lists the options of one; all have --seeds N and --out FOLDER."
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the experiment that ``argv`` (without the program's name) asks for.

    Returns:
        The exit status: the experiment's own, 0 for help, 1 for a mistake of the user, 130 after Ctrl-C.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(usage())
        return 0
    name, rest = arguments[0], arguments[1:]
    try:
        run = REGISTRY.load(name)
        return int(run(rest, f"{PROGRAM} {name}"))
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] == "awm":
            raise
        print(f"error: {name} needs the package {error.name!r}, which is not installed; {INSTALL}", file=sys.stderr)
    except (ValueError, OSError, FloatingPointError) as error:
        print(f"error: {error}", file=sys.stderr)
    except KeyboardInterrupt:
        return 130
    return 1
