"""What the builders share: reading and writing prompt files, seeded splits, and the common command line."""

from __future__ import annotations

import argparse
import random
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")


def write_lines(path: Path, lines: Sequence[str]) -> None:
    """Write one prompt per line, replacing the file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def numbered_lines(path: Path) -> Iterator[tuple[int, str]]:
    """(line number, stripped line) of every line that is not blank.

    Raises:
        ValueError: there is no such file.
    """
    if not path.is_file():
        raise ValueError(f"there is no file {path}")
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), start=1):
        if line.strip():
            yield number, line.strip()


def one_line(text: str) -> str:
    """The text with every run of white space, line breaks included, turned into one space."""
    return " ".join(text.split())


def hold_out(items: Sequence[T], key: Callable[[T], Hashable], num_test: int, seed: int) -> tuple[list[T], list[T]]:
    """Split into (train, test) such that no key occurs on both sides.

    Whole keys move to the test side, in random order, until it has ``num_test`` items; a key that would
    overshoot contributes only its first items, and the others are dropped. File order is kept on both sides.

    Raises:
        ValueError: nothing would be left for training, or the test side cannot be filled.
    """
    held_out = _keys_for(num_test, [key(item) for item in items], seed)
    train = [item for item in items if key(item) not in held_out]
    test = [item for item in items if key(item) in held_out][:num_test]
    if not train or len(test) < num_test:
        raise ValueError(
            f"{len(items)} prompts are too few to hold out {num_test} for testing and keep others for training; "
            f"lower --num-test"
        )
    return train, test


def _keys_for(num_test: int, keys: Sequence[Hashable], seed: int) -> set[Hashable]:
    sizes: dict[Hashable, int] = {}
    for key in keys:
        sizes[key] = sizes.get(key, 0) + 1
    order = list(sizes)
    random.Random(seed).shuffle(order)
    chosen: set[Hashable] = set()
    total = 0
    for key in order:
        if total >= num_test:
            break
        chosen.add(key)
        total += sizes[key]
    return chosen


def unique(items: Iterable[T], key: Callable[[T], Hashable]) -> list[T]:
    """The first item of every key, in order."""
    first: dict[Hashable, T] = {}
    for item in items:
        first.setdefault(key(item), item)
    return list(first.values())


def builder_parser(task: str, description: str, folder: Path) -> argparse.ArgumentParser:
    """A parser with the options every builder has: --out and --seed."""
    parser = argparse.ArgumentParser(prog=f"python -m dataset.{task}.build", description=description)
    parser.add_argument("--out", type=Path, default=folder, help=f"folder to write to (default: dataset/{task})")
    parser.add_argument(
        "--seed", type=int, default=0, help="the same seed and options give the same files (default: %(default)s)"
    )
    return parser


def positive(text: str) -> int:
    """An integer of at least 1, for argparse."""
    if not text.strip().isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not an integer of at least 1")
    return int(text)


def run(
    parser: argparse.ArgumentParser, build: Callable[[argparse.Namespace], None], argv: Sequence[str] | None
) -> None:
    """Parse, build, and turn a ValueError into one line and exit code 2."""
    args = parser.parse_args(argv)
    try:
        build(args)
    except ValueError as error:
        parser.exit(2, f"{parser.prog}: error: {error}\n")
