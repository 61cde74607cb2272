"""What the trackers promise: real TensorBoard and wandb files with every number, and no way to end a run."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from awm.training.metrics import MetricsWriter, read_metrics
from awm.training.trackers import Trackers

ROOT = Path(__file__).parents[2]
# TensorBoard's own thread dies of the full disk, and may do so during the next test.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")


def writer(folder: Path, **options: Any) -> MetricsWriter:
    return MetricsWriter(folder, config={"seed": 0}, run_name="test", **options)


def test_an_unknown_tracker_names_the_known_ones_and_leaves_the_log_alone(tmp_path: Path) -> None:
    writer(tmp_path).write({"epoch": 0})
    with pytest.raises(ValueError, match=r"tensorboard, wandb, none\. Did you mean 'tensorboard'"):
        writer(tmp_path, trackers=("tensorbord",))
    assert [record["epoch"] for record in read_metrics(tmp_path / "metrics.jsonl")] == [0]


@pytest.mark.parametrize(("name", "module"), [("tensorboard", "torch.utils.tensorboard"), ("wandb", "wandb")])
def test_a_missing_tracker_says_how_to_install_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, module: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ValueError, match=f"pip install {name}"):
        writer(tmp_path, trackers=(name,))


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tensorboard")).Reload()
    return {name: [(e.step, e.value) for e in events.Scalars(name)] for name in events.Tags()["scalars"]}


def test_tensorboard_gets_every_finite_number_once_also_after_resuming(tmp_path: Path) -> None:
    first = writer(tmp_path, trackers=("tensorboard",))
    for epoch, reward in enumerate((0.0, 0.25, 0.5)):
        first.write({"epoch": epoch, "reward/mean": reward, "bad": float("nan")})
    first.close()
    second = writer(tmp_path, trackers=("tensorboard",), resume_epoch=2)
    second.write({"epoch": 2, "reward/mean": 0.75})
    second.close()
    assert scalars(tmp_path) == {"reward/mean": [(0, 0.0), (1, 0.25), (2, 0.75)]}


def test_a_full_disk_drops_tensorboard_with_one_warning_and_the_run_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trackers = Trackers(("tensorboard",), tmp_path, config={}, run_name="test", resume_epoch=0)
    trackers.write(0, {"a": 1.0})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1, hard))  # as a full disk: every write fails
    try:
        for epoch in range(1, 4):
            trackers.write(epoch, {"a": 1.0})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    trackers.close()
    errors = capsys.readouterr().err
    assert errors.count("warning: tensorboard failed") == 1
    assert "metrics.jsonl has every number" in errors


WANDB_RUNS = """
import os, signal, sys, time
from pathlib import Path

import psutil

from awm.training.metrics import MetricsWriter

folder, what = Path(sys.argv[1]), sys.argv[2]
handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD)}


def writer(resume_epoch):
    options = {"trackers": ("wandb",), "config": {"seed": 7}, "run_name": "test"}
    return MetricsWriter(folder, resume_epoch=resume_epoch, **options)


log = writer(0)
log.write({"epoch": 0, "reward/mean": 0.125, "bad": float("nan")})
if what == "service dies":
    for child in psutil.Process().children(recursive=True):
        child.kill()
        child.wait()
log.write({"epoch": 1, "reward/mean": 0.5})
log.write({"epoch": 2, "reward/mean": 0.625})
log.close()
if what == "resume":
    time.sleep(1.1)  # wandb names folders by the second
    log = writer(2)
    log.write({"epoch": 2, "reward/mean": 0.75})
    log.close()
    time.sleep(1.1)
    writer(0).close()
assert handlers == {number: signal.getsignal(number) for number in handlers}, "wandb took over a signal"
print("services", *(child.pid for child in psutil.Process().children(recursive=True)))
"""


def wandb_run(folder: Path, what: str) -> subprocess.CompletedProcess[str]:
    """Real wandb, offline, in a process of its own: it would leave a service and variables behind in this one."""
    environment = os.environ | {"WANDB_MODE": "offline", "PYTHONPATH": str(ROOT), "WANDB_SILENT": "true"}
    command = [sys.executable, "-c", WANDB_RUNS, str(folder), what]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100)


def history(path: Path) -> list[dict[str, Any]]:
    """What ``run.log`` was given, from the records of a .wandb file."""
    from wandb.proto.wandb_internal_pb2 import Record

    rows = []
    for data in records(path.read_bytes()):
        record = Record.FromString(data)
        if record.WhichOneof("record_type") == "history":
            items = {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in record.history.item}
            rows.append({name: value for name, value in items.items() if not name.startswith("_")})
    return rows


def records(data: bytes) -> Iterator[bytes]:
    """The records of a LevelDB log: blocks of 32 KiB, pieces with crc (4), length (2) and kind (1: whole, 4: last)."""
    position, pieces = 7, b""
    while position < len(data):
        if 32768 - position % 32768 < 7:
            position += 32768 - position % 32768
            continue
        length, kind = int.from_bytes(data[position + 4 : position + 6], "little"), data[position + 6]
        pieces += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):
            yield pieces
            pieces = b""


def test_wandb_offline_holds_every_number_and_a_resumed_run_keeps_its_id(tmp_path: Path) -> None:
    done = wandb_run(tmp_path, "resume")
    assert done.returncode == 0, done.stderr
    files = sorted(tmp_path.glob("wandb/offline-run-*/run-*.wandb"), key=lambda path: path.parent.name)
    first, resumed, new = files  # their folders are named by the time
    assert first.stem == resumed.stem != new.stem
    assert history(first) == [
        {"epoch": 0, "reward/mean": 0.125},
        {"epoch": 1, "reward/mean": 0.5},
        {"epoch": 2, "reward/mean": 0.625},
    ]
    assert history(resumed) == [{"epoch": 2, "reward/mean": 0.75}]
    assert history(new) == []
    assert_gone(done)


def test_a_dead_wandb_costs_one_warning_and_no_number(tmp_path: Path) -> None:
    done = wandb_run(tmp_path, "service dies")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("warning: wandb failed") == 1
    assert [r["reward/mean"] for r in read_metrics(tmp_path / "metrics.jsonl")] == [0.125, 0.5, 0.625]
    assert_gone(done)


def assert_gone(done: subprocess.CompletedProcess[str]) -> None:
    """No service of wandb outlives the process that started it."""
    services = [int(pid) for pid in done.stdout.split("services", 1)[1].split()]
    gone, alive = psutil.wait_procs([psutil.Process(pid) for pid in services if psutil.pid_exists(pid)], timeout=20)
    assert not alive, gone


def test_wandb_that_cannot_start_is_a_mistake_with_its_ways_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import wandb

    def refuse(**_: Any) -> None:
        raise wandb.errors.UsageError("No API key configured.")

    monkeypatch.setattr(wandb, "init", refuse)
    with pytest.raises(ValueError, match=r"No API key configured.*wandb login.*WANDB_MODE=offline"):
        writer(tmp_path, trackers=("wandb",))
