"""Weights, gradients and optimizer state are cut over the ranks: FSDP2, ``torch.distributed.fsdp.fully_shard``.

Each transformer block is gathered when a forward or backward reaches it and dropped after it. The options are those of
an Accelerate configuration file; sharding itself is PyTorch's, so that it is the same on GPUs and, in tests, on CPUs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import FullyShardedDataParallelPlugin
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, fully_shard
from torch.distributed.tensor import DTensor

from awm.models.shards import local, part_of, whole

BLOCK = "JointTransformerBlock"


class FSDP2:
    """See :class:`awm.training.engines.Engine`.

    Args:
        accelerator: the ranks.
        plugin: ``fsdp_config`` of the Accelerate configuration file; its wrapped classes and reshard_after_forward
            are used.

    Raises:
        ValueError: the configuration wants parameters on the CPU.
    """

    name = "FSDP2"
    forwards_are_collective = True
    cuts_optimizer_state = True

    def __init__(self, accelerator: Accelerator, plugin: FullyShardedDataParallelPlugin) -> None:
        if isinstance(plugin.cpu_offload, CPUOffloadPolicy):
            raise ValueError(
                "fsdp_offload_params: true is not supported, since the weight sets change places on the GPU; set it to "
                "false in the Accelerate configuration and use more ranks or train.gradient_checkpointing=True."
            )
        self._accelerator, self._plugin = accelerator, plugin

    def shard(self, module: nn.Module) -> None:
        """Cut every block by itself, and what is left as one more.

        Raises:
            ValueError: ``module`` has none of the blocks the configuration names.
        """
        mesh = init_device_mesh(self._accelerator.device.type, (self._accelerator.num_processes,))
        names = self._plugin.transformer_cls_names_to_wrap or [BLOCK]
        blocks = [child for child in module.modules() if type(child).__name__ in names]
        if not blocks:
            raise ValueError(
                f"FSDP2 finds no {' or '.join(names)} in this {type(module).__name__}; set "
                f"fsdp_transformer_layer_cls_to_wrap in the Accelerate configuration to the class of its blocks."
            )
        options: dict[str, Any] = {
            "mesh": mesh,
            "reshard_after_forward": self._plugin.reshard_after_forward,
        }
        for block in blocks:
            fully_shard(block, **options)
        fully_shard(module, **options)

    def prepare(self, module: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[nn.Module, torch.optim.Optimizer]:
        """Both work on shards as they are."""
        return module, optimizer

    def accumulating(self, module: nn.Module, *, last: bool) -> AbstractContextManager[None]:
        """Gradients are kept whole on each rank until the last micro-batch reduces and cuts them."""
        return nullcontext() if last else _without_gradient_sync(module)

    def backward(self, loss: Tensor) -> None:
        """Plain backward."""
        loss.backward()  # type: ignore[no-untyped-call]

    def clip_grad_norm(self, parameters: Sequence[nn.Parameter], max_norm: float) -> Tensor:
        """Norm over all shards."""
        norm = torch.nn.utils.clip_grad_norm_(parameters, max_norm)
        return norm.full_tensor() if isinstance(norm, DTensor) else norm

    def optimizer_state(self, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        """Gather one tensor at a time; only the main rank keeps them."""
        keep = self._accelerator.is_main_process

        def gather(value: Tensor) -> Tensor | None:
            full = whole(local(value), value)
            return full.cpu() if keep else None

        state = optimizer.state_dict()
        return {**state, "state": _map_tensors(state["state"], lambda value, _: gather(value))}

    def load_optimizer_state(self, optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
        """Cut each tensor that is shaped like its parameter as the parameter is cut."""
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]

        def cut(value: Tensor, index: int) -> Tensor:
            like = parameters[index]
            if not isinstance(like, DTensor) or value.shape != like.shape:  # the step count
                return value
            return DTensor.from_local(
                part_of(value, like),
                like.device_mesh,
                like.placements,
                run_check=False,
                shape=like.shape,
                stride=like.stride(),
            )

        optimizer.load_state_dict({**state, "state": _map_tensors(state["state"], cut)})

    def weights_were_set(self) -> None:
        """Nothing to do: it has no copies."""


@contextmanager
def _without_gradient_sync(module: nn.Module) -> Iterator[None]:
    assert isinstance(module, FSDPModule)
    module.set_requires_gradient_sync(False)
    try:
        yield
    finally:
        module.set_requires_gradient_sync(True)


def _map_tensors(state: Mapping[int, Mapping[str, Any]], function: Callable[[Tensor, int], Any]) -> dict[int, Any]:
    """``function(tensor, number of its parameter)`` in place of each tensor of an optimizer's state."""
    return {
        index: {name: function(value, index) if isinstance(value, Tensor) else value for name, value in values.items()}
        for index, values in state.items()
    }
