"""What a person sees: bars only on a terminal, one line per epoch elsewhere, and an honest guess of the time left."""

from __future__ import annotations

import io
import sys

import pytest

from awm.training.console import epoch_line
from awm.training.progress import Pace, RunProgress, duration
from awm.training.settings import Schedule


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0, "0.0s"), (4.24, "4.2s"), (59.4, "59s"), (59.6, "1m00s"), (425, "7m05s"), (3600, "1h00m"), (5025, "1h23m"),
        (86400, "1d00h"), (273600, "3d04h"),
    ],
)  # fmt: skip
def test_durations_are_said_as_people_say_them(seconds: float, said: str):
    assert duration(seconds) == said


def test_the_time_left_counts_epochs_evaluations_and_checkpoints():
    pace = Pace(Schedule(num_epochs=10, save_freq=4, eval_freq=5))
    pace.note({"time/eval_s": 100.0})
    assert pace.remaining_s(0) is None
    pace.note({"time/epoch_s": 7.0})
    pace.note({"time/epoch_s": 1.0, "time/save_s": 20.0})
    pace.note({"time/epoch_s": 1.0})
    # seven epochs of the median second; evaluations after 5 and 10; checkpoints after 4, 8 and the last
    assert pace.remaining_s(3) == 7 * 1.0 + 2 * 100.0 + 3 * 20.0
    assert pace.remaining_s(9) == 1.0 + 100.0 + 20.0
    assert pace.remaining_s(10) == 0.0
    never = Pace(Schedule(num_epochs=10, save_freq=20, eval_freq=0))
    never.note({"time/epoch_s": 2.0})
    assert never.remaining_s(3) == 14.0


def test_an_epoch_is_one_line_with_its_numbers_held_out_scores_and_time_left():
    metrics = {
        "epoch": 3,
        "reward/mean": 0.41,
        "grad_norm": None,
        "time/epoch_s": 90.0,
        "images_per_s": 19.2,
        "eval/geneval": 0.5,
        "eval/geneval/counting": 0.25,
    }
    expected = "epoch 3/40 | reward 0.410 | 1m30s, 19.2 img/s | held out: geneval 0.500 | 1h23m left"
    assert epoch_line(metrics, 40, 5025.0) == expected
    assert epoch_line({"epoch": 40}, 40, 0.0) == "epoch 40/40 | done"
    assert epoch_line({"epoch": 0, "eval/a": 1.0}, 40, None) == "epoch 0/40 | held out: a 1.000"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def drawn(stream: io.StringIO, monkeypatch: pytest.MonkeyPatch, *, shown: bool) -> str:
    monkeypatch.setattr(sys, "stderr", stream)
    bars = RunProgress(4, shown)
    for epoch in (1, 2):
        with bars.phase(epoch, "sampling", 8) as advance:
            advance(8)
        bars.epoch_done(epoch, 61.0)
    bars.close()
    return stream.getvalue()


def test_bars_are_nested_on_a_terminal(monkeypatch: pytest.MonkeyPatch):
    screen = drawn(Terminal(), monkeypatch, shown=True)
    assert "epochs 1/4" in screen and "epochs 2/4" in screen and "1m01s left" in screen
    assert "sampling" in screen and "\x1b[A" in screen  # the lower bar moves the cursor back up


@pytest.mark.parametrize(("stream", "shown"), [(io.StringIO(), True), (Terminal(), False)])
def test_a_log_file_and_other_ranks_get_no_bars(stream: io.StringIO, shown: bool, monkeypatch: pytest.MonkeyPatch):
    assert drawn(stream, monkeypatch, shown=shown) == ""
