"""The command ``awm-bench throughput``: its file, its numbers, what it refuses, and what it survives."""

from __future__ import annotations

import gzip
import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from awm.bench import cli
from awm.bench.throughput import ceiling as ceilings
from awm.bench.throughput import variants
from awm.bench.throughput.case import Epoch
from awm.bench.throughput.ceiling import Ceiling, known_peak, measure_ceiling
from awm.bench.throughput.memory import PeakMemory
from awm.bench.throughput.models import MODELS, configuration, prepared
from awm.bench.throughput.operations import phase_operations
from awm.bench.throughput.rounds import Outcome, run_rounds
from awm.bench.throughput.statistics import measured, ratios
from awm.bench.throughput.stub import StubReward
from awm.bench.throughput.switches import Switch
from awm.dry_run import dry_run

ROOT = Path(__file__).parents[2]
FEW = (
    *("--config.sample.num_prompts_per_epoch=2", "--config.sample.num_image_per_prompt=2"),
    *("--config.sample.num_steps=5", "--config.train.train_timesteps=2", "--config.mixed_precision=no"),
)


class Broken(Switch):
    """A variant that does not fit."""

    def change(self, trainer: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 TiB")


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # which the command sets, for good
    monkeypatch.setattr(ceilings, "SIZES", {"cpu": (64,)})


def run(out: Path, *words: str) -> int:
    return cli.main(["throughput", "--out", str(out), "--epochs", "1", *FEW, *words])


def test_a_call_writes_all_it_promises(
    here: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    broken = variants.Variant("does not fit", (Broken,))
    monkeypatch.setitem(variants.TABLE, "float32_vae", broken)
    names = ("float32_vae", "text_per_image", "fp8", "float32_base")
    status = run(tmp_path / "x.json", "--epochs", "2", "--reward-ms", "5", "--profile", "--variants", *names)
    captured = capsys.readouterr()
    assert status == 1 and "failed: float32_vae" in captured.err and str(tmp_path / "x.json") in captured.out
    found = json.loads((tmp_path / "x.json").read_text())
    assert {"model", "device", "commit", "command", "machine", "versions", "ceiling", "took_s"} <= found.keys()
    assert found["images_per_epoch"] == 4 and found["reward"] == {"ms_per_image": 5.0, "share_of_tied_prompts": 0.5}
    assert found["model"]["parameters"]["transformer"] == 2412752
    assert found["changed"]["sample.num_prompts_per_epoch"] == 2
    rows = found["variants"]
    assert list(rows) == ["default", *names]
    assert rows["fp8"]["status"] == "skipped" and "CUDA" in rows["fp8"]["reason"]
    assert rows["float32_base"]["status"] == "skipped" and "float32 already" in rows["float32_base"]["reason"]
    assert rows["float32_vae"]["status"] == "failed" and "out of memory" in rows["float32_vae"]["reason"]
    for name in ("default", "text_per_image"):
        row = rows[name]
        assert row["status"] == "measured" and row["epochs"] == 2
        seconds = {phase: values["median"] for phase, values in row["seconds"].items()}
        assert seconds["epoch"] == pytest.approx(seconds["rollout"] + seconds["train"], rel=0.2)
        assert 0 < seconds["decode"] < seconds["rollout"] and 0 < seconds["sampling"] < seconds["rollout"]
        assert seconds["reward_wait"] > 0  # 20 ms of scoring, in the background of next to nothing
        rate = sum(row["operations"].values()) / seconds["epoch"]
        assert row["operations_per_s_per_device"]["epoch"] == pytest.approx(rate, rel=1e-3)
        assert row["mfu_of_ceiling"]["epoch"] == pytest.approx(rate / found["ceiling"]["operations_per_s"], rel=1e-3)
        assert row["processor_seconds"]["epoch"]["median"] > 0 and row["peak_memory_gib"]["train"] > 0.1
        assert row["ratio_to_default"]["epoch"]["min"] <= row["ratio_to_default"]["epoch"]["median"]
        assert row["reward_mean"] == pytest.approx(rows["default"]["reward_mean"], abs=1e-4)
    assert rows["default"]["ratio_to_default"]["train"] == {"median": 1.0, "min": 1.0, "max": 1.0}
    assert len(found["profiles"]) == 8
    for phase in ("rollout", "train"):
        trace = gzip.decompress((tmp_path / "x" / f"default_{phase}.trace.json.gz").read_bytes())
        assert any(event.get("name") == "aten::addmm" for event in json.loads(trace)["traceEvents"])
        assert "aten::addmm" in (tmp_path / "x" / f"text_per_image_{phase}.txt").read_text()
    backward = (tmp_path / "x" / "default_train.txt").read_text()
    assert "Backward" in backward and "Backward" not in (tmp_path / "x" / "default_rollout.txt").read_text()


def test_a_sweep_says_how_cost_grows(here: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert run(tmp_path / "s.json", "--sweep", "images_per_prompt", "--points", "2", "4") == 0
    found = json.loads((tmp_path / "s.json").read_text())["sweep"]
    assert found["of"] == "images_per_prompt"
    first, second = found["points"]
    assert (first["images"], second["images"]) == (4, 8) and first["seconds_over_linear"] == 1
    assert second["seconds_over_linear"] == pytest.approx(second["seconds"] / first["seconds"] / 2, rel=1e-3)
    assert second["operations_over_linear"] == pytest.approx(1.0, abs=0.01)  # the text's share shrinks
    assert "images_per_prompt" in capsys.readouterr().out


@pytest.mark.slow
def test_ranks_are_started_and_measured(here: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert run(tmp_path / "w.json", "--sweep", "world_size", "--points", "1", "2") == 0
    found = json.loads((tmp_path / "w.json").read_text())
    assert [point["value"] for point in found["sweep"]["points"]] == [1, 2] and found["cores"] >= 1
    one, two = (found["variants"][f"world_size={n}"] for n in (1, 2))
    assert two["reward_mean"] == pytest.approx(one["reward_mean"], abs=1e-4)  # the same images on two ranks
    assert "A model, not measured" in capsys.readouterr().out


@pytest.mark.parametrize(
    "words, message",
    [
        (["--quick"], "unknown argument '--quick'; see awm-bench throughput --help"),
        (["--variants", "compil"], "unknown variant 'compil'"),
        (["--config.train.learning_rte=1"], "learning_rate"),
        (["--config.train.learning_rate=-1.0"], "train.learning_rate=-1.0 is not valid"),
        (["--sweep", "resolution", "--profile"], "leave out --variants and --profile"),
        (["--points", "1"], "--points are the sizes of a --sweep"),
        (["--text-encoders", "small"], "is for --model sd35m_random"),
        (["--sweep", "world_size", "--model", "sd35m_random"], "give --model tiny --device cpu"),
    ],
)
def test_mistakes_are_one_sentence(
    here: None, tmp_path: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
):
    assert run(tmp_path / "x.json", *words) == 1
    err = capsys.readouterr().err
    assert err.startswith("error: ") and message in err and err.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("there", ["a file", "a folder"])
def test_a_result_that_could_not_be_written_is_not_measured(
    there: str, here: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    taken = tmp_path / "taken"
    taken.mkdir() if there == "a folder" else taken.touch()
    assert run(taken if there == "a folder" else taken / "x.json") == 1
    err = capsys.readouterr().err
    assert err.startswith("error: --out ") and "cannot be written (" in err and err.count("\n") == 1


def test_a_device_that_is_not_there_is_refused(
    here: None, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert run(tmp_path / "x.json", "--device", "cuda") == 1
    assert "torch sees no CUDA device" in capsys.readouterr().err


def test_operations_are_those_of_the_dry_run(here: None, capsys: pytest.CaptureFixture[str]):
    with prepared(MODELS["tiny"], "full") as folder:
        config = configuration(MODELS["tiny"], FEW, folder)
        operations = phase_operations(config, 1)
        dry_run(config, 1)
    line = re.search(r"an epoch, per rank +([\d.]+)", capsys.readouterr().out)
    assert line is not None and sum(operations.values()) / 1e12 == pytest.approx(float(line[1]), rel=1e-3)
    assert min(operations.values()) > 0


def test_shares_and_ratios_are_what_their_names_say():
    operations = {"encode": 1.0, "sampling": 40.0, "decode": 9.0, "train": 50.0}

    def epoch(rollout: float, train: float) -> Epoch:
        times = {"time/rollout_s": rollout, "time/train_s": train, "time/epoch_s": rollout + train}
        times |= {"time/encode_s": 0.5, "time/decode_s": 0.5, "time/reward_wait_s": 0.0}
        times |= {"images_per_s": 8 / (rollout + train), "reward/mean": 0.5}
        return Epoch(times, {"rollout": 4.0, "train": 4.0, "epoch": 10.0}, {"rollout": 2**30, "train": 2**31})

    fast, slow = [epoch(2.0, 2.0), epoch(3.0, 2.0), epoch(2.0, 3.0)], [epoch(4.0, 2.0), epoch(3.0, 2.0)]
    row = measured(fast, operations, Ceiling(50.0, 20.0, 64, "float32"), 100.0, world_size=2)
    assert row["images_per_s"] == {"median": 1.6, "min": 1.6, "max": 2.0}
    assert row["mfu_of_ceiling"]["rollout"] == pytest.approx(50 / 2.0 / 2 / 50)
    assert row["mfu_of_peak"]["train"] == pytest.approx(50 / 2.0 / 2 / 100)
    assert row["operations_per_s_per_device"]["sampling"] == pytest.approx(40 / 1.0 / 2)
    assert row["mfu_of_ceiling_by_processor"]["epoch"] == pytest.approx(100 / (2 * 10 * 20))
    assert row["peak_memory_gib"] == {"rollout": 1.0, "train": 2.0}
    found = ratios(Outcome(epochs=slow), Outcome(epochs=fast), by_processor=False)
    assert found["epoch"] == {"median": pytest.approx((4 / 6 + 5 / 5) / 2), "min": pytest.approx(4 / 6), "max": 1.0}
    assert found["rollout"]["min"] == 0.5 and "epoch_by_processor" not in found


class FakeCase:
    """Fails in its ``fails_at``-th epoch, if ever; counts from the warm-up on."""

    def __init__(self, log: list[str], name: str, fails_at: int = 0) -> None:
        self.log, self.name, self.fails_at, self.done = log, name, fails_at, 0

    def build(self) -> None:
        self.log.append(f"build {self.name}")

    def epoch(self) -> Any:
        self.done += 1
        if self.done == self.fails_at:
            raise RuntimeError("the kernel is missing")
        self.log.append(self.name)
        return SimpleNamespace(metrics={"images_per_s": 1.0})

    def close(self) -> None:
        self.log.append(f"close {self.name}")


def test_cases_take_turns_and_one_that_fails_is_over():
    log: list[str] = []
    cases: Any = {"a": FakeCase(log, "a"), "b": FakeCase(log, "b", fails_at=2), "c": FakeCase(log, "c")}
    rounds: list[int] = []
    outcomes = run_rounds(cases, rounds=3, warmup=1, after_round=lambda found: rounds.append(len(found["a"].epochs)))
    assert log[:6] == ["build a", "a", "build b", "b", "build c", "c"]
    assert sorted(log[6:9]) == ["a", "c", "close b"]
    assert sorted(log[9:11]) == sorted(log[11:13]) == ["a", "c"] and len(log) == 13
    assert outcomes["b"].error == "RuntimeError: the kernel is missing" and not outcomes["b"].epochs
    assert len(outcomes["a"].epochs) == len(outcomes["c"].epochs) == 3 and rounds == [1, 2, 3]


def test_no_case_always_follows_the_same_one():
    log: list[str] = []
    names = [f"case {number}" for number in range(6)]
    run_rounds({name: FakeCase(log, name) for name in names}, rounds=12, warmup=1)
    measured = log[2 * len(names) :]
    rounds = [measured[start : start + len(names)] for start in range(0, len(measured), len(names))]
    assert all(sorted(order) == names for order in rounds)
    for name in names:
        assert len({order.index(name) for order in rounds}) > 2
        assert len({measured[place - 1] for place in range(1, len(measured)) if measured[place] == name}) > 2


def test_no_round_begins_when_time_is_up_but_the_first_does():
    log: list[str] = []
    cases: Any = {"a": FakeCase(log, "a"), "b": FakeCase(log, "b")}
    found = run_rounds(cases, rounds=9, warmup=2, go_on=lambda: False)
    assert len(found["a"].epochs) == 1 and not found["a"].error
    assert not found["b"].epochs and found["b"].skipped.startswith("no time was left for it") and not found["b"].error
    assert log == ["build a", "a", "a", "a"]


def test_with_several_ranks_a_failure_ends_everything():
    cases: Any = {"a": FakeCase([], "a", fails_at=1)}
    with pytest.raises(RuntimeError, match="kernel"):
        run_rounds(cases, rounds=1, warmup=1, alone=False)


def test_the_ceiling_is_a_rate_that_this_machine_can_reach():
    found = measure_ceiling(torch.device("cpu"), torch.float32, (64, 256))
    assert 1e8 < found.operations_per_s < 1e15 and found.dtype == "float32" and found.size in (64, 256)
    assert found.operations_per_processor_s > 1e8


def test_the_processor_s_ceiling_is_of_the_size_that_is_best_for_it(monkeypatch: pytest.MonkeyPatch):
    rates = {1: (3.0, 1.0), 2: (2.0, 5.0)}
    monkeypatch.setattr(ceilings, "_measure", lambda size, *_: Ceiling(*rates[size], size, "float32"))
    assert measure_ceiling(torch.device("cpu"), torch.float32, (1, 2)) == Ceiling(3.0, 5.0, 1, "float32")


@pytest.mark.parametrize(
    "name, tera",
    [
        ("NVIDIA H200", 989.0),
        ("NVIDIA H20", 148.0),
        ("NVIDIA H100 PCIe", 756.0),
        ("NVIDIA H100 NVL", 835.0),
        ("NVIDIA H800 PCIe", 756.0),
        ("NVIDIA H100 80GB HBM3", 989.0),
        ("NVIDIA A100-SXM4-80GB", 312.0),
        ("NVIDIA RTX A4000", None),
        ("processor", None),
    ],
)
def test_peaks_are_known_by_the_device_s_name(name: str, tera: float | None):
    assert known_peak(name, torch.bfloat16) == (None if tera is None else tera * 1e12)
    assert known_peak(name, torch.float32) is None


def test_the_peak_forgets_what_was_before():
    memory = PeakMemory(torch.device("cpu"))
    memory.reset()
    small = memory.peak()
    block = torch.ones(64 * 2**20)  # 256 MiB
    assert memory.peak() - small > 200 * 2**20
    del block
    memory.reset()
    assert memory.peak() < small + 200 * 2**20


def test_the_stub_takes_its_time_and_ties_what_it_is_told_to():
    import time

    stub = StubReward(10.0)
    stub.tied = {"b"}
    images = torch.stack([torch.full((3, 4, 4), value) for value in (0.25, 0.5, 0.75)])
    begun = time.perf_counter()
    rewards = stub(images, ("a", "b", "a"), ({}, {}, {}))
    assert time.perf_counter() - begun >= 0.03
    assert rewards.total.tolist() == [0.25, 0.0, 0.75] and rewards.valid.all()
