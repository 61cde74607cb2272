"""Freed tensors' memory serves the next ones: the kernel clears far fewer pages."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

COUNT = """
import resource

def new_pages(step):
    for _ in range(5):
        step()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        step()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
"""

TENSORS = """
import sys
import torch
from awm.freed_memory import keep_freed_memory

if sys.argv[1] == "keep":
    assert keep_freed_memory()
x = torch.ones(2**20)  # 4 MiB
print(new_pages(lambda: len([x + 1 for _ in range(32)])))  # 128 MiB, all of it freed at the end
"""

# Blocks of the C library itself: a tensor's few bytes may lie above its data, and all below then stays with the process
BLOCKS = """
import ctypes, sys
from awm.freed_memory import keep_freed_memory, return_freed_memory

libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
libc.memset.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]
assert keep_freed_memory()
if sys.argv[1] == "return":
    assert return_freed_memory()

def step():
    blocks = []
    for _ in range(32):
        blocks.append(libc.malloc(2**22))
        libc.memset(blocks[-1], 1, 2**22)
    for block in blocks:
        libc.free(block)

print(new_pages(step))
"""

glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's settings")


def new_pages(program: str, mode: str) -> int:
    command = [sys.executable, "-c", COUNT + program, mode]
    result = subprocess.run(command, check=True, capture_output=True, text=True)
    return int(result.stdout)


@glibc
def test_tensors_do_not_cost_new_pages():
    assert new_pages(TENSORS, "keep") < 0.1 * new_pages(TENSORS, "default")


@glibc
def test_returning_memory_costs_new_pages_again():
    assert new_pages(BLOCKS, "keep") < 0.1 * new_pages(BLOCKS, "return")
