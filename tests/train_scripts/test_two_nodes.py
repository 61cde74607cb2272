"""Two nodes, each with its own launch.sh as on a cluster, train what one process trains, and end together."""

from __future__ import annotations

import json
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from awm.building import build_trainer
from awm.configuration import config_to_dict
from awm.training.distributed import Distributed
from awm.training.metrics import read_metrics
from awm.training.stopping import StopRequest
from tests.train_scripts.nodes_on_loopback import finish, free_port, launch

MEASURED = ("time/", "memory/", "images_per_s")


def test_two_nodes_give_the_metrics_of_one_process(make_config: Callable[..., ConfigDict], tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_text(json.dumps(config_to_dict(make_config(run_name="two", eval_freq=0))))
    run = tmp_path / "logs" / "two"
    # As a platform that counts nodes in RANK and WORLD_SIZE gives them.
    cluster = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port(), "NPROC": "1"}
    cluster |= {"CONFIG": str(file), "VENV": sys.prefix}
    nodes = [launch("--config.num_epochs=5000", RANK=str(rank), **cluster) for rank in range(2)]
    give_up = time.monotonic() + 120
    while not saved_epochs(run) and time.monotonic() < give_up and nodes[0].poll() is None:
        time.sleep(0.05)
    nodes[1].send_signal(signal.SIGTERM)
    ended = [finish(node) for node in nodes]
    assert [status for status, _ in ended] == [0, 0], ended
    assert "SIGTERM: the trainer saves and ends" in ended[1][1]
    num_epochs = saved_epochs(run)
    assert 0 < num_epochs < 5000

    config = make_config(run_name="alone", num_epochs=num_epochs, eval_freq=0)
    distributed = Distributed()
    trainer = build_trainer(config, distributed, StopRequest(distributed))
    trainer.train()
    two, alone = (read_metrics(tmp_path / "logs" / name / "metrics.jsonl") for name in ("two", "alone"))
    assert [line["epoch"] for line in two] == [line["epoch"] for line in alone]
    for ours, reference in zip(two, alone, strict=True):
        names = [name for name in reference if not name.startswith(MEASURED)]
        assert len(names) > 10
        assert {name: ours[name] for name in names} == pytest.approx(
            {n: reference[n] for n in names}, rel=1e-5, abs=1e-5
        )
    for number, (_, output) in enumerate(ended):
        log = (run / "nodes" / f"node_{number}" / "train.log").read_text()
        assert log == output and f"node {number} of 2" in log


def saved_epochs(run: Path) -> int:
    """Epochs in the newest checkpoint."""
    found = sorted((run / "checkpoints").glob("epoch_*/manifest.json"))
    return int(found[-1].parent.name.removeprefix("epoch_")) if found else 0
