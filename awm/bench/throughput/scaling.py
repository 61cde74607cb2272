"""What an epoch would take on many ranks: a model, with its assumptions written down, for what cannot be measured."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Network:
    """Between the ranks.

    Attributes:
        bytes_per_s: what each rank can send, and receive at the same time.
        latency_s: of one message.
    """

    bytes_per_s: float = 25e9  # 200 Gbit/s a GPU: one network card for two GPUs, or a slow one for each
    latency_s: float = 20e-6


@dataclass(frozen=True, slots=True)
class Epoch:
    """What an epoch is made of.

    Attributes:
        images: over all ranks.
        seconds_per_image: of one rank, rollout and training.
        updates: optimizer steps.
        gradient_bytes: of all trained numbers, as they are sent.
        prompts: distinct ones, each encoded by every rank that has one of its images.
        seconds_per_prompt: of encoding one.
        gathers: small collectives over gloo: whether to stop, before each batch that is sampled and each micro-batch;
            rewards, metrics.
        gather_bytes_per_image: rewards, groups and flags.
    """

    images: int
    seconds_per_image: float
    updates: int
    gradient_bytes: float
    prompts: int = 0
    seconds_per_prompt: float = 0.0
    gathers: int = 128  # the recipe on 8 ranks: 36 sampling batches, 72 micro-batches, and some; fewer on more
    gather_bytes_per_image: float = 64.0


def epoch_seconds(epoch: Epoch, world_size: int, network: Network) -> float:
    """Seconds of an epoch on ``world_size`` ranks with data parallelism.

        ceil(M / N) s + ceil(P / N) e + U (2 (N - 1) / N G / b + 2 (N - 1) l) + K ceil(log2 N) l + M q / b

    with M images of s seconds on N ranks, P prompts of e seconds, U updates that all-reduce G bytes in a ring over
    links of b bytes/s with latency l, and K small collectives that carry q bytes an image between them.

    Assumptions: ranks are equally fast; nothing of the all-reduce hides behind the backward pass (DDP hides most); the
    slowest link bounds the ring; micro-batches stay as full as on one rank, so that seconds per image stay the same;
    reward servers grow with the ranks; saving and evaluating are left out.
    """
    images, prompts = math.ceil(epoch.images / world_size), math.ceil(epoch.prompts / world_size)
    compute = images * epoch.seconds_per_image + prompts * epoch.seconds_per_prompt
    if world_size == 1:
        return compute
    sent = 2 * (world_size - 1) / world_size * epoch.gradient_bytes / network.bytes_per_s
    reduce = epoch.updates * (sent + 2 * (world_size - 1) * network.latency_s)
    gather = epoch.gathers * math.ceil(math.log2(world_size)) * network.latency_s
    return compute + reduce + gather + epoch.images * epoch.gather_bytes_per_image / network.bytes_per_s


def efficiency(epoch: Epoch, world_size: int, network: Network) -> float:
    """Speed-up over one rank, divided by the number of ranks."""
    return epoch_seconds(epoch, 1, network) / (world_size * epoch_seconds(epoch, world_size, network))
