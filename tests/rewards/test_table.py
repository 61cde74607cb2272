"""Each scorer can live on a server of its own; the configuration reaches the clients."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from ml_collections import ConfigDict

from awm.building import build_reward
from awm.rewards.errors import RewardError
from awm.rewards.table import make_mixture
from reward_server.service import Service
from tests.reward_server.serving import serve, settings
from tests.rewards.answers import ask, images

NOBODY = "http://127.0.0.1:9"


def test_two_scorers_on_two_servers(make_config: Callable[..., ConfigDict]) -> None:
    config = make_config()
    with serve(Service(settings("fake"))) as first, serve(Service(settings("fake_2"))) as second:
        with config.unlocked():
            config.reward_fn = ConfigDict({"fake": 1.0, "fake.twice": 0.25, "fake_2": 0.5}, allow_dotted_keys=True)
            config.reward_server.urls = (first,)
            config.reward_server.urls_of = ConfigDict({"fake_2": (second,)}, allow_dotted_keys=True)
        reward = build_reward(config)
        reward.check()
        torch.testing.assert_close(ask(reward, images(0.2, 0.4)).total, torch.tensor([0.4, 0.8]))
        everywhere = make_mixture({"fake": 1.0, "fake_2": 1.0}, [first])
        with pytest.raises(RewardError, match=r"no scorer 'fake_2'.*reward_server\.urls_of\.fake_2"):
            everywhere.check()


@pytest.mark.parametrize(
    ("scorer", "message"),
    [
        ("genevall", r"names 'genevall', but the scorers in reward_fn are geneval, jpeg.*Did you mean 'geneval'"),
        ("geneval.strict", r"names 'geneval.strict'.*Servers are given per scorer"),
        ("jpeg_compressibility", r"computed in the trainer's own process; remove it"),
    ],
)
def test_servers_of_a_scorer_that_asks_none(scorer: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_mixture({"geneval.strict": 1.0, "jpeg_compressibility": 0.1}, [NOBODY], {scorer: [NOBODY]})


def test_waiting_and_versions_are_the_configuration_s(make_config: Callable[..., ConfigDict]) -> None:
    config = make_config(reward_server__server_wait_s=0.0, reward_server__allow_changed_scorer=True)
    with config.unlocked():
        config.reward_fn = ConfigDict({"fake": 1.0})
        config.reward_server.urls = (NOBODY,)
    with pytest.raises(RewardError, match="no answer"):
        ask(build_reward(config), images(0.2))  # at once, instead of after seven minutes
    with serve(Service(settings("fake"))) as url:
        config.reward_server.urls = (url,)
        reward = build_reward(config)
        assert ask(reward, images(0.2)).valid.all()
    port = int(url.rpartition(":")[2])
    with serve(Service(settings("fake", options={"fake": {"version": "2"}})), port=port):
        assert ask(reward, images(0.2)).valid.all()
