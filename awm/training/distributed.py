"""This process's place among the ranks: its device, what the ranks tell each other, and how they share the model.

Two planes: weights and gradients go over the engine (NCCL on GPUs), flags, rewards and checkpoints' metadata as CPU
tensors over gloo, which never makes a rank wait for its GPU.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator, DistributedDataParallelKwargs, InitProcessGroupKwargs
from torch import Tensor, nn

from awm.training.engines import Engine, check_installed, choose_engine

# Ranks wait for one that saves a large checkpoint, or whose reward server is being restarted. A rank that is gone is
# noticed at once by its closed connection, so that a long limit delays nothing.
LONGEST_WAIT = timedelta(hours=1)


class Distributed:
    """This process's place among the ranks.

    Args:
        mixed_precision: no | fp16 | bf16. Only fp16 changes anything here (it needs a gradient scaler);
            the model casts its own weights and activations.

    Attributes:
        rank: number of this process.
        world_size: number of processes.
        device: where this process computes.
        is_main: whether this process writes.
        engine: how weights and gradients are spread.

    Raises:
        ValueError: the Accelerate configuration asks for an engine in a form that is not supported.
    """

    def __init__(self, mixed_precision: str = "no") -> None:
        check_installed()
        # Buffers never change in these models, and broadcasting them would hide a collective in every forward,
        # also in those that not all ranks run equally often.
        ddp = DistributedDataParallelKwargs(broadcast_buffers=False, gradient_as_bucket_view=True)
        has_gpu = torch.accelerator.is_available()
        # On CPUs the default group is gloo already; without cpu=True torchrun's ranks would not see each other.
        patience = [] if has_gpu else [InitProcessGroupKwargs(timeout=LONGEST_WAIT)]
        self._accelerator = Accelerator(
            cpu=not has_gpu,
            mixed_precision="fp16" if mixed_precision == "fp16" else "no",
            kwargs_handlers=[ddp, *patience],
        )
        self.rank: int = self._accelerator.process_index
        self.world_size: int = self._accelerator.num_processes
        self.device: torch.device = self._accelerator.device
        self.is_main: bool = self._accelerator.is_main_process
        self.engine: Engine = choose_engine(self._accelerator, mixed_precision)
        self._group: dist.ProcessGroup | None = None
        if self.world_size > 1 and has_gpu:
            self._group = dist.new_group(backend="gloo", timeout=LONGEST_WAIT)

    @property
    def forwards_are_collective(self) -> bool:
        """Whether ranks must run equally many forwards, also without gradient."""
        return self.world_size > 1 and self.engine.forwards_are_collective

    def shard(self, module: nn.Module) -> None:
        """Spread the parameters over the ranks if the engine does so; the ranks meet here after loading.

        They wait for each other over gloo, since one node may have had to download the model, and NCCL, whose first
        words follow, gives up after ten minutes.
        """
        self.any(False)
        self.engine.shard(module)

    def prepare(self, module: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[nn.Module, torch.optim.Optimizer]:
        """Wrap for training on all ranks; ``shard(module)`` comes before the optimizer is made."""
        return self.engine.prepare(module, optimizer)

    def accumulating(self, module: nn.Module, *, last: bool) -> AbstractContextManager[None]:
        """Gradients stay local inside the block unless this is the update's ``last`` micro-batch."""
        return self.engine.accumulating(module, last=last)

    def backward(self, loss: Tensor) -> None:
        """Accumulate the gradient of this rank's part of a loss that is a sum over all ranks' samples.

        Engines average gradients over ranks; the factor turns the average back into the sum.
        """
        self.engine.backward(loss * self.world_size)

    def clip_grad_norm(self, parameters: Sequence[nn.Parameter], max_norm: float) -> Tensor:
        """Total gradient norm before clipping, a tensor on the device."""
        return self.engine.clip_grad_norm(parameters, max_norm)

    def optimizer_state(self, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        """For the main rank to write: whole tensors, whatever the engine and the number of ranks; a collective."""
        return self.engine.optimizer_state(optimizer)

    def load_optimizer_state(self, optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
        """Restore what ``optimizer_state`` gave, on this engine and number of ranks."""
        self.engine.load_optimizer_state(optimizer, state)

    def weights_were_set(self) -> None:
        """To be told when weights were changed other than by the optimizer's step."""
        self.engine.weights_were_set()

    def step_was_skipped(self) -> bool:
        """True if the fp16 scaler found an overflow and left the weights alone."""
        return bool(self._accelerator.optimizer_step_was_skipped)

    def scaler_state(self) -> dict[str, Any] | None:
        """State of the fp16 gradient scaler, if there is one."""
        scaler = self._accelerator.scaler
        return None if scaler is None else scaler.state_dict()

    def load_scaler_state(self, state: dict[str, Any] | None) -> None:
        """Restore what ``scaler_state`` gave."""
        if state is not None and self._accelerator.scaler is not None:
            self._accelerator.scaler.load_state_dict(state)

    def gather(self, values: Tensor) -> Tensor:
        """Concatenate equally long tensors of all ranks, in rank order, on the CPU."""
        values = values.cpu().contiguous()
        if self.world_size == 1:
            return values
        parts = [torch.empty_like(values) for _ in range(self.world_size)]
        dist.all_gather(parts, values, group=self._group)
        return torch.cat(parts)

    def gather_objects(self, items: list[Any]) -> list[Any]:
        """Concatenate lists of any length of all ranks, in rank order."""
        if self.world_size == 1:
            return list(items)
        lists: list[Any] = [None] * self.world_size
        dist.all_gather_object(lists, items, group=self._group)
        return [item for part in lists for item in part]

    def sum(self, values: Tensor) -> Tensor:
        """Element-wise sum over ranks, on the CPU."""
        total = values.detach().cpu().clone()
        if self.world_size > 1:
            dist.all_reduce(total, group=self._group)
        return total

    def any(self, flag: bool) -> bool:
        """True on every rank if it is True on one."""
        return bool(self.sum(torch.tensor(float(flag))) > 0)

    def broadcast_object(self, value: Any) -> Any:
        """The main rank's value, on every rank."""
        if self.world_size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, group=self._group)
        return box[0]

    def close(self) -> None:
        """Leave the process group."""
        self._accelerator.end_training()
