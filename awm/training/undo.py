"""The way back to an epoch's start, for one that is abandoned after some of its optimizer steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor

from awm.interfaces import Policy
from awm.models.shards import forget_gathered, local
from awm.training.distributed import Distributed


class Undo:
    """Copies of the trained weights and the optimizer's state on the CPU; of sharded ones, this rank's parts.

    The memory is kept for the next epoch. Weights and AdamW's state take 12 bytes per trained parameter and rank.

    Args:
        policy: whose *current* weights are trained.
        optimizer: its state.
        distributed: the gradient scaler, and engines that have copies of the weights.
    """

    def __init__(self, policy: Policy, optimizer: torch.optim.Optimizer, distributed: Distributed) -> None:
        self.policy, self.optimizer, self.distributed = policy, optimizer, distributed
        self._weights: list[Tensor] = []
        self._state: list[dict[str, Any]] = []
        self._scaler: dict[str, Any] | None = None

    def remember(self) -> None:
        """Copy the state as it is now."""
        self._weights = _copies(self._parameters(), self._weights)
        self._scaler = self.distributed.scaler_state()
        before = self._state or [{} for _ in self._optimized()]
        self._state = [
            {name: _copy(value, old.get(name)) for name, value in self.optimizer.state.get(p, {}).items()}
            for p, old in zip(self._optimized(), before, strict=True)
        ]

    @torch.no_grad()
    def go_back(self) -> None:
        """Restore what ``remember`` copied, bit for bit, and drop all gradients. Not a collective."""
        for parameter, weight in zip(self._parameters(), self._weights, strict=True):
            parameter.copy_(weight)
        self.optimizer.zero_grad(set_to_none=True)
        for parameter, saved in zip(self._optimized(), self._state, strict=True):
            _put_back(self.optimizer.state, parameter, saved)
        self.policy.current_moved()
        self.distributed.weights_were_set()
        self.distributed.load_scaler_state(self._scaler)
        forget_gathered(self.policy.model.transformer)

    def _parameters(self) -> list[Tensor]:
        return [local(parameter) for parameter in self.policy.trainable_parameters()]

    def _optimized(self) -> list[Tensor]:
        return [parameter for group in self.optimizer.param_groups for parameter in group["params"]]


def _copies(values: Sequence[Tensor], before: Sequence[Tensor]) -> list[Tensor]:
    return [_copy(value, old) for value, old in zip_longest(values, before)]


def _copy(value: Any, before: Any) -> Any:
    """``value`` on the CPU, in the memory of ``before`` if it has the same form."""
    if not isinstance(value, Tensor):
        return value
    part = local(value)
    if isinstance(before, Tensor) and (before.shape, before.dtype) == (part.shape, part.dtype):
        return before.copy_(part)
    return part.to("cpu", copy=True)


def _put_back(state: Any, parameter: Tensor, saved: Mapping[str, Any]) -> None:
    if not saved:  # the first step of the run made it
        state.pop(parameter, None)
        return
    for name, value in saved.items():
        if isinstance(value, Tensor):
            local(state[parameter][name]).copy_(value)
        else:
            state[parameter][name] = value
