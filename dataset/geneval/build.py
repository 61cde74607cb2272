"""Write train.jsonl and test.jsonl: GenEval-style prompts with the metadata that its reward needs.

    python -m dataset.geneval.build                                    # the committed files
    python -m dataset.geneval.build --num-train 50000 --out /data/geneval_50k
    python -m dataset.geneval.build --official download --out /data/geneval_official

The test prompts have the per-task counts of the benchmark. No training prompt asks for the same image as a test
prompt, whatever the order of its words.
"""

from __future__ import annotations

import argparse
import json
import random
from collections import Counter
from collections.abc import Collection, Hashable, Mapping, Sequence
from pathlib import Path

from awm.data.prompts import geneval
from dataset.fetch import fetch
from dataset.files import builder_parser, numbered_lines, positive, run, unique, write_lines
from dataset.geneval.tasks import TASKS, Record, meaning

FOLDER = Path(__file__).resolve().parent
NUM_TRAIN = 5100
OFFICIAL_URL = "https://raw.githubusercontent.com/djghosh13/geneval/main/prompts/evaluation_metadata.jsonl"
DOWNLOAD = "download"
TEST_COUNTS = {"single_object": 80, "two_object": 99, "counting": 80, "colors": 94, "position": 100, "color_attr": 100}
RATIO = {"position": 7, "counting": 5, "color_attr": 3, "colors": 1, "two_object": 1, "single_object": 0}
"""Training mixture of Flow-GRPO, https://arxiv.org/abs/2505.05470: more of what the base model fails at."""


def test_records(seed: int) -> list[Record]:
    """Our own test set: 553 different scenes, task by task."""
    rng = random.Random(f"geneval test {seed}")
    records: list[Record] = []
    for name, count in TEST_COUNTS.items():
        task = TASKS[name]
        # At most two prompts share a meaning, so twice as many are always enough.
        numbers = rng.sample(range(task.size), min(task.size, 2 * count))
        records += unique(map(task.record, numbers), meaning)[:count]
    return records


def train_records(num_train: int, ratio: Mapping[str, float], seed: int, test: Sequence[Record]) -> list[Record]:
    """Training prompts in the given mixture, none of which asks for the same scene as a test prompt.

    A task with fewer prompts than its share repeats them evenly, which keeps the mixture.

    Raises:
        ValueError: a task has no prompt left that is not in the test set.
    """
    rng = random.Random(f"geneval train {seed}")
    taken = {meaning(record) for record in test}
    records: list[Record] = []
    for name, count in shares(num_train, ratio).items():
        records += _draw(name, count, taken, rng)
    rng.shuffle(records)
    return records


def shares(total: int, ratio: Mapping[str, float]) -> dict[str, int]:
    """Split ``total`` among the tasks by weight; what rounding leaves over goes to the largest remainders."""
    exact = {name: total * ratio.get(name, 0) / sum(ratio.values()) for name in TASKS}
    counts = {name: int(value) for name, value in exact.items()}
    by_remainder = sorted(TASKS, key=lambda name: counts[name] - exact[name])
    for name in by_remainder[: total - sum(counts.values())]:
        counts[name] += 1
    return counts


def _draw(name: str, count: int, taken: Collection[Hashable], rng: random.Random) -> list[Record]:
    if count == 0:
        return []
    task = TASKS[name]
    numbers = rng.sample(range(task.size), min(task.size, count + 2 * len(taken)))
    pool = [record for record in map(task.record, numbers) if meaning(record) not in taken]
    if not pool:
        raise ValueError(
            f"every {name} prompt is in the test set, so none is left for training; leave {name} out of --ratio"
        )
    return [pool[i % len(pool)] for i in range(count)]


def read_metadata(path: Path) -> list[Record]:
    """Read and check a metadata file in GenEval's format, such as the official evaluation_metadata.jsonl.

    Raises:
        ValueError: naming the file, the line and the field at fault.
    """
    records = []
    for number, line in numbered_lines(path):
        try:
            _, record = geneval(line)
            meaning(record)
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: {error}") from error
        records.append(record)
    if not records:
        raise ValueError(f"{path} holds no prompts")
    return records


def without(records: Sequence[Record], test: Sequence[Record]) -> list[Record]:
    """The records that ask for no scene of the test set.

    Raises:
        ValueError: none is left.
    """
    taken = {meaning(record) for record in test}
    kept = [record for record in records if meaning(record) not in taken]
    if not kept:
        raise ValueError("every training prompt is in the test set; give another file to --train-from")
    return kept


def parse_ratio(text: str) -> dict[str, float]:
    """``position=7,counting=5`` -> weights; tasks that are not named get 0."""
    ratio: dict[str, float] = {}
    for part in text.split(","):
        name, _, weight = (piece.strip() for piece in part.partition("="))
        if name not in TASKS:
            raise argparse.ArgumentTypeError(f"unknown task {name!r}; the tasks are {', '.join(TASKS)}")
        try:
            ratio[name] = float(weight)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{part.strip()!r} is not TASK=NUMBER, such as {name}=3") from None
    if not all(0 <= weight < float("inf") for weight in ratio.values()) or not sum(ratio.values()):
        raise argparse.ArgumentTypeError("weights must be finite, not negative, and not all 0")
    return ratio


def build(args: argparse.Namespace) -> None:
    """Write both files and say what is in them.

    Raises:
        ValueError: a given file is missing or malformed, or the mixture cannot be made.
    """
    if args.official == Path(DOWNLOAD):
        args.official = fetch(OFFICIAL_URL)
    test = read_metadata(args.official) if args.official else test_records(args.seed)
    if args.train_from:
        train = without(read_metadata(args.train_from), test)
    else:
        train = train_records(args.num_train, args.ratio, args.seed, test)
    for split, records in (("train", train), ("test", test)):
        path = args.out / f"{split}.jsonl"
        write_lines(path, [json.dumps(record, ensure_ascii=False) for record in records])
        _report(path, records)
    if args.official and Counter(record["tag"] for record in test) != TEST_COUNTS:
        print(f"Note: {args.official} does not have the benchmark's counts {TEST_COUNTS}; do not call it GenEval.")


def _report(path: Path, records: Sequence[Record]) -> None:
    lines = Counter(record["tag"] for record in records)
    different = Counter(record["tag"] for record in unique(records, lambda record: record["prompt"]))
    repeated = {name: f" ({different[name]} different)" for name in TASKS if different[name] < lines[name]}
    tasks = ", ".join(f"{name} {lines[name]}{repeated.get(name, '')}" for name in TASKS if lines[name])
    print(f"{path}: {len(records)} prompts: {tasks}")


def parser() -> argparse.ArgumentParser:
    """The command line."""
    options = builder_parser("geneval", "Write train.jsonl and test.jsonl of GenEval-style prompts.", FOLDER)
    options.add_argument(
        "--num-train", type=positive, default=NUM_TRAIN, help="number of training prompts (default: %(default)s)"
    )
    mixture = ",".join(f"{name}={weight}" for name, weight in RATIO.items())
    options.add_argument(
        "--ratio", type=parse_ratio, default=RATIO, help=f"training mixture, TASK=WEIGHT,... (default: {mixture})"
    )
    options.add_argument(
        "--official",
        type=Path,
        metavar="PATH",
        help=f"take the test set from GenEval's evaluation_metadata.jsonl; `{DOWNLOAD}` fetches it from {OFFICIAL_URL}",
    )
    options.add_argument(
        "--train-from", type=Path, metavar="PATH", help="take the training set from this file, less the test scenes"
    )
    return options


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point."""
    run(parser(), build, argv)


if __name__ == "__main__":
    main()
