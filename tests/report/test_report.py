"""What report.html promises: one file that needs nothing else, honest numbers, at any stage of a run."""

from __future__ import annotations

import html
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from awm.report.page import write_report
from awm.report.pairs import outcomes
from awm.report.run_folder import load_run
from awm.report.tables import console_table
from awm.report.verdict import verdict
from tests.report.fake_run import write_evaluation, write_run

VOID = {"meta", "img", "br", "use", "path", "circle"}


class Balance(HTMLParser):
    """Checks that every element is closed where it should be and collects what the page refers to."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.open.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href")]

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.links += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href")]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def read_page(path: Path) -> str:
    text = path.read_text()
    parser = Balance()
    parser.feed(text)
    assert not parser.open
    assert all(link.startswith(("data:image/", "#")) for link in parser.links)
    assert "url(http" not in text and "@import" not in text
    return text


def items(pairs: list[tuple[float | None, ...]], name: str = "geneval.strict", side: int = 0) -> list[dict]:
    return [
        {"index": i, "prompt": f"prompt {i}", "tag": "colors", "scores": {name: pair[side]}}
        for i, pair in enumerate(pairs)
    ]


def compared(
    folder: Path, pairs: list[tuple[float | None, ...]], name: str = "geneval.strict", pictures: int = 99
) -> Path:
    """A run folder with just two evaluations."""
    folder.mkdir()
    (folder / "metrics.jsonl").write_text('{"epoch": 0}\n{"epoch": 8, "reward/mean": 0.5}\n')
    write_evaluation(folder, 0, items(pairs, name, 0), pictures, 64)
    write_evaluation(folder, 8, items(pairs, name, 1), pictures, 64)
    return folder


def test_a_finished_run(tmp_path: Path) -> None:
    run = write_run(tmp_path / "quick", images=96, pictures=32)
    page = write_report(run)
    text = read_page(page)
    assert page == run / "report.html" and page.stat().st_size < 1_000_000
    gain = load_run(run).gain("geneval.strict")
    assert f"rose from {gain.before:.3f} to {gain.after:.3f} (+{gain.gain:.3f} ± {gain.standard_error:.3f}" in text
    assert "on 96 images after 12 epochs, 2,304 training images and 6 min 48 s" in text
    assert text.count('<figure class="pair') == 32 and text.count('<figure class="plot') == 12
    assert "Training samples of epoch 12" in text and f"python -m awm.report {run}" in text
    assert all(task in text for task in ("single object", "color attr", "mean of tasks", "official accuracy"))


def test_large_pictures_are_made_small_enough_to_send(tmp_path: Path) -> None:
    run = write_run(tmp_path / "sd3", reward="pickscore", side=512, images=40, pictures=40)
    text = read_page(write_report(run))
    assert len(text) < 3_000_000
    assert text.count('<figure class="pair') == 32
    assert "Held-out pickscore rose" in text and ">task<" not in text and "Higher <small>" in text


@pytest.mark.parametrize("epochs", [0, 1, 3])
def test_before_there_is_anything_to_compare(tmp_path: Path, epochs: int) -> None:
    run = write_run(tmp_path / "young", epochs=epochs)
    text = read_page(write_report(run))
    assert "no later evaluation to compare it with yet" in text
    assert "<table" not in text and 'class="gallery"' not in text
    assert "No held-out comparison" in console_table(run)


def test_halfway_the_verdict_says_so(tmp_path: Path) -> None:
    run = write_run(tmp_path / "half", epochs=9)
    assert "after 8 of 12 epochs" in verdict(load_run(run))


@pytest.mark.parametrize("missing", ["config.json", "metrics.jsonl", "eval", "samples"])
def test_any_part_may_be_missing(tmp_path: Path, missing: str) -> None:
    run = write_run(tmp_path / "partial")
    (run / missing).rename(tmp_path / missing)
    read_page(write_report(run))


def test_without_metrics_the_held_out_numbers_still_stand(tmp_path: Path) -> None:
    run = compared(tmp_path / "run", [(0, 1), (0, 1), (1, 1)])
    (run / "metrics.jsonl").unlink()
    (run / "config.json").write_text("{}")
    assert verdict(load_run(run)).endswith("on 3 images after 8 epochs.")


def test_metrics_with_hardly_any_keys(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"epoch": 1}\n{"epoch": 2, "grad_norm": null}\n{"epoch": 3, "gra')
    text = read_page(write_report(tmp_path))
    assert "No epoch of training has finished yet. There is no stored held-out evaluation." in html.unescape(text)


def test_a_hundred_thousand_epochs_make_a_page_of_normal_size(tmp_path: Path) -> None:
    with (tmp_path / "metrics.jsonl").open("w") as file:
        for epoch in range(1, 100_001):
            file.write(json.dumps({"epoch": epoch, "reward/mean": epoch % 7, "reward/std": 1.0, "grad_norm": 1}) + "\n")
    assert len(read_page(write_report(tmp_path))) < 300_000


def test_regressions_are_counted_and_shown_like_improvements(tmp_path: Path) -> None:
    run = compared(tmp_path / "run", [(0, 1), (1, 0), (1, 0), (1, 1), (0, 0), (None, 1)])
    found = {o.title: [pair.before.index for pair in o.pairs] for o in outcomes(load_run(run).pairs, "geneval.strict")}
    assert found == {"Wrong → right": [0], "Right → wrong": [1, 2], "Right both times": [3], "Wrong both times": [4]}
    text = read_page(write_report(run))
    assert re.search(r'class="down">Right → wrong <small>2 of 6 images, 2 shown', text)


def test_other_scores_are_sorted_by_how_far_they_moved(tmp_path: Path) -> None:
    run = compared(tmp_path / "run", [(0.2, 0.3), (0.2, 0.5), (0.4, 0.1), (0.4, 0.3), (0.5, 0.5)], "pickscore")
    found = {o.title: [pair.before.index for pair in o.pairs] for o in outcomes(load_run(run).pairs, "pickscore")}
    assert found == {"Higher": [1, 0], "Lower": [2, 3], "Unchanged": [4]}


@pytest.mark.parametrize(
    ("pairs", "words"),
    [
        ([(1, 0)] * 8 + [(0, 0), (1, 1)], "Held-out strict accuracy fell from 0.900 to 0.100 (−0.800 ± 0.133"),
        ([(0, 1)] * 3, "rose from 0.000 to 1.000"),
        ([(1, 0), (0, 1), (1, 1)], "did not change measurably, from 0.667 to 0.667"),
    ],
)
def test_the_verdict_does_not_flatter(tmp_path: Path, pairs: list[tuple[float, float]], words: str) -> None:
    assert words in verdict(load_run(compared(tmp_path / "run", pairs)))


def test_standard_errors_are_by_prompt(tmp_path: Path) -> None:
    run = compared(tmp_path / "run", [(0, 1), (0, 1), (1, 1), (1, 1)])
    assert load_run(run).gain("geneval.strict").standard_error == pytest.approx((1 / 12) ** 0.5)
    for file in run.glob("eval/*/scores.jsonl"):
        text = file.read_text().replace("prompt 1", "prompt 0").replace("prompt 3", "prompt 2")
        file.write_text(text)
    assert load_run(run).gain("geneval.strict").standard_error == pytest.approx(0.5)


def test_another_prompt_under_the_same_number_is_not_compared(tmp_path: Path) -> None:
    run = compared(tmp_path / "run", [(0, 1), (0, 1)], pictures=0)
    scores = run / "eval" / "epoch_000008" / "scores.jsonl"
    scores.write_text(scores.read_text().replace("prompt 1", "another"))
    assert load_run(run).gain("geneval.strict").n == 1


def test_evaluations_left_by_an_earlier_run_in_the_same_folder_are_ignored(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", epochs=9)
    write_evaluation(run, 12, items([(1,)] * 48), 0, 64)
    after = load_run(run).after
    assert after is not None and after.epoch == 8


def test_the_headline_is_the_strict_accuracy_of_the_heaviest_reward(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", reward="geneval")
    assert load_run(run).headline == "geneval.strict"
    (run / "config.json").write_text('{"reward_fn": {"geneval": 0.2, "geneval.correct": 0.8}}')
    assert load_run(run).headline == "geneval.correct"


def test_prompts_and_names_cannot_inject_markup(tmp_path: Path) -> None:
    run = compared(tmp_path / "<b>run", [(0, 1)])
    for file in run.glob("eval/*/scores.jsonl"):
        file.write_text(file.read_text().replace("prompt 0", "<script>alert('x')</script>").replace("colors", "<i>"))
    text = read_page(write_report(run))
    assert "<script" not in text and "<b>run" not in text and "<i>" not in text


def test_the_console_table_has_the_same_numbers(tmp_path: Path) -> None:
    run = compared(tmp_path / "run", [(0, 1), (0, 1), (0, 1), (1, 1), (1, 0)])
    table = console_table(run).splitlines()
    assert table[-2].split() == ["all", "images", "5", "0.400", "0.800", "+0.400", "0.400", "1.0"]
    assert table[-1].startswith("strict accuracy: 3 images rose, 1 fell, 1 stayed the same")
    assert all(line.isascii() and len(line) < 120 for line in table)


def test_a_folder_that_is_no_run_is_an_error_with_the_fix(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"neither config\.json nor metrics\.jsonl"):
        write_report(tmp_path)
