"""The options every experiment has, so that they mean the same everywhere."""

from __future__ import annotations

import argparse
from pathlib import Path

OUT = Path("logs/lab")
PUBLISHED = Path("benchmarks/results/lab")
"""Where the published results are; no default, so that a shorter run does not replace them unasked."""


def experiment_parser(program: str, description: str | None, *, seeds: int) -> argparse.ArgumentParser:
    """A parser with ``--seeds N`` (seeds 0 to N - 1) and ``--out FOLDER``.

    Args:
        program: what the user typed, "awm-lab bandits".
        description: what the experiment does; the module's docstring.
        seeds: default number of seeds.
    """
    parser = argparse.ArgumentParser(
        prog=program, description=description, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument(
        "--seeds", type=positive, default=seeds, metavar="N", help=f"runs seeds 0 to N - 1 (default: {seeds})"
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=OUT,
        metavar="FOLDER",
        help=f"for JSON and figure (default: {OUT}; the published results were written with --out {PUBLISHED})",
    )
    return parser


def positive(text: str) -> int:
    """An integer of at least 1, or argparse's own error."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no positive whole number")
    return int(text)
