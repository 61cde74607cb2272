"""Rewards by name; those computed in process are the server's scorers without the server."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from awm.interfaces import Reward
from awm.rewards.errors import RewardError
from awm.rewards.in_process import ScorerReward, in_process_reward
from awm.rewards.remote import RemoteReward
from awm.rewards.table import IN_PROCESS, make_mixture, make_reward
from awm.tiny.prompts import TASKS, all_records
from awm.tiny.scenes import random_scene
from reward_server.scorers.base import Item, Outcome, Scores

URLS = ["http://127.0.0.1:18080"]


def test_right_renders_score_one() -> None:
    rng = np.random.default_rng(0)
    records = [next(r for r in all_records() if r["tag"] == task) for task in TASKS]
    images = np.stack([random_scene(record, rng).image() for record in records])
    batch = torch.from_numpy(images).permute(0, 3, 1, 2) / 255
    rewards = in_process_reward("geneval_shapes.strict")(batch, [r["prompt"] for r in records], records)
    assert rewards.total.tolist() == [1.0] * len(TASKS)
    assert set(rewards.parts) == {f"geneval_shapes{m}" for m in ("", ".strict", ".correct", ".soft_reference")}


def textures() -> Tensor:
    noise = torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(0))
    return torch.stack([torch.full((3, 64, 64), 0.5), noise])


def test_compressibility_prefers_the_flat_image() -> None:
    flat, noisy = in_process_reward("jpeg_compressibility")(textures(), ["", ""], [{}, {}]).total.tolist()
    assert -1.0 < flat < 0.0 and noisy < 3 * flat
    opposite = in_process_reward("jpeg_incompressibility")(textures(), ["", ""], [{}, {}]).total.tolist()
    assert opposite == [-flat, -noisy]


@pytest.mark.parametrize("name", [name for name in IN_PROCESS if not name.startswith("differentiable_")])  # downloads
def test_every_name_in_the_table_works(name: str) -> None:
    reward: Reward = make_reward(name, URLS)
    reward.check()


def test_other_names_are_asked_of_the_server() -> None:
    reward = make_reward("geneval.strict", URLS, timeout_s=3.0)
    assert isinstance(reward, RemoteReward)
    assert (reward.scorer, reward.metric, reward.connection.timeout_s) == ("geneval", "strict", 3.0)


def test_a_mixture_from_names_and_weights() -> None:
    mixture = make_mixture({"jpeg_compressibility": 1, "jpeg_incompressibility": 0.5}, URLS)
    rewards = mixture(textures(), ["", ""], [{}, {}])
    torch.testing.assert_close(rewards.total, 0.5 * rewards.parts["jpeg_compressibility"])


def test_no_images() -> None:
    assert len(in_process_reward("jpeg_compressibility")(torch.zeros(0, 3, 8, 8), [], []).total) == 0


def test_bad_metadata_is_masked() -> None:
    rewards = in_process_reward("geneval_shapes")(textures(), ["", ""], [{}, {}])
    assert not rewards.valid.any() and rewards.total.isnan().all()


class Moody:
    """Fails on the prompt "bad", overflows on "huge"; else 1."""

    def __call__(self, items: Sequence[Item]) -> list[Outcome]:
        if any(item.prompt == "bad" for item in items):
            raise RuntimeError("swallowed poison")
        return [Scores(1e39 if item.prompt == "huge" else 1.0) for item in items]

    def fingerprint(self) -> Mapping[str, str]:
        return {}

    def example(self) -> tuple[str, Mapping[str, Any]]:
        return "bad", {}


@pytest.mark.parametrize(("prompt", "cause"), [("bad", "swallowed poison"), ("huge", "no finite float32")])
def test_what_goes_wrong_with_one_image_stays_with_it(
    prompt: str, cause: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "awm.rewards"):
        rewards = ScorerReward("moody", Moody(), "moody")(textures(), ["", prompt], [{}, {}])
    assert rewards.valid.tolist() == [True, False] and rewards.total.isnan().tolist() == [False, True]
    (record,) = [record for record in caplog.records if record.name.startswith("awm.rewards")]
    assert "1 of 2 images" in record.getMessage() and cause in record.getMessage()


def test_a_scorer_that_cannot_score_its_own_example_does_not_pass() -> None:
    with pytest.raises(RewardError, match="cannot score a plain grey image"):
        ScorerReward("moody", Moody(), "moody").check()
