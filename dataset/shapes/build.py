"""Write train.jsonl and test.jsonl of the shapes world: python -m dataset.shapes.build [--out FOLDER].

The held-out file has 40 lines of every task, so that the mean over its images is the mean over the six tasks, and
the training file has 60, so that all are practised equally. A task with fewer prompts than lines repeats them; every
line is a group of its own, and an evaluation starts each from other noise.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Mapping
from itertools import cycle, islice
from pathlib import Path

from awm.tiny.prompts import TASKS, Record, test_records, train_records
from dataset.files import write_lines

FOLDER = Path(__file__).resolve().parent
TRAIN_LINES: Mapping[str, int] = dict.fromkeys(TASKS, 60)
TEST_LINES: Mapping[str, int] = dict.fromkeys(TASKS, 40)


def with_lines_per_task(records: list[Record], lines: Mapping[str, int]) -> list[Record]:
    """``lines[task]`` records of each task, in order, from the start again when they run out."""
    return [r for task, n in lines.items() for r in islice(cycle([r for r in records if r["tag"] == task]), n)]


def write(path: Path, records: list[Record]) -> None:
    """One JSON record per line, in order."""
    write_lines(path, [json.dumps(record) for record in records])
    print(f"{path.name}: {len(records)} prompts, {dict(Counter(r['tag'] for r in records))}")


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description="Write the prompts of the shapes world.")
    parser.add_argument("--out", type=Path, default=FOLDER, help="folder to write into (default: this one)")
    folder = parser.parse_args().out
    write(folder / "train.jsonl", with_lines_per_task(train_records(), TRAIN_LINES))
    write(folder / "test.jsonl", with_lines_per_task(test_records(), TEST_LINES))


if __name__ == "__main__":
    main()
