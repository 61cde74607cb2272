"""What the trainer needs from an engine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch
from torch import Tensor, nn


class Engine(Protocol):
    """Spreads a model over the ranks. Gradients are averaged over ranks, as by DistributedDataParallel.

    Attributes:
        name: what a person calls it.
        forwards_are_collective: every forward communicates, also without gradient, so that all ranks must run
            equally many.
        cuts_optimizer_state: optimizers whose state is not shaped like the parameters cannot be used.
    """

    name: str
    forwards_are_collective: bool
    cuts_optimizer_state: bool

    def shard(self, module: nn.Module) -> None:
        """Spread the parameters over the ranks, in place, once it is known which of them are trained."""

    def prepare(self, module: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[nn.Module, torch.optim.Optimizer]:
        """Wrap what ``shard`` left, and the optimizer over its trainable parameters."""

    def accumulating(self, module: nn.Module, *, last: bool) -> AbstractContextManager[None]:
        """Gradients stay local inside the block unless this is the update's ``last`` micro-batch."""

    def backward(self, loss: Tensor) -> None:
        """Accumulate the gradient of this rank's loss."""

    def clip_grad_norm(self, parameters: Sequence[nn.Parameter], max_norm: float) -> Tensor:
        """Norm of the whole gradient before clipping, the same on all ranks."""

    def optimizer_state(self, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        """``optimizer.state_dict()`` with whole tensors, on the main rank; a collective.

        Other ranks get something that is not to be used. Not copies: they change with the next step.
        """

    def load_optimizer_state(self, optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
        """Restore what ``optimizer_state`` of any engine on any number of ranks gave."""

    def weights_were_set(self) -> None:
        """Take over into copies of its own, if it has any, weights that were changed from outside."""
