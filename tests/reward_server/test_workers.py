"""Workers die, hang and lie; every image still gets a score or an error that says whether to try again."""

from __future__ import annotations

import gc
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import venv
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from reward_server import pool as pool_module
from reward_server.images import encode_image
from reward_server.jobs import Job, JobQueue
from reward_server.pool import WorkerPool
from reward_server.scorers.base import ItemError, Outcome, Scores
from reward_server.service import BusyError, Service
from reward_server.telemetry import Telemetry
from reward_server.wire import ScoreRequest, WireItem
from reward_server.worker.handle import RawItem, Worker, WorkerError
from tests.reward_server.serving import Gate, settings, wait_for

GREY = encode_image(np.full((8, 8, 3), 51, dtype=np.uint8), "raw")
GOOD = Scores(0.2, {"twice": 0.4})


@contextmanager
def running(**options: Any) -> Iterator[Service]:
    service = Service(settings("fake", **options))
    service.load()
    try:
        yield service
    finally:
        service.stop()
        assert not any(psutil.pid_exists(pid) for pids in service.worker_pids().values() for pid in pids)


def score(service: Service, *prompts: str, deadline_s: float = 60.0) -> list[Outcome]:
    request = ScoreRequest(("fake",), tuple(WireItem(i, GREY, prompt, {}) for i, prompt in enumerate(prompts)))
    wait_for(lambda: service.not_ready_because(["fake"]) is None)  # a worker that died a moment ago
    ticket = service.submit(request, deadline_s)
    ticket.done.result(60)
    return [result.rewards["fake"] for result in ticket.results()]


def code(outcome: Outcome) -> tuple[str, bool]:
    assert isinstance(outcome, ItemError), outcome
    return outcome.code, outcome.retryable


def test_an_image_that_crashes_its_worker_harms_no_other() -> None:
    with running() as service:
        (before,) = service.worker_pids()["fake"]
        outcomes = score(service, "", "crash", "")
        assert outcomes[0] == outcomes[2] == GOOD
        assert code(outcomes[1]) == ("worker_crashed", False)
        assert isinstance(outcomes[1], ItemError) and "SIGABRT" in outcomes[1].message
        assert score(service, "") == [GOOD]
        assert service.worker_pids()["fake"] != [before]


def test_a_process_killed_from_outside_is_no_images_fault() -> None:
    with running() as service:
        outcomes = score(service, "kill", "")
        assert code(outcomes[0]) == ("worker_killed", True)
        assert outcomes[1] == GOOD


def test_a_worker_killed_in_the_midst_of_a_batch_loses_nothing(tmp_path: Path) -> None:
    gate = Gate(tmp_path)
    with running(options={"fake": gate.options}) as service:
        threading.Timer(0, lambda: (gate.wait_until_entered(), os.kill(service.worker_pids()["fake"][0], 9))).start()
        threading.Timer(0, lambda: (gate.wait_until_entered(), gate.open())).start()
        assert score(service, "wait", "", "") == [GOOD] * 3
    assert gate.batches() == [1, 3, 1, 1, 1, 1]  # warm-up, the fatal batch, warm-up, each image alone


def test_a_hanging_image_is_stopped_and_its_mates_are_scored() -> None:
    with running(timeout_s=0.5) as service:
        outcomes = score(service, "", "hang", "")
        assert outcomes[0] == outcomes[2] == GOOD
        assert code(outcomes[1]) == ("timeout", True)


def test_garbage_on_the_socket_is_a_crash_and_not_the_end() -> None:
    with running() as service:
        outcomes = score(service, "", "garbage")
        assert outcomes[0] == GOOD
        assert code(outcomes[1]) == ("worker_crashed", False)
        assert isinstance(outcomes[1], ItemError) and "makes no sense" in outcomes[1].message
        assert score(service, "") == [GOOD]


def test_what_a_scorer_returns_by_mistake_is_that_items_error() -> None:
    with running() as service:
        (before,) = service.worker_pids()["fake"]
        good, none, message = score(service, "", "none", "message")
        assert good == GOOD and code(none) == ("scorer_failed", False)
        assert isinstance(none, ItemError) and "expected Scores or ItemError" in none.message
        assert code(message) == ("odd", True)
        assert isinstance(message, ItemError) and len(message.message) < 2100 and message.message.startswith("\\ud800")
        assert service.worker_pids()["fake"] == [before]


def test_a_scorer_that_is_sick_gets_a_new_process() -> None:
    with running(options={"fake": {"class": "Sick"}}) as service:
        (before,) = service.worker_pids()["fake"]
        outcomes = score(service, "sick", "")
        assert outcomes[1] == GOOD and not isinstance(outcomes[0], Scores)
        assert service.worker_pids()["fake"] != [before]


def test_what_a_scorer_started_dies_with_it() -> None:
    with running() as service:
        (pid,) = service.worker_pids()["fake"]
        assert score(service, "fork") == [GOOD]
        (child,) = psutil.Process(pid).children()
        assert child.name() == "sleep"
        os.kill(pid, signal.SIGKILL)  # the child must neither survive nor keep the socket open
        wait_for(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE, 20)
        wait_for(lambda: service.ready)
        assert score(service, "") == [GOOD]


def test_a_fingerprint_that_cannot_travel_says_so() -> None:
    service = Service(settings("fake", options={"fake": {"class": "Unsayable"}}))
    with pytest.raises(WorkerError, match="not JSON serializable"):
        service.load()
    service.stop()


def test_a_reward_without_a_worker_does_not_stop_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool_module, "MAX_FAILED_STARTS", 1)
    (tmp_path / "starts").write_text("1")
    options = {"other": {"class": "Moody", "folder": str(tmp_path)}}
    service = Service(settings("fake", "other", options=options))
    service.load()
    try:
        os.kill(service.worker_pids()["other"][0], signal.SIGKILL)
        wait_for(lambda: not service.ready)
        assert score(service, "") == [GOOD]
        with pytest.raises(BusyError, match="reward other has no worker"):
            service.submit(ScoreRequest(("fake", "other"), (WireItem(0, GREY, "", {}),)), 60)
        assert not service.gave_up
    finally:
        service.stop()


def test_a_defect_of_the_server_is_said_and_not_slept_through(monkeypatch: pytest.MonkeyPatch) -> None:
    with running() as service:
        monkeypatch.setattr(Worker, "score", lambda *_: {}["defect"])
        assert code(score(service, "")[0]) == ("internal", False)
        wait_for(lambda: not service.ready)
        assert "KeyError: 'defect'" in str(service.not_ready_because())
        assert service.gave_up


def test_images_are_decoded_a_few_at_a_time(tmp_path: Path) -> None:
    gate = Gate(tmp_path)
    worker = Worker("fake", settings("fake", options={"fake": gate.options}).scorers["fake"], "cpu", max_pixels=64 * 64)
    try:
        worker.start()
        large = encode_image(np.full((64, 64, 3), 51, dtype=np.uint8), "raw")
        outcomes, _ = worker.score([RawItem(large, "", {}) for _ in range(10)])
        assert outcomes == [GOOD] * 10
    finally:
        worker.close()
    assert gate.batches() == [1, 4, 4, 2]


def test_while_one_worker_hangs_another_works(tmp_path: Path) -> None:
    gate = Gate(tmp_path)
    with running(options={"fake": gate.options}, workers_per_device=2) as service:
        held = threading.Thread(target=score, args=(service, "wait"))
        held.start()
        gate.wait_until_entered()
        assert score(service, "") == [GOOD]
        gate.open()
        held.join()


def test_no_worker_left_means_not_ready_until_the_next_one_is_warm(tmp_path: Path) -> None:
    (tmp_path / "starts").write_text("2")
    with running(options={"fake": {"class": "Moody", "folder": str(tmp_path)}}) as service:
        os.kill(service.worker_pids()["fake"][0], signal.SIGKILL)
        wait_for(lambda: not service.ready)  # though nobody asked it anything
        with pytest.raises(BusyError, match="has no worker") as refusal:
            service.submit(ScoreRequest(("fake",), (WireItem(0, GREY, "", {}),)), 60)
        assert refusal.value.code == "not_ready"
        wait_for(lambda: service.ready)
        assert score(service, "") == [GOOD]


def test_a_scorer_that_will_not_start_again_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool_module, "MAX_FAILED_STARTS", 2)
    (tmp_path / "starts").write_text("1")
    with running(options={"fake": {"class": "Moody", "folder": str(tmp_path)}}) as service:
        assert code(score(service, "kill")[0]) == ("worker_down", True)
        assert "not today" in str(service.not_ready_because())


def test_a_worker_with_other_versions_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool_module, "MAX_FAILED_STARTS", 1)
    with running(options={"fake": {"class": "Changing"}}) as service:
        assert code(score(service, "kill")[0]) == ("worker_down", True)
        assert "would not be comparable" in str(service.not_ready_because())


def test_two_workers_that_differ_do_not_start() -> None:
    service = Service(settings("fake", options={"fake": {"class": "Changing"}}, workers_per_device=2))
    with pytest.raises(WorkerError, match="would not be comparable"):
        service.load()
    service.stop()


def test_an_interpreter_that_is_none() -> None:
    with pytest.raises(ValueError, match=r"scorers.fake.python=/bin/nowhere is no executable"):
        settings("fake", python="/bin/nowhere")
    service = Service(settings("fake", python=shutil.which("true")))
    with pytest.raises(WorkerError, match="exit status 0"):
        service.load()
    service.stop()


def test_a_worker_in_another_environment_sees_nothing_of_this_one(tmp_path: Path) -> None:
    """Its interpreter has numpy and Pillow, as a worker needs, and neither msgpack nor this package."""
    venv.create(tmp_path / "env", symlinks=True)
    python = tmp_path / "env" / "bin" / "python"
    (packages,) = (tmp_path / "env").glob("lib/python*/site-packages")
    for name in ("numpy", "PIL", "numpy.libs", "pillow.libs"):
        source = Path(np.__file__).parents[1] / name
        if source.exists():
            (packages / name).symlink_to(source)
    probe = "import importlib.util as u; print([u.find_spec(n) for n in ('msgpack', 'reward_server')])"
    isolated = subprocess.run([str(python), "-c", probe], capture_output=True, text=True, cwd=tmp_path, check=True)
    assert isolated.stdout == "[None, None]\n"
    with running(python=str(python)) as service:
        (pid,) = service.worker_pids()["fake"]
        assert psutil.Process(pid).cmdline()[0] == str(python)
        assert score(service, "") == [GOOD]


def test_workers_see_their_device_and_not_the_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWM_REWARD_TOKEN", "secret")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    with running(devices=("cuda:3",), env={"OMP_NUM_THREADS": "7"}) as service:
        environment = psutil.Process(service.worker_pids()["fake"][0]).environ()
    assert environment["CUDA_VISIBLE_DEVICES"] == "3" and environment["OMP_NUM_THREADS"] == "7"
    assert "AWM_REWARD_TOKEN" not in environment


def test_devices_count_among_those_the_server_was_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7")
    with running(devices=("cuda:1",)) as service:
        assert psutil.Process(service.worker_pids()["fake"][0]).environ()["CUDA_VISIBLE_DEVICES"] == "7"
    service = Service(settings("fake", devices=("cuda:2",)))
    with pytest.raises(WorkerError, match="there is no cuda:2: CUDA_VISIBLE_DEVICES=5,7"):
        service.load()
    service.stop()


def test_workers_do_not_outlive_a_killed_server(tmp_path: Path) -> None:
    program = (
        "import sys, time\n"
        "from tests.reward_server.serving import settings\n"
        "from reward_server.service import Service\n"
        "service = Service(settings('fake'))\n"
        "service.load()\n"
        "print(service.worker_pids()['fake'][0], flush=True)\n"
        "time.sleep(600)\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        worker = int(server.stdout.readline())
        server.kill()
    wait_for(lambda: not psutil.pid_exists(worker) or psutil.Process(worker).status() == psutil.STATUS_ZOMBIE)


def test_stopping_answers_everything(tmp_path: Path) -> None:
    gate = Gate(tmp_path)
    with running(options={"fake": gate.options}) as service:
        request = ScoreRequest(("fake",), tuple(WireItem(i, GREY, "wait", {}) for i in range(3)))
        ticket = service.submit(request, 60)
        gate.wait_until_entered()
        later = service.submit(ScoreRequest(("fake",), (WireItem(0, GREY, "", {}),)), 60)
        service.stop()
        codes = [code(r.rewards["fake"]) for t in (ticket, later) for r in t.results()]
    assert codes == [("stopping", True)] * 4


def test_images_leave_memory_with_their_request() -> None:
    """Not when the garbage collector comes by: under load that was half a gigabyte."""
    with running() as service:
        gc.collect()
        gc.disable()
        try:
            ticket = service.submit(ScoreRequest(("fake",), (WireItem(0, GREY, "", {}),), "id"), 60)
            ticket.done.result(60)
            left = weakref.ref(ticket)
            del ticket
            wait_for(lambda: left() is None, 10)  # the worker's thread lets go of its batch a moment later
        finally:
            gc.enable()


def test_memory_of_a_large_batch_crosses_the_socket() -> None:
    """More than a socket's buffer in both directions, in one frame."""
    worker = Worker("fake", settings("fake").scorers["fake"], "cpu", 1 << 24)
    try:
        worker.start()
        image = encode_image(np.full((512, 512, 3), 255, dtype=np.uint8), "raw")
        outcomes, timing = worker.score([RawItem(image, "x" * 10_000, {}) for _ in range(300)])
        assert outcomes == [Scores(1.0, {"twice": 2.0})] * 300
        assert set(timing) == {"decode_s", "score_s"}
    finally:
        worker.close()


def jobs(count: int, deadline_s: float = 60.0) -> tuple[list[Job], list[Outcome]]:
    got: list[Outcome] = []
    now = time.monotonic()
    return [Job(RawItem(GREY, str(i), {}), now + deadline_s, got.append, now) for i in range(count)], got


def prompts(batch: Sequence[Job] | None) -> list[str]:
    assert batch is not None
    return [job.item.prompt for job in batch]


def test_batches_are_full_or_have_waited() -> None:
    queue = JobQueue(max_images=3, max_wait_s=0.05)
    waiting, _ = jobs(4)
    queue.put(waiting)
    assert prompts(queue.take()) == ["0", "1", "2"]
    assert prompts(queue.take()) == ["3"]


def test_suspects_go_first_and_alone() -> None:
    queue = JobQueue(max_images=3, max_wait_s=0.0)
    waiting, _ = jobs(4)
    queue.put(waiting[:2])
    queue.put_suspects(waiting[2:])
    assert [prompts(queue.take()) for _ in range(3)] == [["2"], ["3"], ["0", "1"]]


def test_late_jobs_get_their_error_and_cost_no_scoring() -> None:
    queue = JobQueue(max_images=3, max_wait_s=0.0)
    late, got = jobs(1, deadline_s=-1.0)
    fresh, _ = jobs(1)
    queue.put(late + fresh)
    assert prompts(queue.take()) == ["0"]
    assert [code(outcome) for outcome in got] == [("deadline", True)]


def test_a_closed_queue_ends_its_workers() -> None:
    queue = JobQueue(max_images=3, max_wait_s=0.0)
    results: list[object] = []
    waiting = threading.Thread(target=lambda: results.append(queue.take()))
    waiting.start()
    queue.close()
    waiting.join(60)
    assert results == [None]


def test_jobs_for_a_pool_that_was_given_up_are_answered_at_once() -> None:
    own = settings("fake", options={"fake": {"class": "Broken"}})
    pool = WorkerPool("fake", own.scorers["fake"], own.limits.max_pixels, Telemetry())
    pool.start()
    with pytest.raises(WorkerError):
        pool.wait_until_warm()
    waiting, got = jobs(2)
    pool.submit(waiting)
    assert [code(outcome) for outcome in got] == [("worker_down", True)] * 2
    pool.stop()
