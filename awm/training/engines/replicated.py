"""Every rank holds everything: one process, or DistributedDataParallel through Accelerate."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn


class Replicated:
    """See :class:`awm.training.engines.Engine`."""

    name = "DDP"
    forwards_are_collective = False
    cuts_optimizer_state = False

    def __init__(self, accelerator: Accelerator) -> None:
        self._accelerator = accelerator

    def shard(self, module: nn.Module) -> None:
        """Nothing to do: every rank keeps all parameters."""

    def prepare(self, module: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[nn.Module, torch.optim.Optimizer]:
        """Wrap in DistributedDataParallel if there are several ranks."""
        with warnings.catch_warnings():
            # Accelerate knows only the option's old name, which torch warns about from 2.13 on.
            warnings.filterwarnings("ignore", message=".*broadcast_buffers.*", category=FutureWarning)
            return self._accelerator.prepare(module, optimizer)  # type: ignore[no-any-return]

    def accumulating(self, module: nn.Module, *, last: bool) -> AbstractContextManager[None]:
        """DistributedDataParallel's ``no_sync``."""
        return nullcontext() if last else self._accelerator.no_sync(module)

    def backward(self, loss: Tensor) -> None:
        """With the fp16 scaler if there is one."""
        self._accelerator.backward(loss)

    def clip_grad_norm(self, parameters: Sequence[nn.Parameter], max_norm: float) -> Tensor:
        """Gradients are whole and equal on all ranks: no communication."""
        norm = self._accelerator.clip_grad_norm_(parameters, max_norm)
        assert isinstance(norm, Tensor)
        return norm

    def optimizer_state(self, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        """The optimizer's own state."""
        return optimizer.state_dict()

    def load_optimizer_state(self, optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
        """The optimizer's own way."""
        optimizer.load_state_dict(dict(state))

    def weights_were_set(self) -> None:
        """Nothing to do: it has no copies."""
