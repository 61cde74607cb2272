"""Batch sizes and savings for a GPU of a given size, predicted; the run itself can find sizes by trials."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ml_collections import ConfigDict

from awm.models.peak_memory import Peaks, count_peaks
from awm.models.weightless import Weightless
from awm.planning.columns import aligned
from awm.planning.memory import encoder_bytes, held
from awm.planning.plan import Plan
from awm.training.autosize import sampling_sizes, training_sizes
from awm.training.memory_meter import HEADROOM

GIB = 2**30
CONTEXT_GIB = 1.0
"""What CUDA, cuBLAS and NCCL take for themselves."""


@dataclass(frozen=True, slots=True)
class Setting:
    """One way to use a GPU.

    Attributes:
        encoders_on_gpu: the text encoders stay beside the transformer.
        checkpointing: each block is computed once more in the backward pass, a quarter more work in training.
        micro_batch: images of a training forward; 0 if not even one fits.
        sampling_batch: images of a sampling batch; likewise.
        peak: bytes in use at the worst moment, without the libraries' own.
    """

    encoders_on_gpu: bool
    checkpointing: bool
    micro_batch: int
    sampling_batch: int
    peak: float

    @property
    def works(self) -> bool:
        """Whether one image fits in both phases."""
        return self.micro_batch > 0 and self.sampling_batch > 0


def proposal_lines(config: ConfigDict, plan: Plan, parts: Weightless, memory_gib: float) -> list[str]:
    """The ways to use a GPU of so many GiB, and the one to take.

    Args:
        config: the configuration; its own batch sizes, checkpointing and place of the text encoders do not count.
        plan: of its epochs.
        parts: the model, with its adapters, see ``add_adapters``.
        memory_gib: of the whole GPU.
    """
    always = sum(size for _, size in held(config, plan, parts, _frozen_bytes(parts)))
    # The model keeps its checkpointing once it is switched on, so the plain one is counted first.
    peaks = {on: count_peaks(parts, resolution=config.resolution, gradient_checkpointing=on) for on in (False, True)}
    ways = settings(
        plan,
        peaks,
        always=always,
        encoders=encoder_bytes(parts),
        memory_gib=memory_gib,
        guided=config.sample.guidance_scale != 1.0,
    )
    title = (
        f"on a GPU of {memory_gib:g} GiB, predicted; {HEADROOM:.0%} and {CONTEXT_GIB:g} GiB stay free, and what "
        "a reward server on the same GPU takes is to be subtracted"
    )
    table: list[tuple[str, ...]] = [
        ("", "text encoders", "checkpointing", "train.batch_size", "sample.train_batch_size", "GiB")
    ]
    best = next((way for way in ways if way.works), None)
    table += [_row(way, way is best) for way in ways]
    return [title, *aligned(table, numbers=True), _advice(best)]


def settings(
    plan: Plan, peaks: Mapping[bool, Peaks], *, always: float, encoders: float, memory_gib: float, guided: bool
) -> list[Setting]:
    """Four ways, what costs least time first: moving the encoders costs seconds an epoch, checkpointing a quarter.

    Args:
        plan: of the epochs.
        peaks: of the model's work without and with checkpointing.
        always: bytes that are held whatever is done.
        encoders: bytes of the text encoders.
        memory_gib: of the whole GPU.
        guided: whether sampling has two rows an image.
    """
    limit = (memory_gib * (1 - HEADROOM) - CONTEXT_GIB) * GIB
    return [
        _setting(plan, peaks[checkpointing], always + encoders * on_gpu, limit, on_gpu, checkpointing, guided)
        for checkpointing in (False, True)
        for on_gpu in (True, False)
    ]


def _setting(
    plan: Plan, peaks: Peaks, fixed: float, limit: float, on_gpu: bool, checkpointing: bool, guided: bool
) -> Setting:
    rows = max(plan.training.trained / plan.sizes.num_passes, 1.0)
    training = {size: fixed + peaks.training(size * rows) for size in training_sizes(plan.sizes)}
    sampling = {
        size: fixed + max(peaks.sampling(size * (2 if guided else 1)), peaks.decoding(min(size, peaks.decoded_at_once)))
        for size in sampling_sizes(plan.sizes)
    }

    def largest(needed: Mapping[int, float]) -> int:
        return max((size for size, peak in needed.items() if peak <= limit), default=0)

    micro, batch = largest(training), largest(sampling)
    peak = max(training.get(micro, training[1]), sampling.get(batch, sampling[1]))
    return Setting(on_gpu, checkpointing, micro, batch, peak)


def _row(setting: Setting, is_best: bool) -> tuple[str, ...]:
    return (
        "take this" if is_best else "",
        "on the GPU" if setting.encoders_on_gpu else "on the CPU",
        "yes" if setting.checkpointing else "no",
        str(setting.micro_batch or "-"),
        str(setting.sampling_batch or "-"),
        f"{setting.peak / GIB:.1f}",
    )


def _advice(best: Setting | None) -> str:
    if best is None:
        return "  nothing fits: train a smaller resolution, or full fine-tuning with ENGINE=fsdp2 on more GPUs"
    words = [
        f"--config.train.batch_size={best.micro_batch}",
        f"--config.sample.train_batch_size={best.sampling_batch}",
        f"--config.sample.test_batch_size={best.sampling_batch}",
        f"--config.train.gradient_checkpointing={best.checkpointing}",
        f"--config.pretrained.text_encoder_device={'' if best.encoders_on_gpu else 'cpu'}",
    ]
    return "  " + " ".join(words)


def _frozen_bytes(parts: Weightless) -> int:
    """The transformer without its adapters, or as a whole if it is trained."""
    parameters = list(parts.transformer.parameters())
    frozen = [p for p in parameters if not p.requires_grad] or parameters
    buffers = parts.transformer.buffers()
    return sum(value.numel() * value.element_size() for value in (*frozen, *buffers))
