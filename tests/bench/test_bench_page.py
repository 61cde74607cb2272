"""The page: what it says, that it needs nothing but itself, and that it copes with whatever there is."""

from __future__ import annotations

import math
import re
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_up import GRID, an_arm, broken, diverged, finished, settings, tuned
from PIL import Image

from awm.bench.arms import Setting
from awm.bench.cells import coloured, flops, gain, plus_minus
from awm.bench.comparison import compare
from awm.bench.jobs import Record, final_jobs, tuning_jobs
from awm.bench.measures import Estimate
from awm.bench.page import page
from awm.bench.settings import Settings
from awm.bench.small_multiples import nice_ticks, small_multiples
from awm.bench.stability import stability

SETTINGS = settings(seeds=(0, 1, 2), second_seeds=(3, 4, 5))
ARMS = {f"arm{number}": an_arm(f"Rule <{number}>") for number in range(20)}


def comparison_records(finals: dict[str, float], settings: Settings = SETTINGS) -> dict[str, Record]:
    records: dict[str, Record] = {}
    for name, last in finals.items():
        for job, reward in zip(tuning_jobs(name, ARMS[name], settings), (0.5, 0.4), strict=True):
            records[job.name] = tuned(job, [reward, reward])
        for job in final_jobs(name, ARMS[name], GRID[0], settings):
            noise = 0.01 * (job.seed * int(name[3:]) % 3)
            records[job.name] = finished(job, [0.45, 0.5, last + noise], flops=1e12 * (1 + len(name)))
    return records


def written(records: dict[str, Record], folder: Path, settings: Settings = SETTINGS) -> str:
    comparison = compare(ARMS, settings, records)
    return page(comparison, stability(comparison.rows, settings), settings, records, folder, "awm-bench algorithms")


FULL = comparison_records({name: 0.5 + 0.01 * number for number, name in enumerate(ARMS)})


class Balance(HTMLParser):
    """Fails on tags that do not match."""

    empty = frozenset({"meta", "img", "br"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.ids += [values["id"] or ""] if "id" in values else []
        self.links += [value or "" for name, value in attrs if name in ("href", "src")]
        if tag not in self.empty:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.links += [value or "" for name, value in attrs if name in ("href", "src")]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def check(html: str) -> Balance:
    parser = Balance()
    parser.feed(html)
    assert not parser.open and len(parser.ids) == len(set(parser.ids))
    for link in parser.links:
        assert link.startswith("data:") or link.removeprefix("#") in parser.ids, link
    assert not re.search(r"\bnan\b|\binf\b", re.sub(r"<style>.*?</style>|data:[^\"]*", "", html))
    return parser


def test_a_full_page_is_whole_and_needs_nothing_else(tmp_path: Path):
    html = written(FULL, tmp_path)
    check(html)
    assert html.count('class="small"') == 3 * 20
    for title in ("Ranking", "Time to a score", "Score against images", "Score against seconds", "operations"):
        assert title in html
    assert "Rule &lt;19&gt; leads with" in html and "Rule <19>" not in html


def test_the_verdict_names_those_that_are_not_clearly_behind(tmp_path: Path):
    records = comparison_records({"arm1": 0.60, "arm2": 0.599, "arm3": 0.4})
    verdict = re.search(r'class="verdict">(.*?)</p>', written(records, tmp_path))
    assert verdict and "not clearly behind: Rule &lt;2&gt; (95 % t intervals" in verdict[1]
    assert "paired by seed; not adjusted for picking the best" in verdict[1]
    assert "The ranking is stable" in verdict[1]


def test_a_difference_that_all_seeds_share_is_clear_however_much_they_spread(tmp_path: Path):
    records = comparison_records({"arm1": 0.60, "arm2": 0.5})
    for record in records.values():
        if record["stage"] == "final":
            record["curve"][-1]["score"] = (0.5 if record["arm"] == "arm1" else 0.48) + 0.1 * record["seed"]
    assert "all others are clearly behind" in written(records, tmp_path)


def test_a_ranking_that_is_not_stable_is_said_at_the_top(tmp_path: Path):
    records = comparison_records({"arm1": 0.60, "arm2": 0.5, "arm3": 0.4})
    for name, record in records.items():
        if record["stage"] == "final":
            order = (0.6, 0.5, 0.4) if record["seed"] < 3 else (0.4, 0.5, 0.6)
            record["curve"][-1]["score"] = order[int(name[3]) - 1] + 0.01 * (record["seed"] % 3)
    html = written(records, tmp_path)
    assert '<td>1 <small class="beside">0.610 ± ' in html and '<td>3 <small class="beside">0.410 ± ' in html
    assert html.index("NOT stable") < html.index("<h2>") and "Pairs that change places" in html
    check(html)


@pytest.mark.parametrize("only", [{}, {"arm1": 0.6}, {"arm1": 0.3}])
def test_little_is_a_page_too(tmp_path: Path, only: dict[str, float]):
    html = written(comparison_records(only), tmp_path)
    check(html)
    assert ("No arm has a result yet" in html) == (not only)


def test_single_seeds_have_no_errors_and_the_page_says_what_they_are_worth(tmp_path: Path):
    few = settings(seeds=(0,), second_seeds=())
    html = written(comparison_records({"arm1": 0.6, "arm2": 0.5}, few), tmp_path, few)
    check(html)
    assert "fewer than three say little" in html and "Whether the ranking is stable is not known" in html


def test_missing_runs_and_arms_are_told_at_the_top(tmp_path: Path):
    records: dict[str, Any] = comparison_records({"arm1": 0.6, "arm2": 0.5})
    job = final_jobs("arm1", ARMS["arm1"], GRID[0], SETTINGS)[3]
    records[job.name] = broken(job, "disk <full>")
    html = written(records, tmp_path)
    top, below = html.split("<h2>", 1)
    assert "2 of 20 arms; missing: Rule &lt;0&gt;, Rule &lt;3&gt;" in top
    assert top.count("Rule &lt;1&gt; (1 run missing)") == 2
    assert '<span class="down">1 run missing</span>' in below and "disk &lt;full&gt;" in below


def test_an_arm_that_diverged_is_marked_in_table_and_verdict(tmp_path: Path):
    records: dict[str, Any] = comparison_records({"arm1": 0.6, "arm2": 0.5})
    for job in final_jobs("arm1", ARMS["arm1"], GRID[0], SETTINGS)[:2]:
        records[job.name] = diverged(job, [0.6], epochs=3)
    for job in final_jobs("arm3", ARMS["arm3"], GRID[0], SETTINGS):
        records[job.name] = diverged(job, [], epochs=3)
    for job in tuning_jobs("arm3", ARMS["arm3"], SETTINGS):
        records[job.name] = tuned(job, [0.5])
    html = written(records, tmp_path)
    check(html)
    verdict = re.search(r'class="verdict">(.*?)</p>', html)
    assert verdict and "Rule &lt;1&gt; (2 runs diverged) leads" in verdict[1]
    # One that nobody would take for the best is named, too.
    assert "finished: Rule &lt;1&gt; (2 runs diverged), Rule &lt;3&gt; (6 runs diverged)." in verdict[1]
    assert '<span class="down">6 runs diverged</span>' in html and "keeps its last held-out score" in html


def test_nothing_but_runs_that_diverged_is_a_page_too(tmp_path: Path):
    jobs = [*final_jobs("arm1", ARMS["arm1"], GRID[0], SETTINGS)]
    records: dict[str, Record] = {job.name: diverged(job, [], epochs=3) for job in jobs}
    records |= {job.name: tuned(job, [0.5]) for job in tuning_jobs("arm1", ARMS["arm1"], SETTINGS)}
    html = written(records, tmp_path)
    check(html)
    assert "Rule &lt;1&gt; (6 runs diverged) leads" in html and "No arm is above the untrained model" in html


@pytest.mark.parametrize(
    "change, note",
    [
        ({"machine": "another"}, "Made on 2 machines"),
        ({"commit": "another"}, "Made by 2 commits"),
        ({"clean": False}, "uncommitted changes"),
        ({"versions": {"torch": "3"}}, "different versions of the libraries"),
    ],
)
def test_what_the_runs_do_not_share_is_told(tmp_path: Path, change: dict[str, Any], note: str):
    records: dict[str, Any] = comparison_records({"arm1": 0.6, "arm2": 0.5})
    assert note not in written(records, tmp_path).split("<h2>")[0]
    next(iter(records.values())).update(change)
    assert note in written(records, tmp_path).split("<h2>")[0]


def test_how_arms_were_tuned_and_what_favours_whom_is_said(tmp_path: Path):
    html = written(FULL, tmp_path)
    assert "was once tuned for AWM" in html and "held-out prompts are those that earlier development" in html
    assert "half the training images, with seed 100" in html and "(at the edge)" not in html
    declared = settings(seeds=(0, 1, 2), second_seeds=(3, 4, 5), tuning_images=256)
    assert "256 training images, with seed 100" in written(FULL, tmp_path, declared)


def test_a_choice_at_the_edge_of_its_grid_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    grid = (*GRID, Setting("higher", ("--config.train.learning_rate=4e-3",)))
    monkeypatch.setitem(ARMS, "arm1", an_arm("Rule <1>", grid))
    records = {job.name: tuned(job, [0.1]) for job in tuning_jobs("arm1", ARMS["arm1"], SETTINGS)}
    html = written(records, tmp_path)
    assert "(at the edge)" in html and "a better one may lie beyond: Rule &lt;1&gt;" in html


def test_the_horizon_of_seconds_is_explained_with_the_spread_of_the_runs(tmp_path: Path):
    records: dict[str, Any] = comparison_records({"arm1": 0.6, "arm2": 0.5})
    for point in records["arm1-low-seed3"]["curve"]:
        point["seconds"] *= 3
    html = written(records, tmp_path)
    assert (
        "30 s<small>30 s to</small><small>1 min 30 s</small>" in html
        and "30 s<small>30 s to</small><small>30 s</small>" in html
    )
    assert "no run was planned for a budget of seconds" in html and "median run of the fastest arm" in html


def test_every_arm_says_what_it_changes_in_the_quickstart(tmp_path: Path):
    records = comparison_records({"arm1": 0.6, "arm2": 0.5})
    records["arm1-low-seed0"]["changes"] = {"train.algorithm": "<x>", "train.lora_path": None}
    html = written(records, tmp_path)
    check(html)
    assert "train.algorithm=&lt;x&gt;, train.lora_path=unset" in html and ">none</td>" in html


def test_arms_beyond_their_guards_are_red(tmp_path: Path):
    records = comparison_records({"arm1": 0.6})
    html = written(records, tmp_path)
    assert '<span class="down">' not in html
    for record in records.values():
        if "velocity_norm_ratio" in record:
            record["velocity_norm_ratio"][-1] = 1.5
    assert '<span class="down">1.500</span>' in written(records, tmp_path)


def test_pictures_are_of_the_first_seed_that_all_arms_have(tmp_path: Path):
    records = comparison_records({"arm1": 0.6, "arm2": 0.5})
    del records["arm2-low-seed0"]
    (tmp_path / "records").mkdir()
    for name in ("untrained", "arm1-low-seed0", "arm1-low-seed1", "arm2-low-seed1"):
        Image.fromarray(np.zeros((8, 256, 3), np.uint8)).save(tmp_path / "records" / f"{name}.jpg")
    html = written(records, tmp_path)
    check(html)
    assert html.count("data:image/jpeg") == 3 and "a photo of a &lt;circle&gt;" in html and "seed 1, the first" in html
    assert html.index("Untrained model: held-out") < html.index("Rule &lt;1&gt;: held-out images")


@pytest.mark.parametrize("low, high", [(0.4, 0.6), (0.0, 1.0), (0.407, 0.413), (0.5, 0.5), (-3.0, 12.0)])
def test_ticks_are_round_and_enclose_the_values(low: float, high: float):
    ticks = nice_ticks(low, high)
    assert ticks[0] <= low + 1e-9 and ticks[-1] >= high - 1e-9 and 2 <= len(ticks) <= 7
    steps = {round(b - a, 9) for a, b in pairwise(ticks)}
    assert len(steps) == 1 and f"{steps.pop():.0e}"[0] in "125"


def test_curves_stay_inside_of_their_plot():
    rows = compare(ARMS, SETTINGS, FULL).rows
    for axis in ("images", "seconds", "flops"):
        svg = small_multiples(rows, axis, 0.4, lambda x: f"{x:g}")
        for path in re.findall(r'class="(?:mine|grey)" d="M([^"]*)"', svg):
            for point in path.split("L"):
                x, y = map(float, point.split())
                assert 0 <= x <= 240 and 0 <= y <= 138


def test_cells():
    assert plus_minus(Estimate(3, 0.5, 0.0123)) == "0.500 ± 0.012"
    assert plus_minus(Estimate(1, 0.5, math.nan)) == "0.500"
    assert [flops(value) for value in (1.5e15, 2e12, 3e9, 5e6)] == ["1.5 PFLOP", "2 TFLOP", "3 GFLOP", "0.005 GFLOP"]
    assert gain(-0.0123, 0.001) == "−0.012 ± 0.001" and gain(0.5, math.nan) == "+0.500" and gain(math.nan, 0.1) == "–"
    assert coloured("x", is_good=True) == "x" and "down" in coloured("x", is_good=False)
