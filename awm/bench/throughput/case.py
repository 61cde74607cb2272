"""One trainer under measurement: the real one, built from a configuration, with a stub in place of the rewards."""

from __future__ import annotations

import gc
import io
import math
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, redirect_stdout
from dataclasses import dataclass, field
from typing import Any

import torch

from awm.bench.throughput.memory import PeakMemory
from awm.bench.throughput.models import Loading
from awm.bench.throughput.patching import replaced
from awm.bench.throughput.stub import StubReward
from awm.bench.throughput.switches import MakeSwitch, all_around
from awm.building import trainer as building
from awm.data.grouping import epoch_prompt_indices
from awm.rewards.mixture import MixtureReward
from awm.training.distributed import Distributed
from awm.training.progress import RunProgress
from awm.training.stopping import StopRequest

PHASES = ("rollout", "train")
Around = Callable[[str], AbstractContextManager[Any]]
"""Phase -> what is entered for its length."""


@dataclass(frozen=True, slots=True)
class Epoch:
    """What one epoch took.

    Attributes:
        metrics: those the trainer logs: its times are those of the slowest rank.
        processor: phase -> seconds that this process's cores spent; "epoch" is all of it.
        peak_bytes: phase -> most memory held, without what belongs to other trainers where that can be told.
    """

    metrics: dict[str, float]
    processor: dict[str, float]
    peak_bytes: dict[str, int]

    def seconds(self, phase: str) -> float:
        """Wall-clock seconds of a phase, of which "sampling" is what a rollout does beside the others."""
        if phase != "sampling":
            return self.metrics[f"time/{phase}_s"]
        parts = sum(self.seconds(part) for part in ("encode", "decode", "reward_wait"))
        return max(self.seconds("rollout") - parts, 0.0)


class Case:
    """A trainer that is built once and run epoch by epoch.

    Args:
        config: of the run.
        switches: savings that it goes without.
        loading: how the model comes by its weights.
        reward_ms: milliseconds of scoring an image.
        tied_share: share of an epoch's prompts whose images all score the same.

    Attributes:
        trainer: once it is built.
        distributed: its ranks.
        parity: how far faster sampling weights are from the trained ones, where the run would ask, too.
        warnings: what the trainer warned about, such as code that could not be compiled.
    """

    def __init__(
        self,
        config: Any,
        switches: Sequence[MakeSwitch] = (),
        *,
        loading: Loading | None = None,
        reward_ms: float = 0.0,
        tied_share: float = 0.0,
    ) -> None:
        self.config, self.loading, self.tied_share = config, loading or Loading(), tied_share
        self._switches = [make() for make in switches]
        self._reward = StubReward(reward_ms)
        self._own_bytes = 0
        self._logged: list[dict[str, float]] = []
        self.trainer: Any = None
        self.parity: dict[str, float] = {}
        self.warnings: list[str] = []
        self.distributed: Any = None

    def build(self) -> None:
        """Build the trainer as ``awm-train`` does.

        Raises:
            ValueError: what the run itself would raise.
        """
        self.distributed = Distributed(self.config.mixed_precision)
        self._memory = PeakMemory(self.distributed.device)
        with self._counting_bytes(), self._in_place():
            trainer = building.build_trainer(self.config, self.distributed, StopRequest(self.distributed))
            self.trainer = trainer
            outputs: Any = trainer.outputs
            outputs.grid_rows = []  # pictures are not part of an epoch's time, but of a person's
            outputs.bars = RunProgress(1, False)
            outputs.write_metrics = self._logged.append
            if trainer.parity is not None:
                found = trainer.parity(trainer.epoch, trainer.epoch_sampler())
                self.parity = found.metrics(trainer.parity.max_gap)
            for switch in self._switches:  # only now: a switch may count the images of epochs
                switch.change(trainer)

    def epoch(self, around: Around = lambda phase: nullcontext()) -> Epoch:
        """Run the next epoch; ``around`` is entered for its rollout and for its updates."""
        watch = _Watch(self._memory, around)
        self._reward.tied = self._tied_prompts()
        trainer: Any = self.trainer
        before = trainer.rollout, trainer.update
        trainer.rollout, trainer.update = _Watched("rollout", before[0], watch), _Watched("train", before[1], watch)
        foreign = self._memory.held() - self._own_bytes - self.loading.shared_bytes(trainer.policy.model)
        processor = time.process_time()
        try:
            with self._counting_bytes(), self._in_place():
                trainer.train_epoch()
        finally:
            trainer.rollout, trainer.update = before
        metrics = self._logged.pop()
        spent = watch.processor | {"epoch": metrics.get("time/processor_s", time.process_time() - processor)}
        on_gpu = self.distributed.device.type == "cuda"
        peaks = {phase: peak - (foreign if on_gpu else 0) for phase, peak in watch.peaks.items()}
        return Epoch(metrics, spent, peaks)

    def close(self) -> None:
        """Let go of everything."""
        self.trainer = self.distributed = None
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    @contextmanager
    def _in_place(self) -> Iterator[None]:
        reward = MixtureReward({"stub": (self._reward, 1.0)})
        with (
            redirect_stdout(io.StringIO()),
            self._hearing_warnings(),
            self.loading.installed(),
            replaced(building, "build_reward", lambda *_: reward),
            all_around(self._switches),
        ):
            yield

    @contextmanager
    def _hearing_warnings(self) -> Iterator[None]:
        with warnings.catch_warnings(record=True) as heard:
            yield
        said = [str(warning.message) for warning in heard if issubclass(warning.category, RuntimeWarning)]
        self.warnings = list(dict.fromkeys([*self.warnings, *said]))

    @contextmanager
    def _counting_bytes(self) -> Iterator[None]:
        """What the block leaves behind on a GPU belongs to this trainer, but for what all share."""
        before = self._memory.held() - self.loading.shared_bytes()
        yield
        self._own_bytes += self._memory.held() - self.loading.shared_bytes() - before

    def _tied_prompts(self) -> frozenset[str]:
        trainer = self.trainer
        number = trainer.geometry.num_prompts
        chosen = epoch_prompt_indices(trainer.seed, trainer.epoch, len(trainer.prompts), number)
        return frozenset(trainer.prompts.text[index] for index in chosen[: math.floor(self.tied_share * number)])


@dataclass
class _Watch:
    """Takes the peaks and processor seconds of the phases of an epoch."""

    memory: PeakMemory
    around: Around
    peaks: dict[str, int] = field(default_factory=dict)
    processor: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        self.memory.reset()
        begun = time.process_time()
        with self.around(phase):
            yield
        self.processor[phase] = time.process_time() - begun
        self.peaks[phase] = self.memory.peak()


class _Watched:
    """Part of a trainer that is watched when it is called, and itself in every other way."""

    def __init__(self, phase: str, part: Any, watch: _Watch) -> None:
        self._phase, self._part, self._watch = phase, part, watch

    def __call__(self, *args: Any, **named: Any) -> Any:
        with self._watch(self._phase):
            return self._part(*args, **named)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._part, name)
