"""A rank that is killed, fails, diverges or is told to stop: what all ranks do, say and leave behind."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from awm.training.stopping import SAME_REQUEST_S
from tests.training import faults
from tests.training.jobs import Ranks, arguments, lines_of, lora_of, run_folder
from tests.training.rank_scenarios import ENGINES

Make = Callable[..., ConfigDict]
WITHIN_S = 60  # between a death and the end of all ranks
SEVERAL_STEPS = {"train__updates_per_inner_epoch": 2, "train__batch_size": 2}


@pytest.mark.parametrize(
    ("place", "call", "dead"), [(faults.SAMPLING, 5, 1), (faults.UPDATE, 3, 0)], ids=["sampling", "update"]
)
def test_a_killed_rank_is_named_by_the_others_which_end(
    make_config: Make, tmp_path: Path, place: str, call: int, dead: int
):
    config = make_config(num_epochs=50, eval_freq=0)
    hurt = faults.at(place, call, dead, faults.killed)
    with Ranks(arguments(config, tmp_path), tmp_path, 2, hurt) as ranks:
        ranks.wait_for(lambda: ranks.processes[dead].exitcode is not None)
        statuses = ranks.wait(WITHIN_S)
    other = 1 - dead
    assert (statuses[dead], statuses[other]) == (-signal.SIGKILL, 1)
    errors = [line for line in ranks.outputs[other].splitlines() if line.startswith("rank ")]
    seen = ("lost contact with another rank", "ends with the job")  # whichever thread of a busy machine comes first
    assert errors[0].startswith(tuple(f"rank {other}: {what}; rank {dead} on " for what in seen))
    assert "killed" in errors[0] and "Traceback" not in ranks.outputs[other]


def test_the_first_error_is_told_to_all_ranks(make_config: Make, tmp_path: Path):
    config = make_config(num_epochs=50, eval_freq=0)
    hurt = faults.at(faults.UPDATE, 3, 1, faults.failing)
    with Ranks(arguments(config, tmp_path), tmp_path, 2, hurt) as ranks:
        assert ranks.wait() == [1, 1]
    other, failed = ranks.outputs
    assert "rank 1 failed:\nTraceback" in failed and failed.count("RuntimeError: boom") == 1
    assert "RuntimeError: boom: the first error" in other and "Traceback" not in other


def waiting_for_scores(make_config: Make, folder: Path, url: str) -> list[str]:
    config = make_config(num_epochs=1, eval_freq=0, reward_server__urls=(url,))
    return arguments(config, folder, "--config.reward_fn=geneval=1", "--config.reward_server.timeout_s=1000")


def test_a_rank_that_waits_for_a_reward_ends_when_another_is_killed(make_config: Make, tmp_path: Path):
    with faults.silent_server() as server:
        command = waiting_for_scores(make_config, tmp_path, server.url)
        with Ranks(command, tmp_path, 2, faults.grace(2)) as ranks:
            ranks.wait_for(lambda: server.asked == 6)  # three batches each: nothing is left but to wait
            ranks.signal(1, signal.SIGKILL)
            assert ranks.wait(WITHIN_S) == [1, -signal.SIGKILL]
    assert "rank 0: ends with the job; rank 1 on " in ranks.outputs[0] and "Traceback" not in ranks.outputs[0]


def test_a_signal_to_one_rank_stops_all_also_while_they_wait_for_scores(make_config: Make, tmp_path: Path):
    with faults.silent_server() as server:
        command = waiting_for_scores(make_config, tmp_path, server.url)
        with Ranks(command, tmp_path, 2) as ranks:
            ranks.wait_for(lambda: server.asked == 6)
            ranks.signal(1, signal.SIGTERM)
            assert ranks.wait(WITHIN_S) == [0, 0]
    assert "resume_from=auto" in ranks.outputs[0]


@pytest.mark.parametrize("engine", ["ddp", "fsdp2"])
def test_an_update_that_one_rank_interrupts_is_taken_back_by_all(make_config: Make, tmp_path: Path, engine: str):
    sharing = ENGINES[engine]
    whole = make_config(run_name="whole", num_epochs=3, save_freq=3, **SEVERAL_STEPS)
    with Ranks(arguments(whole, tmp_path), tmp_path, 2, environment=sharing) as ranks:
        assert ranks.wait() == [0, 0]
    cut = make_config(run_name="cut", num_epochs=3, save_freq=3, **SEVERAL_STEPS)
    # Epoch 2 begins with the fifth micro-batch; its first step is taken before the seventh, its second not yet.
    hurt = faults.at(faults.UPDATE, 7, 1, partial(faults.signalled, signal.SIGINT))
    with Ranks(arguments(cut, tmp_path), tmp_path, 2, hurt, sharing) as ranks:
        assert ranks.wait() == [130, 130]
    assert [p.name for p in (run_folder(cut) / "checkpoints").iterdir()] == ["epoch_000001"]
    assert [line["epoch"] for line in lines_of(cut)] == [0, 1]
    assert "resume_from=auto" in ranks.outputs[0]
    with Ranks(arguments(cut, tmp_path, "--config.resume_from=auto"), tmp_path, 2, environment=sharing) as ranks:
        assert ranks.wait() == [0, 0]
    assert lines_of(cut) == lines_of(whole)
    assert lora_of(cut, 3) == lora_of(whole, 3)


@pytest.mark.parametrize("how", [faults.signalled, faults.signalled_in_c_code])
def test_a_signal_while_the_model_is_loaded_ends_all_ranks(make_config: Make, tmp_path: Path, how: Callable[..., None]):
    config = make_config()
    hurt = faults.at(faults.LOADING, 1, 1, partial(how, signal.SIGINT))
    with Ranks(arguments(config, tmp_path), tmp_path, 2, hurt) as ranks:
        assert ranks.wait() == [130, 130]
    assert "Traceback" not in "".join(ranks.outputs)


def test_a_rank_killed_while_the_model_is_loaded_is_no_good_end(make_config: Make, tmp_path: Path):
    hurt = faults.everywhere(faults.LOADING, partial(faults.slow, f"{tmp_path}/loading"))
    with Ranks(arguments(make_config(), tmp_path), tmp_path, 3, hurt) as ranks:
        ranks.wait_for(lambda: len(list(tmp_path.glob("loading*"))) == 3)
        ranks.signal(1, signal.SIGKILL)
        ranks.signal(2, signal.SIGTERM)  # as torchrun does with the others of its machine
        assert ranks.wait(WITHIN_S) == [1, -signal.SIGKILL, 1]
    for rank in (0, 2):
        assert f"rank {rank}: ends with the job; rank 1 on " in ranks.outputs[rank]


def test_a_signal_ends_also_a_rank_that_never_comes_back_from_loading(make_config: Make, tmp_path: Path):
    stuck = faults.at(faults.LOADING, 1, 1, partial(faults.stuck, f"{tmp_path}/loading"))
    with Ranks(arguments(make_config(), tmp_path), tmp_path, 2, faults.together(stuck, faults.grace(1))) as ranks:
        ranks.wait_for((tmp_path / "loading1").exists)
        ranks.signal(1, signal.SIGINT)
        assert ranks.wait(WITHIN_S) == [130, 130]


def test_a_second_interrupt_ends_a_rank_also_in_a_collective(make_config: Make, tmp_path: Path):
    stuck = faults.at(faults.SAMPLING, 1, 1, partial(faults.stuck, f"{tmp_path}/sampling"))
    with Ranks(arguments(make_config(eval_freq=0), tmp_path), tmp_path, 2, stuck) as ranks:
        ranks.wait_for((tmp_path / "sampling1").exists)
        ranks.signal(1, signal.SIGINT)
        ranks.wait_for(lambda: "SIGINT" in ranks.outputs[0])  # passed on
        time.sleep(SAME_REQUEST_S)
        ranks.signal(1, signal.SIGINT)
        assert ranks.wait(WITHIN_S)[1] == 130


def test_a_crash_on_all_ranks_is_one_traceback(make_config: Make, tmp_path: Path):
    hurt = faults.everywhere(faults.UPDATE, faults.out_of_memory)
    with Ranks(arguments(make_config(eval_freq=0), tmp_path), tmp_path, 2, hurt) as ranks:
        assert ranks.wait() == [1, 1]
    assert "rank 0 failed:\nTraceback" in ranks.outputs[0]
    assert "rank 1 failed, too: RuntimeError: out of memory: 11 MiB on GPU 1" in ranks.outputs[1]
    assert "Traceback" not in ranks.outputs[1]


def test_a_nan_on_one_rank_stops_all_with_its_rank_and_step_said_once(make_config: Make, tmp_path: Path):
    config = make_config(num_epochs=3, save_freq=100, eval_freq=0, **SEVERAL_STEPS)
    with Ranks(arguments(config, tmp_path), tmp_path, 2, faults.diverging(8, 1)) as ranks:
        assert ranks.wait() == [1, 1]
    said = "".join(ranks.outputs)
    assert said.count("non-finite loss on rank 1 in epoch 2, optimizer step 2 of 2") == 1
    assert "Traceback" not in said
    state = run_folder(config) / "checkpoints" / "epoch_000001" / "manifest.json"
    assert json.loads(state.read_text())  # what was good before it is not lost


def test_a_mistake_that_all_ranks_make_is_one_message(make_config: Make, tmp_path: Path):
    config = make_config()
    with Ranks(arguments(config, tmp_path, "--config.sample.num_prompts_per_epoch=99"), tmp_path, 2) as ranks:
        assert ranks.wait() == [1, 1]
    said = "".join(ranks.outputs)
    assert said.count("99 prompts per epoch") == 1 and "Traceback" not in said


def test_two_jobs_do_not_write_to_one_run_folder(make_config: Make, tmp_path: Path):
    config = make_config(num_epochs=400, eval_freq=0, save_freq=100)
    (tmp_path / "second").mkdir()
    with Ranks(arguments(config, tmp_path), tmp_path, 1) as first:
        first.wait_for(lambda: "epoch 1/" in first.outputs[0])
        second_try = arguments(config, tmp_path, "--config.resume_from=auto")
        with Ranks(second_try, tmp_path / "second", 2, faults.impatient()) as second:
            assert second.wait() == [1, 1]
        assert f"is in use by process {first.processes[0].pid} on {os.uname().nodename}" in "".join(second.outputs)
        first.signal(0, signal.SIGTERM)
        assert first.wait() == [0]
    assert lines_of(config)[-1]["epoch"] >= 1
