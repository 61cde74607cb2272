"""What the timers promise: phases that add up, the slowest rank's, and no waiting for the device."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
import torch
from ml_collections import ConfigDict

from awm.training import phases
from awm.training.metrics import read_metrics
from awm.training.phases import DeviceStopwatch, PhaseTimer, timing_metrics


class Clock:
    """A clock that a test moves."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr(phases.time, "perf_counter", lambda: self.now)


def test_laps_follow_each_other(monkeypatch: pytest.MonkeyPatch):
    clock = Clock(monkeypatch)
    timer = PhaseTimer()
    clock.now += 3
    timer.lap("rollout")
    clock.now += 5
    timer.lap("train")
    assert timer.seconds == {"rollout": 3.0, "train": 5.0}


def test_the_processor_s_time_is_not_the_wall_clock_s():
    timer = PhaseTimer()
    time.sleep(0.2)
    assert timer.processor_seconds() < 0.1
    end = time.process_time() + 0.1
    while time.process_time() < end:
        pass
    assert timer.processor_seconds() >= 0.1


def test_a_stopwatch_adds_up_its_sections_and_nothing_between_them(monkeypatch: pytest.MonkeyPatch):
    clock = Clock(monkeypatch)
    watch = DeviceStopwatch(torch.device("cpu"))
    assert watch.seconds() == 0.0
    for seconds in (2.0, 0.5):
        with watch():
            clock.now += seconds
        clock.now += 10
    assert watch.seconds() == 2.5


class TwoRanks:
    world_size = 2

    def gather(self, values: torch.Tensor) -> torch.Tensor:
        return torch.cat([values, torch.tensor([4.0, 1.0, 0.5], dtype=values.dtype)])


def test_each_phase_is_the_slowest_rank_s_and_the_epoch_is_their_sum():
    metrics = timing_metrics({"rollout": 3.0, "train": 2.0, "decode": 0.25}, 12, TwoRanks())  # type: ignore[arg-type]
    assert metrics == {
        "time/rollout_s": 4.0,
        "time/train_s": 2.0,
        "time/decode_s": 0.5,
        "time/epoch_s": 6.0,
        "images_per_s": 2.0,
        "images_per_s_per_device": 1.0,
    }


def test_a_run_logs_every_phase(make_config: Callable[..., ConfigDict]):
    from tests.training.test_trainer import run

    folder = run(make_config(num_epochs=2, eval_freq=1)).outputs.run
    base, first, second = read_metrics(folder / "metrics.jsonl")
    assert base["time/eval_s"] > 0 and "time/rollout_s" not in base
    for phase in ("rollout", "encode", "decode", "reward_wait", "train", "processor", "epoch", "eval"):
        assert first[f"time/{phase}_s"] > 0, phase
    assert first["time/encode_s"] + first["time/decode_s"] < first["time/rollout_s"]
    assert "time/save_s" not in first and second["time/save_s"] > 0  # the checkpoint after the first epoch
    assert first["images_per_s"] == pytest.approx(12 / first["time/epoch_s"])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_timing_a_gpu_does_not_wait_for_it():
    device = torch.device("cuda")
    watch = DeviceStopwatch(device)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        with watch():
            torch.randn(64, 64, device=device) @ torch.randn(64, 64, device=device)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert watch.seconds() > 0
