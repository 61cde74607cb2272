"""The command line of ``awm-bench algorithms``."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from awm.bench.arms import ARMS
from awm.bench.jobs import Stage
from awm.bench.settings import Settings

OUT = Path("logs/algorithms")
STAGES: dict[str, tuple[Stage, ...]] = {"tune": ("tune",), "final": ("final",), "page": (), "all": ("tune", "final")}
SETTINGS = ("images", "seconds", "evaluations", "prompts", "tuning_images", "tuning_seed", "seeds", "second_seeds")


def parse_options(argv: Sequence[str], program: str, description: str | None) -> argparse.Namespace:
    """The options, with ``given``, the settings the user asked for by name, and ``stages``, what is to run.

    Raises:
        ValueError: an argument that is neither an option nor an override of the trainer's configuration.
    """
    options, words = _parser(program, description).parse_known_args(argv)
    for word in words:
        if not word.startswith("--config."):
            raise ValueError(f"unknown argument {word!r}; see {program} --help.")
    options.given = _given(options, words)
    options.stages = STAGES[options.stage]
    return options


def _given(options: argparse.Namespace, words: Sequence[str]) -> Mapping[str, Any]:
    values = {name: getattr(options, name) for name in SETTINGS}
    given = {name: tuple(v) if isinstance(v, list) else v for name, v in values.items() if v is not None}
    return given | ({"overrides": tuple(words)} if words else {})


def _parser(program: str, description: str | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=program,
        description=description,
        epilog="Any --config.section.key=value goes to every run. arms: " + ", ".join(ARMS),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    default = Settings()
    add = parser.add_argument
    add("--out", type=Path, default=OUT, metavar="FOLDER", help=f"of the comparison; made if missing (default: {OUT})")
    add(
        "--arms", nargs="+", metavar="ARM", help="run only these (default: all); the page shows every arm that has runs"
    )
    add("--stage", choices=list(STAGES), default="all", help="grids, chosen settings, or only the page (default: all)")
    add("--jobs", type=_positive, metavar="N", help="runs at a time, a thread each (default: number of cores)")
    add("--keep", action="store_true", help="keep the run folders, with their checkpoints, in FOLDER/logs")
    fixed = parser.add_argument_group("the comparison, as the folder was begun or by default")
    fixed.add_argument("--images", type=int, metavar="N", help=f"training images of a run ({default.images})")
    fixed.add_argument("--seconds", type=float, metavar="S", help="also compare after so much training (fastest arm)")
    fixed.add_argument(
        "--evaluations", type=int, metavar="N", help=f"of a run, beside the first ({default.evaluations})"
    )
    fixed.add_argument("--prompts", type=int, metavar="N", help=f"held-out, two images each ({default.prompts})")
    fixed.add_argument(
        "--tuning-images", type=int, metavar="N", help="of a run that tries a setting (half of --images)"
    )
    fixed.add_argument("--tuning-seed", type=int, metavar="K", help=f"never reported ({default.tuning_seed})")
    fixed.add_argument("--seeds", type=int, nargs="+", metavar="K", help="0 1 2")
    fixed.add_argument("--second-seeds", type=int, nargs="*", metavar="K", help="3 4 5; would they rank alike?")
    return parser


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no positive whole number")
    return int(text)
