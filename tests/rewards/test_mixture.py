"""A mixture is the weighted sum of its rewards, valid where all that matter are; monitors never stop a run."""

from __future__ import annotations

import logging
import pickle
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from awm.rewards.errors import RewardError
from awm.rewards.mixture import MixtureReward
from awm.types import Rewards

NAN = float("nan")


class Fixed:
    """Returns given values, or fails."""

    def __init__(self, name: str, *values: float, broken: bool = False) -> None:
        self.name = name
        self.values = torch.tensor(values)
        self.broken = broken
        self.calls = 0

    def __call__(self, images: Tensor, text: Sequence[str], metadata: Sequence[Mapping[str, Any]]) -> Rewards:
        self.calls += 1
        self.check()
        return Rewards(self.values, {self.name: self.values}, torch.isfinite(self.values))

    def check(self) -> None:
        if self.broken:
            raise RewardError(self.name, "http://x", "is down")


def ask(mixture: MixtureReward, count: int = 2) -> Rewards:
    return mixture(torch.zeros(count, 3, 8, 8), [""] * count, [{}] * count)


def test_total_is_the_weighted_sum() -> None:
    rewards = ask(MixtureReward({"a": (Fixed("a", 1.0, 2.0), 1.0), "b": (Fixed("b", 10.0, 20.0), -0.5)}))
    assert rewards.total.tolist() == [-4.0, -8.0]
    assert {name: part.tolist() for name, part in rewards.parts.items()} == {"a": [1.0, 2.0], "b": [10.0, 20.0]}


def test_valid_only_where_every_weighted_reward_is() -> None:
    mixture = {
        "a": (Fixed("a", 1.0, NAN, 3.0), 1.0),
        "b": (Fixed("b", NAN, 2.0, 3.0), 1.0),
        "monitor": (Fixed("monitor", NAN, NAN, NAN), 0.0),
    }
    rewards = ask(MixtureReward(mixture), 3)
    assert rewards.valid.tolist() == [False, False, True]
    assert rewards.total.isnan().tolist() == [True, True, False]
    assert rewards.parts["a"].isnan().tolist() == [False, True, False]


def test_a_broken_monitor_is_a_warning_once_and_nan(caplog: pytest.LogCaptureFixture) -> None:
    mixture = MixtureReward({"a": (Fixed("a", 1.0, 2.0), 1.0), "b": (Fixed("b", broken=True), 0.0)})
    with caplog.at_level(logging.WARNING):
        mixture.check()
        rewards = ask(mixture)
    assert rewards.total.tolist() == [1.0, 2.0] and rewards.valid.all()
    assert rewards.parts["b"].isnan().all()
    assert len([r for r in caplog.records if "only monitored" in r.getMessage()]) == 1


def test_a_broken_reward_with_a_weight_is_an_error() -> None:
    mixture = MixtureReward({"a": (Fixed("a", broken=True), 1.0)})
    for call in (mixture.check, lambda: ask(mixture)):
        with pytest.raises(RewardError, match="is down"):
            call()


def test_something_must_have_a_weight() -> None:
    with pytest.raises(ValueError, match="nothing to learn"):
        MixtureReward({"a": (Fixed("a", 1.0), 0.0)})


def test_a_common_source_is_asked_once() -> None:
    first, second = Fixed("a", 1.0, 2.0), Fixed("b", 9.0, 9.0)
    first.source = second.source = "same"  # type: ignore[attr-defined]
    with pytest.raises(RewardError, match="choose one of a"):
        ask(MixtureReward({"a": (first, 1.0), "b": (second, 1.0)}))
    assert (first.calls, second.calls) == (1, 0)


class Source(Fixed):
    """One of several names of one scorer; ``parts`` are what the scorer returns."""

    source = "scorer"

    def __init__(self, name: str, parts: Mapping[str, float], broken: bool = False) -> None:
        super().__init__(name, broken=broken)
        self.parts = parts

    def __call__(self, images: Tensor, text: Sequence[str], metadata: Sequence[Mapping[str, Any]]) -> Rewards:
        self.calls += 1
        self.check()
        parts = {name: torch.full((len(images),), value) for name, value in self.parts.items()}
        total = parts.get(self.name, torch.full((len(images),), NAN))
        return Rewards(total, parts, torch.isfinite(total))


def test_a_name_with_a_weight_asks_for_its_group() -> None:
    parts = {"geneval": 1.0, "geneval.strict": 0.5}
    # The patience of a watched name is none: it gives up where the other one would wait.
    watched, learnt = Source("geneval", parts, broken=True), Source("geneval.strict", parts)
    rewards = ask(MixtureReward({"geneval": (watched, 0.0), "geneval.strict": (learnt, 2.0)}))
    assert (watched.calls, learnt.calls) == (0, 1)
    assert rewards.total.tolist() == [1.0, 1.0] and rewards.parts["geneval"].tolist() == [1.0, 1.0]


def test_a_batch_without_any_score_is_masked_for_every_name() -> None:
    # All images failed, so the scorer's answer does not even name its other numbers.
    pair = {
        "geneval": (Source("geneval", {"geneval": NAN}), 1.0),
        "geneval.strict": (Source("geneval.strict", {}), 0.2),
    }
    rewards = ask(MixtureReward(pair))
    assert not rewards.valid.any() and rewards.total.isnan().all()
    assert rewards.parts["geneval.strict"].isnan().all()


def test_a_watched_name_that_does_not_exist_is_a_warning_once(caplog: pytest.LogCaptureFixture) -> None:
    parts = {"geneval": 1.0, "geneval.strict": 0.5}
    mixture = MixtureReward(
        {"geneval": (Source("geneval", parts), 1.0), "geneval.strickt": (Source("geneval.strickt", parts), 0.0)}
    )
    with caplog.at_level(logging.WARNING):
        rewards = [ask(mixture) for _ in range(2)][1]
    assert rewards.total.tolist() == [1.0, 1.0] and rewards.parts["geneval.strickt"].isnan().all()
    (record,) = caplog.records
    assert "geneval.strickt" in record.getMessage() and "choose one of geneval, geneval.strict" in record.getMessage()


def test_errors_survive_the_way_between_processes() -> None:
    error = pickle.loads(pickle.dumps(RewardError("a", "http://x", "is down")))
    assert (error.name, error.url, error.cause) == ("a", "http://x", "is down")
