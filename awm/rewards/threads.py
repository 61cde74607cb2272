"""Threads in which images are scored while the next ones are sampled."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import torch


def scoring_pool(workers: int, device: torch.device) -> ThreadPoolExecutor:
    """Up to ``workers`` of them, beside a network that computes on ``device``.

    Beside one on a CPU each is left to a single core: torch gives every thread that computes a team of its own, as
    large as the machine, whose idle members keep cores busy that the network needs.
    """
    name = "reward"
    if device.type != "cpu":
        return ThreadPoolExecutor(workers, thread_name_prefix=name)
    torch.get_num_threads()  # settles this thread's number, which would else be the next one that any thread sets
    return ThreadPoolExecutor(workers, thread_name_prefix=name, initializer=torch.set_num_threads, initargs=(1,))
