"""What the device can do at best: a large matrix product, measured in the same process as the trainer."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass, replace

import torch

SIZES = {"cpu": (512, 1024, 2048), "cuda": (4096, 8192, 16384)}
BLOCK_S, BLOCKS = 0.1, 5

DENSE_TFLOPS: dict[str, float] = {
    "H100 PCIe": 756.0,
    "H100 NVL": 835.0,
    "H100": 989.0,
    "H200": 989.0,
    "GH200": 989.0,
    "H800 PCIe": 756.0,
    "H800": 989.0,
    "H20": 148.0,
    "B200": 2250.0,
    "A100": 312.0,
    "A800": 312.0,
    "L40S": 362.0,
    "L40": 181.0,
    "A40": 150.0,
    "A10G": 70.0,
    "4090": 165.0,
    "3090": 71.0,
}
"""Words of a device's name -> dense 16-bit products with 32-bit sums, 10^12 operations a second, as the makers say."""


@dataclass(frozen=True, slots=True)
class Ceiling:
    """The best of some square products.

    Attributes:
        operations_per_s: two per multiply-add, by the wall clock.
        operations_per_processor_s: on a CPU, by the seconds its cores spent, of the size best by these; 0 elsewhere.
        size: rows of the product that was fastest by the clock.
        dtype: of its factors.
    """

    operations_per_s: float
    operations_per_processor_s: float
    size: int
    dtype: str


def measure_ceiling(device: torch.device, dtype: torch.dtype, sizes: tuple[int, ...] | None = None) -> Ceiling:
    """Multiply for about two seconds, and take the fastest tenth of a second of the best size."""
    found = [_measure(size, device, dtype) for size in sizes or SIZES[device.type]]
    best = max(found, key=lambda ceiling: ceiling.operations_per_s)
    # Which size is best for the cores is another question, and that answer is the steadier one.
    return replace(best, operations_per_processor_s=max(ceiling.operations_per_processor_s for ceiling in found))


def known_peak(device_name: str, dtype: torch.dtype) -> float | None:
    """Operations per second that the maker states for this device in 16 bits; None if unknown."""
    if dtype not in (torch.bfloat16, torch.float16):
        return None
    names = [name for name in DENSE_TFLOPS if re.search(rf"\b{name}\b", device_name)]
    return 1e12 * DENSE_TFLOPS[max(names, key=len)] if names else None


def _measure(size: int, device: torch.device, dtype: torch.dtype) -> Ceiling:
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    product = torch.empty_like(a)
    once, _ = _time(a, b, product, 3)
    number = max(1, int(BLOCK_S / max(once / 3, 1e-6)))
    blocks = [_time(a, b, product, number) for _ in range(BLOCKS)]
    operations = 2 * size**3 * number
    processor = min(seconds for _, seconds in blocks)
    on_processor = operations / processor if device.type == "cpu" and processor > 0 else 0.0
    return Ceiling(operations / min(seconds for seconds, _ in blocks), on_processor, size, str(dtype).split(".")[-1])


def _time(a: torch.Tensor, b: torch.Tensor, product: torch.Tensor, number: int) -> tuple[float, float]:
    """Seconds by the wall clock and of the processor for so many products."""
    _wait(a.device)
    wall, processor = time.perf_counter(), time.process_time()
    for _ in range(number):
        torch.mm(a, b, out=product)
    _wait(a.device)
    return time.perf_counter() - wall, time.process_time() - processor


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
