"""Batch sizes that a run finds by itself: which are worth a thought, what must stay free, and what all ranks can do.

Results do not depend on them, so any that fits will do; the largest costs the fewest launches.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from awm.training.distributed import Distributed
from awm.training.fitting import Fit, divisors, largest_that_fits
from awm.training.geometry import Geometry
from awm.training.memory_meter import MemoryMeter
from awm.training.trials import measured

SAMPLING_BATCHES = 4
"""At least so many sampling batches an epoch: the last one's scores are waited for, all others' are not."""
CPU_TRAINING_ROWS, CPU_SAMPLING_ROWS = 128, 64
"""More rows of a forward make a CPU no faster: it works on one after the other."""
CPU_SHARE = 0.5
"""Of the memory that is available on a machine without a GPU."""
FLOAT32 = 4  # bytes


def training_sizes(sizes: Geometry) -> list[int]:
    """Images of a micro-batch that cut an optimizer step's share of a rank into equal parts."""
    return divisors(sizes.images_per_rank // sizes.updates_per_pass)


def sampling_sizes(sizes: Geometry) -> list[int]:
    """Images of a sampling batch that cut a rank's images into equal parts, and not too few of them."""
    most = max(1, sizes.images_per_rank // SAMPLING_BATCHES)
    return [size for size in divisors(sizes.images_per_rank) if size <= most]


@dataclass(frozen=True, slots=True)
class ToCome:
    """What a rank will hold of an epoch that it does not hold while batch sizes are tried.

    Attributes:
        trained_numbers: of this rank.
        bytes_per_number: of the optimizer's moments, and of the weights that sampled if they are kept.
        images: of this rank and epoch.
        latent_numbers: of one image.
        latents_per_image: x_0, and the rollout's states and velocities if the objective needs them.
        prompts: of this rank and epoch.
        bytes_per_prompt: of its embeddings.
    """

    trained_numbers: int
    bytes_per_number: float
    images: int
    latent_numbers: int
    latents_per_image: int
    prompts: int
    bytes_per_prompt: int

    COPIES = 3  # of the samples: the epoch's, those of an optimizer step, and its micro-batches

    @property
    def bytes(self) -> int:
        """All of it."""
        samples = self.images * self.latents_per_image * self.latent_numbers * FLOAT32 * self.COPIES
        return int(self.trained_numbers * self.bytes_per_number) + samples + self.prompts * self.bytes_per_prompt


def probe(
    sizes: list[int],
    trial: Callable[[int], None],
    *,
    meter: MemoryMeter,
    to_come: int,
    device: torch.device,
    distributed: Distributed,
) -> Fit:
    """The largest size with which ``trial`` runs on every rank; a collective, whose trials are each rank's own.

    Args:
        sizes: to choose from.
        trial: does the work of a size.
        meter: of this rank's device.
        to_come: bytes that must stay free.
        device: where it runs.
        distributed: the ranks.

    Returns:
        The answer of the rank that has least room: the smallest size, of equals that which needs most.
    """
    mine = largest_that_fits(sizes, measured(trial, meter, device), meter.free() - to_come)
    fits: list[Fit] = distributed.gather_objects([mine])
    return min(fits, key=lambda fit: (fit.size, fit.limit - fit.peak))


def size_for_cpu(sizes: list[int], *, rows: float, most_rows: int, bytes_per_row: int, available: int) -> int:
    """The largest size of at most so many rows, and of memory by an estimate; the smallest if none is.

    Args:
        sizes: to choose from, the smallest first.
        rows: of the network, for one image.
        most_rows: of one forward.
        bytes_per_row: that a forward and backward keeps.
        available: bytes, of this rank.
    """
    most = min(most_rows, CPU_SHARE * available / max(bytes_per_row, 1))
    return max([size for size in sizes if size * rows <= most], default=sizes[0])
