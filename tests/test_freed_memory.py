"""Freed tensors' memory serves the next ones: the kernel clears far fewer pages."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys
import torch
from awm.freed_memory import keep_freed_memory, return_freed_memory

if sys.argv[1] != "default":
    assert keep_freed_memory()
if sys.argv[1] == "return":
    assert return_freed_memory()
x = torch.ones(2**20)  # 4 MiB

def step():
    return len([x + 1 for _ in range(32)])  # 128 MiB, all of it freed at the end

for _ in range(5):
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults(mode: str) -> int:
    command = [sys.executable, "-c", PROGRAM, mode]
    result = subprocess.run(command, check=True, capture_output=True, text=True)
    return int(result.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's settings")
def test_tensors_do_not_cost_new_pages():
    kept = page_faults("keep")
    assert kept < 0.1 * page_faults("default")
    assert page_faults("return") > 1000 + kept
