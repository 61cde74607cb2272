"""A run of thousands of epochs must not grow: nothing of an epoch outlives it."""

from __future__ import annotations

import gc
import threading
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import psutil
import torch
from ml_collections import ConfigDict

from awm.building import build_trainer
from awm.rewards.remote import RemoteReward
from awm.training.distributed import Distributed
from awm.training.stopping import StopRequest
from reward_server.service import Service
from tests.reward_server.serving import serve, settings
from tests.rewards.answers import ask, images

EPOCHS, WARM_UP, BOUND_MB = 200, 40, 8.0


@dataclass(frozen=True)
class Held:
    """What this process holds on to."""

    resident_mb: float
    tensors: int
    threads: int
    descriptors: int


def held() -> Held:
    gc.collect()
    process = psutil.Process()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # asking each object for its class wakes up deprecated ones
        tensors = sum(isinstance(item, torch.Tensor) for item in gc.get_objects())
    return Held(process.memory_info().rss / 2**20, tensors, threading.active_count(), process.num_fds())


def test_memory_is_flat_over_200_epochs(make_config: Callable[..., ConfigDict]):
    config = make_config(
        num_epochs=EPOCHS,
        save_freq=10,
        eval_freq=20,
        resolution=16,
        lora_rank=1,
        trackers=("tensorboard",),
        evaluation__max_prompts=1,
        sample__num_prompts_per_epoch=2,
        sample__num_image_per_prompt=2,
        sample__num_steps=3,
        sample__eval_num_steps=2,
        sample__train_batch_size=4,
        train__batch_size=4,
        train__train_timesteps=1,
    )
    distributed = Distributed(config.mixed_precision)
    trainer = build_trainer(config, distributed, StopRequest(distributed))
    seen: list[Held] = []
    finish_epoch = trainer.finish_epoch

    def watched(metrics: dict[str, Any]) -> None:
        finish_epoch(metrics)
        if trainer.epoch in (WARM_UP, EPOCHS):
            seen.append(held())

    trainer.finish_epoch = watched  # type: ignore[method-assign]
    trainer.train()
    trainer.outputs.finish()
    warm, end = seen
    assert end.resident_mb - warm.resident_mb < BOUND_MB
    assert (end.tensors, end.threads, end.descriptors) == (warm.tensors, warm.threads, warm.descriptors)


def test_a_new_pool_of_scoring_threads_every_epoch_leaves_no_connections_behind():
    with serve(Service(settings("fake"))) as url:
        reward = RemoteReward([url], "fake")

        def epoch() -> None:
            with ThreadPoolExecutor(4) as pool:
                for scores in pool.map(lambda level: ask(reward, images(level)), (0.1, 0.2, 0.3, 0.4)):
                    assert scores.valid.all()

        for _ in range(5):
            epoch()
        warm = held()
        for _ in range(60):
            epoch()
        end = held()
    assert end.threads <= warm.threads + 2  # the server in this process has threads of its own
    assert end.descriptors <= warm.descriptors + 4
