"""The numbers of the table, worked out by hand."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from awm.held_out.records import Record, write_records
from awm.held_out.results import write_results
from awm.held_out.summary import mean, overall, overall_change, summarise_records, tasks
from awm.held_out.table import columns, notes, task_table
from awm.report.statistics import clustered_mean

STRICT, CORRECT = "geneval.strict", "geneval.correct"


def record(index: int, prompt: str, tag: str, strict: float | None, correct: float | None) -> Record:
    return Record(index, prompt, tag, 0, {"geneval": 0.5, STRICT: strict, CORRECT: correct})


RECORDS = [
    record(0, "two cats", "counting", 1, 1),
    record(1, "two cats", "counting", 1, 1),
    record(2, "six dogs", "counting", 0, 1),
    record(3, "six dogs", "counting", 0, 0),
    record(4, "a cat", "single_object", 1, 1),
    record(5, "a dog", "single_object", 0, 0),
]


def test_the_standard_error_takes_the_images_of_a_prompt_as_one():
    # Mean 1/2, deviations +1/2 +1/2 | -1/2 -1/2: 2 / 1 * (1 + 1) / 16 = 1/4.
    value = clustered_mean([1, 1, 0, 0], ["a", "a", "b", "b"])
    assert (value.n, value.mean, value.standard_error) == (4, 0.5, 0.5)
    # Taken as independent: sd / sqrt(n) = sqrt(1/3) / 2.
    assert clustered_mean([1, 1, 0, 0], range(4)).standard_error == pytest.approx(math.sqrt(1 / 3) / 2)
    missing = clustered_mean([1, None, 0], "abc")
    assert (missing.n, missing.mean) == (2, 0.5)
    assert math.isnan(clustered_mean([None], "a").mean)
    assert math.isnan(clustered_mean([1, 1], "aa").standard_error)


def test_the_headline_is_the_mean_of_the_tasks_in_their_usual_order():
    assert tasks(RECORDS) == ["single_object", "counting"]
    assert (mean(RECORDS, STRICT, "counting").mean, mean(RECORDS, CORRECT, "counting").mean) == (0.5, 0.75)
    # Single object: deviations +-1/2, 2 / 1 * (1/4 + 1/4) / 4 = 1/4. Counting: 1/2 as above.
    assert mean(RECORDS, STRICT, "single_object").standard_error == 0.5
    assert overall(RECORDS, STRICT).mean == 0.5
    assert overall(RECORDS, STRICT).standard_error == pytest.approx(math.hypot(0.5, 0.5) / 2)
    assert overall(RECORDS, CORRECT).mean == pytest.approx((0.5 + 0.75) / 2)
    assert mean(RECORDS, CORRECT).mean == pytest.approx(4 / 6)  # all images together: another number


def test_both_rules_stand_side_by_side():
    # All images, strict: the prompts' sums of deviations are 1, -1, 1/2, -1/2, and 4 / 3 * 2.5 / 36 = 0.304^2.
    shown = columns(RECORDS, ["geneval"])
    assert [(column.score, column.title) for column in shown] == [(STRICT, "strict"), (CORRECT, "official")]
    assert task_table(RECORDS, shown).splitlines() == [
        "| task                      | images |        strict |      official |",
        "|:--------------------------|-------:|--------------:|--------------:|",
        "| single_object             |      2 | 0.500 ± 0.500 | 0.500 ± 0.500 |",
        "| counting                  |      4 | 0.500 ± 0.500 | 0.750 ± 0.250 |",
        "| overall (mean of 2 tasks) |      6 | 0.500 ± 0.354 | 0.625 ± 0.280 |",
        "| all images                |      6 | 0.500 ± 0.304 | 0.667 ± 0.203 |",
    ]


def test_before_and_after_are_paired():
    base = [replace(r, scores={**r.scores, STRICT: 0.0}) for r in RECORDS]
    after = [*RECORDS[:4], RECORDS[4], replace(RECORDS[5], scores={STRICT: None, CORRECT: 1.0}, error="no answer")]
    gain = overall_change(base, after, STRICT)
    # Single object: one pair is left. Counting rose by 1/2.
    assert (gain.before, gain.after, gain.gain) == (0, 0.75, 0.75)
    lines = task_table(after, columns(after, ["geneval"])[:1], base).splitlines()
    assert lines[0] == "| task                      | images | strict before | strict after |  strict change |"
    assert lines[3] == "| counting                  |      4 |         0.000 |        0.500 | +0.500 ± 0.500 |"
    assert "1 image without some score" in notes(after, True) and "no answer" in notes(after, True)


def test_rewards_without_tasks_or_rules_get_a_line_for_all_images():
    records = [Record(i, f"p{i}", "", 0, {"pickscore": i / 10, "pickscore.raw": i}) for i in range(3)]
    shown = columns(records, ["pickscore"])
    assert task_table(records, shown).splitlines()[2:] == ["| all images |      3 | 0.100 ± 0.058 |"]
    assert "tasks" not in summarise_records(records)


def test_the_files_hold_the_same_numbers_and_no_nan(tmp_path: Path):
    alone = [replace(RECORDS[0], index=0)]
    write_records(tmp_path, alone)
    (tmp_path / "base").mkdir()
    write_records(tmp_path / "base", alone)
    (tmp_path / "evaluation.json").write_text(json.dumps({"label": "my weights"}))
    text = write_results(tmp_path, tmp_path / "base", ["geneval.strict"])
    assert (tmp_path / "table.md").read_text() == text + "\n" and text.startswith("my weights, 1 image\n")
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["scores"][STRICT] == {"n": 1, "mean": 1.0, "standard_error": None}
    assert summary["tasks"]["counting"][CORRECT]["mean"] == 1.0
    assert summary["change"]["mean_of_tasks"][STRICT]["gain"] == 0.0
    assert summary["base"]["images"] == 1
