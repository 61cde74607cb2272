"""The command line of ``awm-bench throughput``."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from awm.bench.throughput.models import MODELS
from awm.bench.throughput.sweep import SWEEPS

OUT = "logs/throughput"
ROUNDS = {"cpu": 3, "cuda": 3}
MINUTES = {"cpu": 30.0, "cuda": 7.5}


def parse_options(argv: Sequence[str], program: str, description: str | None) -> argparse.Namespace:
    """The options, with ``words``, the overrides of the configuration, and what follows from the device filled in.

    Raises:
        ValueError: an argument that is neither an option nor an override, or options that exclude each other.
    """
    options, words = _parser(program, description).parse_known_args(argv)
    for word in words:
        if not word.startswith("--config."):
            raise ValueError(f"unknown argument {word!r}; see {program} --help.")
    options.words = tuple(words)
    if options.sweep and (options.variants or options.profile):
        raise ValueError("--sweep measures the default at several sizes; leave out --variants and --profile.")
    if options.points and not options.sweep:
        raise ValueError("--points are the sizes of a --sweep; give one, such as --sweep resolution.")
    if options.sweep == "world_size" and (options.model != "tiny" or options.device != "cpu"):
        raise ValueError(
            "--sweep world_size starts processes on this machine's cores: give --model tiny --device cpu. On several "
            "GPUs start the benchmark itself with torchrun --nproc_per_node N -m awm.bench throughput."
        )
    if options.text_encoders != "full" and not MODELS[options.model].weightless:
        raise ValueError(f"--text-encoders {options.text_encoders} is for --model sd35m_random.")
    options.epochs = options.epochs or ROUNDS[options.device]
    options.minutes = options.minutes or MINUTES[options.device]
    options.out = options.out or Path(OUT) / (
        f"{options.model}_{options.device}" + (f"_{options.sweep}" if options.sweep else "") + ".json"
    )
    return options


def check_writable(file: Path) -> None:
    """Make the folder of ``file``, which is written only after minutes.

    Raises:
        ValueError: it cannot be written there.
    """
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        fault = "it is a folder" if file.is_dir() else "" if os.access(file.parent, os.W_OK) else "no permission"
    except OSError as error:
        fault = f"{error.strerror}: {error.filename}"
    if fault:
        raise ValueError(f"--out {file} cannot be written ({fault}); give a file in a folder of yours.")


def _parser(program: str, description: str | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=program,
        description=description,
        epilog="Any --config.section.key=value changes the configuration that is measured.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--model", choices=list(MODELS), default="tiny", help="tiny, or SD3.5 Medium's sizes with random weights")
    add("--device", choices=["cpu", "cuda"], default="cpu", help="(default: cpu)")
    add("--variants", nargs="+", metavar="NAME", default=[], help="only these, and the default (all; see above)")
    add("--epochs", type=_positive, metavar="N", help=f"of each variant that count, one a round ({ROUNDS['cpu']})")
    add("--warmup", type=_positive, metavar="N", default=1, help="of each variant before them (1)")
    add("--minutes", type=_positive_number, metavar="M", help="nothing more is begun after so long (CPU 30, CUDA 7.5)")
    add("--reward-ms", type=_number, metavar="MS", default=0.0, help="of scoring an image, by the stub reward (0)")
    add("--tied", type=_share, metavar="F", default=0.5, help="share of prompts whose images all score alike (0.5)")
    add("--text-encoders", choices=["full", "small"], default="full", help="small: T5 with 2 of its 24 layers")
    add("--profile", action="store_true", help="also trace an epoch of the default, and of --variants")
    add("--sweep", choices=SWEEPS, help="instead of variants, the default as work grows")
    add("--points", type=_positive, nargs="+", metavar="N", help="sizes of the sweep, instead of the model's own")
    add("--out", type=Path, metavar="FILE.json", help=f"(default: {OUT}/MODEL_DEVICE.json); traces go beside it")
    return parser


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no positive whole number")
    return int(text)


def _number(text: str) -> float:
    try:
        value = float(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no number") from error
    if not 0 <= value < 1e9:
        raise argparse.ArgumentTypeError(f"{text!r} is below 0 or too large")
    return value


def _positive_number(text: str) -> float:
    if _number(text) == 0:
        raise argparse.ArgumentTypeError("0 is no time")
    return _number(text)


def _share(text: str) -> float:
    if _number(text) > 1:
        raise argparse.ArgumentTypeError(f"{text!r} is more than all of them; give a share from 0 to 1")
    return _number(text)
