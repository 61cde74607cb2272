"""Optimizer state (stage 1), and gradients too (stage 2), are cut over the ranks: DeepSpeed ZeRO.

See https://arxiv.org/abs/1910.02054. Every rank keeps all weights. Stage 3 would cut them too; FSDP2 does that.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import DeepSpeedPlugin
from torch import Tensor, nn


class Zero:
    """See :class:`awm.training.engines.Engine`.

    Args:
        accelerator: the ranks.
        plugin: ``deepspeed_config`` of the Accelerate configuration file; its stage is used, and nothing else. The
            learning rate, clipping and accumulation are the trainer's.

    Raises:
        ValueError: stage 3 or offloading.
    """

    forwards_are_collective = False
    cuts_optimizer_state = True

    def __init__(self, accelerator: Accelerator, plugin: DeepSpeedPlugin) -> None:
        if plugin.zero_stage not in (1, 2):
            raise ValueError(
                f"DeepSpeed ZeRO stage {plugin.zero_stage} is not supported; use stage 1 or 2, or FSDP2 "
                f"(train_scripts/accelerate/fsdp2.yaml), which cuts the weights as stage 3 does."
            )
        if (plugin.offload_optimizer_device or "none") != "none":
            raise ValueError(
                f"offload_optimizer_device: {plugin.offload_optimizer_device} is not supported; set it to none in the "
                f"Accelerate configuration, and use FSDP2 if the optimizer state does not fit."
            )
        import deepspeed

        self._deepspeed: Any = deepspeed
        self._accelerator, self._stage = accelerator, plugin.zero_stage
        self.name = f"DeepSpeed ZeRO-{self._stage}"
        self._engine: Any = None

    def shard(self, module: nn.Module) -> None:
        """Nothing to do: the weights stay whole."""

    def prepare(self, module: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[nn.Module, torch.optim.Optimizer]:
        """Wrap in a DeepSpeed engine, whose step is taken by the optimizer that is returned."""
        config = {
            "train_micro_batch_size_per_gpu": 1,  # only DeepSpeed's own data loader and timers would use it
            "gradient_accumulation_steps": 1,  # the loss is already a mean over the whole update
            "steps_per_print": 10**9,
            "zero_allow_untested_optimizer": True,
            "zero_optimization": {"stage": self._stage, "reduce_bucket_size": _bucket_size(module)},
        }
        self._engine = self._deepspeed.initialize(model=module, optimizer=optimizer, config=config)[0]
        stepper: Any = _EngineStep(self._engine, optimizer)
        return self._engine, stepper

    @contextmanager
    def _boundary(self, last: bool) -> Iterator[None]:
        self._engine.set_gradient_accumulation_boundary(is_boundary=last)
        yield

    def accumulating(self, module: nn.Module, *, last: bool) -> AbstractContextManager[None]:
        """Stage 1 reduces at the last micro-batch; stage 2 keeps no whole gradients, so it reduces at each."""
        return self._boundary(last)

    def backward(self, loss: Tensor) -> None:
        """DeepSpeed's backward."""
        self._engine.backward(loss)

    def clip_grad_norm(self, parameters: Sequence[nn.Parameter], max_norm: float) -> Tensor:
        """Norm over all ranks' parts; DeepSpeed clips when it steps."""
        self._engine.optimizer.clip_grad = max_norm
        norm = self._engine.optimizer.scaled_global_norm()
        return torch.as_tensor(norm).detach()

    def optimizer_state(self, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        """In the layout of the optimizer DeepSpeed was given."""
        base, keep = self._engine.optimizer.optimizer, self._accelerator.is_main_process
        state: dict[int, dict[str, Any]] = {}
        for index, (parameter, flat) in enumerate(self._parts()):
            saved = base.state.get(flat, {})
            state[index] = {
                name: _whole(parameter, value, keep) if _is_flat(value, flat) else _plain(value)
                for name, value in saved.items()
            }
        # As DeepSpeed holds them, the groups name its flat buffers, not the parameters.
        groups = [{**group, "params": list(range(len(state)))} for group in optimizer.state_dict()["param_groups"]]
        return {"state": {index: values for index, values in state.items() if values}, "param_groups": groups}

    def load_optimizer_state(self, optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
        """Restore the state, and take the weights as they are now for DeepSpeed's own float32 copies."""
        zero = self._engine.optimizer
        self.weights_were_set()
        zero.optimizer.state.clear()
        for index, (parameter, flat) in enumerate(self._parts()):
            for name, value in state["state"].get(index, {}).items():
                saved = zero.optimizer.state[flat]
                if not isinstance(value, Tensor) or value.shape != parameter.shape:  # the step count
                    saved[name] = value.clone() if isinstance(value, Tensor) else value
                    continue
                if name not in saved:
                    saved[name] = torch.zeros_like(flat)
                _fill(parameter, saved[name], value)

    def weights_were_set(self) -> None:
        """Take them over into DeepSpeed's own float32 copies of this rank's part."""
        self._engine.optimizer.refresh_fp32_params()

    def _parts(self) -> list[tuple[Any, Tensor]]:
        """Each parameter with the flat buffer that holds this rank's part of its group."""
        zero = self._engine.optimizer
        return [
            (parameter, zero.single_partition_of_fp32_groups[number])
            for number, group in enumerate(zero.bit16_groups)
            for parameter in group
        ]


def _bucket_size(module: nn.Module) -> int:
    """Numbers reduced at a time: DeepSpeed's own 500 M would take 2 GB of each GPU, for a LoRA too."""
    sizes = [parameter.numel() for parameter in module.parameters() if parameter.requires_grad]
    return max(max(sizes), min(sum(sizes), 50_000_000))


class _EngineStep:
    """The optimizer as the trainer sees it: the step is the engine's, the hyperparameters are the optimizer's."""

    def __init__(self, engine: Any, optimizer: torch.optim.Optimizer) -> None:
        self._engine, self._optimizer = engine, optimizer

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        groups: list[dict[str, Any]] = self._optimizer.param_groups
        return groups

    @property
    def state(self) -> Any:
        """By flat buffer, as ``param_groups`` names them."""
        return self._optimizer.state

    def step(self) -> None:
        self._engine.step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        self._engine.optimizer.zero_grad(set_to_none=set_to_none)

    def state_dict(self) -> dict[str, Any]:
        return self._optimizer.state_dict()


def _is_flat(value: Any, flat: Tensor) -> bool:
    return isinstance(value, Tensor) and value.shape == flat.shape


def _plain(value: Any) -> Any:
    return value.detach().cpu().clone() if isinstance(value, Tensor) else value


def _whole(parameter: Any, flat_state: Tensor, keep: bool) -> Tensor | None:
    """The ranks' parts of a parameter's state, put together, for ranks that ``keep`` it; a collective."""
    full = torch.zeros(parameter.numel(), dtype=flat_state.dtype, device=parameter.device)
    mapping = parameter._hp_mapping
    if mapping is not None:
        here, there = mapping.lp_fragment_address, mapping.hp_fragment_address
        full.narrow(0, here.start, here.numel).copy_(flat_state.narrow(0, there.start, there.numel))
    dist.all_reduce(full)
    return full.reshape(parameter.shape).cpu() if keep else None


def _fill(parameter: Any, flat_state: Tensor, full: Tensor) -> None:
    mapping = parameter._hp_mapping
    if mapping is not None:
        here, there = mapping.lp_fragment_address, mapping.hp_fragment_address
        flat_state.narrow(0, there.start, there.numel).copy_(full.flatten().narrow(0, here.start, here.numel))
