"""Write train.txt and test.txt: descriptions of pictures, for rewards that need nothing but the prompt.

    python -m dataset.pickscore.build                                        # the committed files
    python -m dataset.pickscore.build --num-train 20000 --out /data/pictures_20k
    python -m dataset.pickscore.build --from-hub --out /data/pickapic
    python -m dataset.pickscore.build --from-parquet captions.parquet --column caption --num-test 500 --out /data/mine

No scene (subject and setting) of the test set occurs in training.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path

from dataset.fetch import fetch_shards
from dataset.files import builder_parser, hold_out, numbered_lines, one_line, positive, run, unique, write_lines
from dataset.pickscore.vocabulary import DETAILS, LAYOUTS, STYLES, THEMES

FOLDER = Path(__file__).resolve().parent
PICK_A_PIC = "yuvalkirstain/pickapic_v1_no_images"
NUM_TRAIN = 2500
NUM_TEST = 200
HELD_OUT = 0.08
"""Fraction of the scenes that only the test set shows."""


def scenes() -> list[str]:
    """Every subject in every setting of its theme."""
    return [" ".join(pair) for theme in THEMES for pair in product(theme.subjects, theme.settings)]


def generate(num_train: int, num_test: int, seed: int) -> tuple[list[str], list[str]]:
    """Different (train, test) prompts, drawn from the vocabulary.

    Raises:
        ValueError: more are asked for than there are.
    """
    rng = random.Random(f"pickscore {seed}")
    everything = scenes()
    order = rng.sample(everything, len(everything))
    split = round(HELD_OUT * len(order))
    train = _draw(order[split:], num_train, rng, "--num-train")
    return train, _draw(order[:split], num_test, rng, "--num-test")


def _draw(chosen: Sequence[str], count: int, rng: random.Random, option: str) -> list[str]:
    """``count`` different prompts; the scenes take turns, each time in another style."""
    available = len(chosen) * len(STYLES)
    if count > available:
        raise ValueError(f"{option} {count} is more than the {available} prompts the vocabulary allows")
    prompts: dict[str, None] = {}
    turn = 0
    while len(prompts) < count:
        prompts[_prompt(chosen[turn % len(chosen)], rng)] = None
        turn += 1
    return list(prompts)


def _prompt(scene: str, rng: random.Random) -> str:
    text = rng.choice(LAYOUTS).format(scene=scene, style=rng.choice(STYLES), detail=rng.choice(DETAILS))
    return text[0].upper() + text[1:]


def convert(captions: Sequence[str], num_train: int | None, num_test: int, seed: int) -> tuple[list[str], list[str]]:
    """Captions without repetitions, split at random; case and white space do not make two captions different.

    Empty captions are dropped, and so are those that start with "{", which a prompt file reserves for JSON.

    Raises:
        ValueError: too few captions are left.
    """
    lines = [one_line(caption) for caption in captions]
    usable = unique((line for line in lines if line and not line.startswith("{")), str.casefold)
    train, test = hold_out(usable, str.casefold, num_test, seed)
    if num_train is not None and num_train < len(train):
        keep = random.Random(f"pickscore convert {seed}").sample(range(len(train)), num_train)
        train = [train[i] for i in sorted(keep)]
    return train, test


def read_jsonl(path: Path, column: str) -> list[str]:
    """The values of ``column`` in a file with one JSON object per line.

    Raises:
        ValueError: naming the first line that is not such an object.
    """
    return list(_jsonl_values(path, column))


def _jsonl_values(path: Path, column: str) -> Iterator[str]:
    for number, line in numbered_lines(path):
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}, line {number}: not valid JSON ({error.msg} at column {error.colno})") from error
        if not isinstance(record, dict):
            raise ValueError(f"{path}, line {number}: expected a JSON object, found {type(record).__name__}")
        if not isinstance(record.get(column), str):
            raise ValueError(f"{path}, line {number}: no text under {column!r}; the keys are {sorted(record)}")
        yield record[column]


def read_parquet(path: Path, column: str) -> list[str]:
    """The values of ``column``, missing ones left out; other columns, such as images, are not read.

    Raises:
        ValueError: pyarrow is not installed, or there is no such file or text column.
    """
    if not path.is_file():
        raise ValueError(f"there is no file {path}")
    try:
        from pyarrow import ArrowInvalid, parquet  # type: ignore[import-not-found, import-untyped, unused-ignore]
    except ImportError:
        raise ValueError("reading parquet files needs pyarrow: pip install pyarrow") from None
    try:
        names = parquet.read_schema(path).names
    except ArrowInvalid as error:
        raise ValueError(f"{path} is not a parquet file: {error}") from error
    if column not in names:
        raise ValueError(f"{path} has no column {column!r}; give one of these with --column: {', '.join(names)}")
    values = [value for value in parquet.read_table(path, columns=[column])[column].to_pylist() if value is not None]
    if not all(isinstance(value, str) for value in values):
        raise ValueError(f"column {column!r} of {path} does not hold text")
    return values


def build(args: argparse.Namespace) -> None:
    """Write both files and say what is in them.

    Raises:
        ValueError: the given file is missing or malformed, or there are not enough prompts.
    """
    if args.from_hub or args.from_parquet or args.from_jsonl:
        captions = _given_captions(args)
        train, test = convert(captions, args.num_train, args.num_test, args.seed)
        print(f"{len(captions)} captions, {len(train) + len(test)} used")
    else:
        train, test = generate(args.num_train or NUM_TRAIN, args.num_test, args.seed)
    for split, prompts in (("train", train), ("test", test)):
        path = args.out / f"{split}.txt"
        write_lines(path, prompts)
        print(f"{path}: {len(prompts)} prompts")


def _given_captions(args: argparse.Namespace) -> list[str]:
    if args.from_jsonl:
        return read_jsonl(args.from_jsonl, args.column)
    files = fetch_shards(args.from_hub, args.split) if args.from_hub else [args.from_parquet]
    return [caption for file in files for caption in read_parquet(file, args.column)]


def parser() -> argparse.ArgumentParser:
    """The command line."""
    options = builder_parser("pickscore", "Write train.txt and test.txt of picture descriptions.", FOLDER)
    options.add_argument(
        "--num-train", type=positive, help=f"training prompts (default: {NUM_TRAIN}, or all there are in a given file)"
    )
    options.add_argument(
        "--num-test", type=positive, default=NUM_TEST, help="number of test prompts (default: %(default)s)"
    )
    source = options.add_mutually_exclusive_group()
    source.add_argument(
        "--from-parquet", type=Path, metavar="PATH", help="use the captions in this file (needs pyarrow)"
    )
    source.add_argument(
        "--from-hub",
        metavar="ID",
        nargs="?",
        const=PICK_A_PIC,
        help=f"download the captions of a data set on the Hugging Face hub (default: {PICK_A_PIC}; needs pyarrow)",
    )
    options.add_argument("--split", default="train", help="of that data set (default: %(default)s)")
    source.add_argument("--from-jsonl", type=Path, metavar="PATH", help="use the captions in this file")
    options.add_argument(
        "--column", default="caption", help="where the captions are in that file (default: %(default)s)"
    )
    return options


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point."""
    run(parser(), build, argv)


if __name__ == "__main__":
    main()
