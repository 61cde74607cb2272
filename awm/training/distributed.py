"""The only module that knows Accelerate: ranks, devices, collectives, gradient synchronisation."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.utils import broadcast_object_list, gather_object
from torch import Tensor, nn


class Distributed:
    """This process's place among the ranks.

    Args:
        mixed_precision: no | fp16 | bf16. Only fp16 changes anything here (it needs a gradient scaler);
            the model casts its own weights and activations.
    """

    def __init__(self, mixed_precision: str = "no") -> None:
        # Buffers never change in these models, and broadcasting them would hide a collective in every forward,
        # also in those that not all ranks run equally often.
        ddp = DistributedDataParallelKwargs(broadcast_buffers=False, gradient_as_bucket_view=True)
        self._accelerator = Accelerator(
            mixed_precision="fp16" if mixed_precision == "fp16" else "no", kwargs_handlers=[ddp]
        )
        self.rank: int = self._accelerator.process_index
        self.world_size: int = self._accelerator.num_processes
        self.device: torch.device = self._accelerator.device
        self.is_main: bool = self._accelerator.is_main_process

    def prepare(self, module: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[nn.Module, torch.optim.Optimizer]:
        """Wrap for data-parallel training."""
        return self._accelerator.prepare(module, optimizer)  # type: ignore[no-any-return]

    def accumulating(self, module: nn.Module, *, last: bool) -> AbstractContextManager[None]:
        """Gradients stay local inside the block unless this is the update's ``last`` micro-batch."""
        return nullcontext() if last else self._accelerator.no_sync(module)

    def backward(self, loss: Tensor) -> None:
        """Accumulate the gradient of this rank's part of a loss that is a sum over all ranks' samples.

        Data-parallel wrappers average gradients over ranks; the factor turns the average back into the sum.
        """
        self._accelerator.backward(loss * self.world_size)

    def clip_grad_norm(self, parameters: Sequence[nn.Parameter], max_norm: float) -> Tensor:
        """Total gradient norm before clipping, a tensor on the device."""
        norm = self._accelerator.clip_grad_norm_(parameters, max_norm)
        assert isinstance(norm, Tensor)
        return norm

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
        if self.world_size == 1:
            return values.cpu()
        gathered = self._accelerator.gather(values.to(self.device))
        assert isinstance(gathered, Tensor)
        return gathered.cpu()

    def gather_objects(self, items: list[Any]) -> list[Any]:
        """Concatenate lists of any length of all ranks, in rank order."""
        return list(gather_object(items)) if self.world_size > 1 else list(items)

    def sum(self, values: Tensor) -> Tensor:
        """Element-wise sum over ranks, on the CPU."""
        if self.world_size == 1:
            return values.cpu()
        total = self._accelerator.reduce(values.to(self.device), reduction="sum")
        assert isinstance(total, Tensor)
        return total.cpu()

    def any(self, flag: bool) -> bool:
        """True on every rank if it is True on one."""
        return bool(self.sum(torch.tensor(float(flag))) > 0)

    def broadcast_object(self, value: Any) -> Any:
        """The main rank's value, on every rank."""
        if self.world_size == 1:
            return value
        return broadcast_object_list([value])[0]

    def close(self) -> None:
        """Leave the process group."""
        self._accelerator.end_training()
