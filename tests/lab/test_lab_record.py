"""What an experiment's JSON and figure promise."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch

from awm.lab.figures import COLOURS, draw_curve, new_figure, save_figure
from awm.lab.record import plain, write_result


def test_a_record_says_how_it_was_made(tmp_path: Path) -> None:
    settings = {"seeds": 2, "folder": Path("a")}
    results = {"regret": torch.tensor([1 / 3, float("nan")]), "count": np.int64(3), "curve": np.arange(2.0)}
    command = ["awm-lab", "x", "--out", "a b"]
    path = write_result(tmp_path / "new", "x", command=command, settings=settings, results=results, seconds=1.26)
    record = json.loads(path.read_text())
    assert path.name == "x.json"
    assert record["command"] == "awm-lab x --out 'a b'"
    assert record["settings"] == {"seeds": 2, "folder": "a"}
    assert record["results"] == {"regret": [0.333333, None], "count": 3, "curve": [0, 1]}
    assert record["seconds"] == 1.3 and record["versions"]["torch"] == torch.__version__
    assert {"commit", "clean", "machine"} <= set(record)


def test_plain_keeps_what_json_already_knows() -> None:
    value = {"a": [1, "b", None, True], "c": {"d": 0.5}}
    assert plain(value) == value


def test_a_figure_is_a_png_with_the_same_bytes_each_time(tmp_path: Path) -> None:
    def draw(name: str) -> bytes:
        figure, axes = new_figure(2, 1)
        assert axes.shape == (1, 2)
        draw_curve(axes[0, 1], [0, 1], [0.5, 1], [0.1, 0.2], label="a")
        assert axes[0, 1].lines[0].get_color() == COLOURS[0]
        return save_figure(figure, tmp_path, name).read_bytes()

    first = draw("one")
    assert first[:4] == b"\x89PNG" and first == draw("two")
