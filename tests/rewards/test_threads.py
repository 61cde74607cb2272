"""Scoring beside a network on the CPU takes one core, and leaves the network its own."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import sys
import torch
from awm.rewards.threads import scoring_pool

torch.set_num_threads(3)
with scoring_pool(2, torch.device(sys.argv[1])) as pool:
    scoring = {pool.submit(torch.get_num_threads).result() for _ in range(4)}
torch.ones(4, 4) @ torch.ones(4, 4)
print(scoring, torch.get_num_threads())
"""


@pytest.mark.parametrize(("device", "scoring"), [("cpu", "{1}"), ("cuda", "{3}")])
def test_threads_of_a_scorer_and_of_the_network(device: str, scoring: str) -> None:
    # In a process of its own: the number that later threads begin with is torch's for the whole process.
    said = subprocess.run([sys.executable, "-c", PROGRAM, device], check=True, capture_output=True, text=True).stdout
    assert said.split() == [scoring, "3"]
