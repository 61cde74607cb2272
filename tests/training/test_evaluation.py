"""What evaluations promise: every image once, from its own noise, and ranks that stop together."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from awm.data.prompts import PromptSet
from awm.flow.times import shifted_grid
from awm.held_out.items import evaluation_items
from awm.held_out.records import read_records
from awm.rewards.errors import RewardError
from awm.samplers.ddim import DDIM
from awm.training.evaluation import Evaluation, ScoredImage, summarise, to_records, write_scores
from awm.training.rollout import Rollout
from awm.training.stopping import StopRequestedError
from awm.types import Rewards
from tests.helpers import FakePolicy, TinyFlow


class Ranks:
    """Threads that meet in every collective; one that waits alone is an error after two seconds."""

    def __init__(self, world_size: int) -> None:
        self.barrier = threading.Barrier(world_size, timeout=2)
        self.slots: list[Any] = [None] * world_size

    def meet(self, rank: int, value: Any) -> list[Any]:
        self.slots[rank] = value
        self.barrier.wait()
        values = list(self.slots)
        self.barrier.wait()
        return values


class Rank:
    """As much of ``Distributed`` as an evaluation uses."""

    device = torch.device("cpu")

    def __init__(self, ranks: Ranks, rank: int, forwards_are_collective: bool) -> None:
        self.ranks, self.rank, self.world_size = ranks, rank, len(ranks.slots)
        self.forwards_are_collective = forwards_are_collective

    def any(self, flag: bool) -> bool:
        return any(value is not None and value[0] for value in self.ranks.meet(self.rank, (flag,)))

    def gather_objects(self, items: list[Any]) -> list[Any]:
        return [item for part in self.ranks.meet(self.rank, items) for item in part]


class ShardedFlow(TinyFlow):
    """Every forward needs all ranks, as with FSDP2."""

    distributed: Rank

    def velocity(self, *args: Any, **kwargs: Any) -> Tensor:
        self.distributed.any(False)
        return super().velocity(*args, **kwargs)


class Brightness:
    """Scores an image by its mean; fails for the prompt "broken"."""

    def check(self) -> None: ...

    def __call__(self, images: Tensor, text: Sequence[str], metadata: Sequence[Any]) -> Rewards:
        if "broken" in text:
            raise RewardError("brightness", "http://x", "is gone")
        total = images.mean((1, 2, 3))
        return Rewards(total, {"brightness": total}, torch.isfinite(total))


def evaluate(
    text: tuple[str, ...],
    world_size: int,
    stops: Callable[[int, int], bool] = lambda rank, call: False,
    batch: int = 1,
    sharded: bool = False,
) -> list[list[ScoredImage] | Exception]:
    """Evaluate on ``world_size`` threads; ``stops(rank, call)``: has this rank been asked to stop by then?"""
    ranks = Ranks(world_size)

    def run(rank: int) -> list[ScoredImage] | Exception:
        torch.set_num_threads(1)
        distributed: Any = Rank(ranks, rank, sharded)
        model = ShardedFlow() if sharded else TinyFlow()
        model.distributed = distributed
        policy: Any = FakePolicy(model)
        rollout = Rollout(
            policy=policy,
            sampler=DDIM(grid=shifted_grid(3)),
            reward=Brightness(),
            distributed=distributed,
            batch_size=batch,
            resolution=32,
        )
        evaluation = Evaluation(
            rollout=rollout,
            prompts=PromptSet(text, tuple({"tag": words[:1]} for words in text)),
            distributed=distributed,
            images_per_prompt=1,
            max_prompts=0,
            num_saved_images=2,
            seed=0,
        )
        calls = 0

        def progress(images: int) -> None:
            nonlocal calls
            calls += 1
            if distributed.any(stops(rank, calls)):
                raise StopRequestedError("stopped", 0)

        try:
            return evaluation(progress)
        except (RewardError, StopRequestedError, threading.BrokenBarrierError) as error:
            return error

    with ThreadPoolExecutor(world_size) as pool:
        return list(pool.map(run, range(world_size)))


@pytest.mark.parametrize("world_size", [1, 2, 3, 7])
def test_every_image_once_and_the_same_on_any_number_of_ranks(world_size: int) -> None:
    text = ("a", "bb", "a", "ccc", "dddd")  # the second "a" is another image
    (alone,) = evaluate(text, 1, batch=2)
    for scored in evaluate(text, world_size, batch=2):
        assert isinstance(scored, list) and isinstance(alone, list)
        records = [item.record for item in scored]
        assert [record.index for record in records] == [0, 1, 2, 3, 4]
        assert [record.prompt for record in records] == list(text)
        assert [record.copy for record in records] == [0, 0, 1, 0, 0]
        assert [record.scores for record in records] == [pytest.approx(item.record.scores) for item in alone]
        assert [item.image is not None for item in scored] == [True, False, True, False, False]
        assert records[0].scores != records[2].scores
        assert summarise(scored).keys() == {"eval/brightness", *(f"eval/brightness/{tag}" for tag in "abcd")}


@pytest.mark.parametrize(
    "text", [("broken", "b", "c"), ("a", "b", "broken"), ("broken",), ("a", "broken", "c", "d", "e")]
)
@pytest.mark.parametrize("world_size", [2, 3])
def test_a_reward_that_fails_on_one_rank_is_the_same_error_on_all(text: tuple[str, ...], world_size: int) -> None:
    results = evaluate(text, world_size)
    assert [type(result) for result in results] == [RewardError] * world_size
    assert sum("is gone" in str(result) for result in results) == 1


@pytest.mark.parametrize("call", [1, 2, 3])
@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("text", [("a", "b", "c"), ("a",)])
def test_all_ranks_stop_together(text: tuple[str, ...], rank: int, call: int) -> None:
    results = evaluate(text, 2, stops=lambda r, c: r == rank and c >= call)
    expected = StopRequestedError if call <= (3 if len(text) == 3 else 2) else list
    assert [type(result) for result in results] == [expected] * 2


@pytest.mark.parametrize("world_size", [2, 3, 7])
def test_where_forwards_are_collective_all_ranks_run_equally_many(world_size: int) -> None:
    text = ("a", "bb", "a", "ccc", "dddd")
    (alone,) = evaluate(text, 1, batch=2)
    for scored in evaluate(text, world_size, batch=2, sharded=True):
        assert isinstance(scored, list) and isinstance(alone, list), scored
        assert [item.record for item in scored] == [
            replace(item.record, scores=pytest.approx(item.record.scores)) for item in alone
        ]


def test_an_image_without_a_score_says_why() -> None:
    items = evaluation_items(PromptSet(("a", "b", "c"), ({}, {}, {})), 1)
    values = torch.tensor([1.0, torch.nan, torch.inf])
    told = to_records(items, Rewards(values, {"r": values}, torch.isfinite(values), ("", "r: no text found", "")))
    assert [record.scores["r"] for record in told] == [1.0, None, None]
    assert [record.error for record in told] == ["", "r: no text found", "a score was no finite number"]
    untold = to_records(items, Rewards(values, {"r": values}, torch.isfinite(values)))
    assert [bool(record.error) for record in untold] == [False, True, True]


def test_scores_and_images_are_written_together(tmp_path: Path) -> None:
    (scored,) = evaluate(("a", "b", "c"), 1)
    assert isinstance(scored, list)
    write_scores(tmp_path, scored)
    assert [record.image for record in read_records(tmp_path)] == ["00000.png", "00001.png", None]
    assert sorted(file.name for file in tmp_path.glob("*.png")) == ["00000.png", "00001.png"]
