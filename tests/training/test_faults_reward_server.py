"""A reward server that is killed during a run: the run waits for it, goes on, and comes out the same."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ml_collections import ConfigDict

from tests.training.jobs import Ranks, RewardServer, arguments, epochs, lines_of

Make = Callable[..., ConfigDict]


def test_a_killed_reward_server_is_waited_for_and_the_run_comes_out_the_same(make_config: Make, tmp_path: Path):
    with RewardServer(tmp_path) as server:
        overrides = (f"--config.reward_fn={server.name}=1", f"--config.reward_server.urls=('{server.url}',)")
        whole = make_config(run_name="whole", num_epochs=8, eval_freq=4, save_freq=100)
        with Ranks(arguments(whole, tmp_path, *overrides), tmp_path, 2) as ranks:
            assert ranks.wait() == [0, 0]
        hurt = make_config(run_name="hurt", num_epochs=8, eval_freq=4, save_freq=100)
        with Ranks(arguments(hurt, tmp_path, *overrides), tmp_path, 2) as ranks:
            for lines in (2, 6):  # the evaluation of the base model is the first
                ranks.wait_for(lambda lines=lines: epochs(hurt) >= lines)
                server.kill()
                stuck = epochs(hurt)
                server.start()
                ranks.wait_for(lambda stuck=stuck: epochs(hurt) > stuck)
            assert ranks.wait() == [0, 0]
    assert lines_of(hurt) == lines_of(whole)
    assert all(line["reward/invalid_fraction"] == 0 for line in lines_of(hurt)[1:])
