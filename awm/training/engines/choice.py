"""Which engine: what ``accelerate launch --config_file`` says through the environment; DDP without it."""

from __future__ import annotations

import os
from importlib.util import find_spec

from accelerate import Accelerator
from accelerate.utils import DeepSpeedPlugin, FullyShardedDataParallelPlugin

from awm.training.engines.interface import Engine
from awm.training.engines.replicated import Replicated


def check_installed() -> None:
    """See that the engine this job asks for is there, before Accelerate starts it.

    Raises:
        ValueError: DeepSpeed is asked for and not installed.
    """
    if _is_set("ACCELERATE_USE_DEEPSPEED") and find_spec("deepspeed") is None:
        raise ValueError(
            "the Accelerate configuration asks for DeepSpeed, which is not installed: pip install deepspeed."
        )


def choose_engine(accelerator: Accelerator, mixed_precision: str) -> Engine:
    """The engine of this job.

    Raises:
        ValueError: an engine was asked for in a form that this project does not run.
    """
    if _is_set("ACCELERATE_USE_FSDP"):
        from awm.training.engines.fsdp2 import FSDP2

        plugin = FullyShardedDataParallelPlugin()
        if plugin.fsdp_version != 2:
            raise ValueError(
                "the Accelerate configuration asks for FSDP version 1; set fsdp_version: 2 in its fsdp_config "
                "(train_scripts/accelerate/fsdp2.yaml)."
            )
        if plugin.cpu_ram_efficient_loading:
            raise ValueError(
                "fsdp_cpu_ram_efficient_loading: true would leave the text encoders of all ranks but one empty; set it "
                "to false in the Accelerate configuration."
            )
        _refuse_fp16("FSDP2", mixed_precision)
        return FSDP2(accelerator, plugin)
    if _is_set("ACCELERATE_USE_DEEPSPEED"):
        from awm.training.engines.zero import Zero

        _refuse_fp16("DeepSpeed", mixed_precision)
        return Zero(accelerator, DeepSpeedPlugin())
    return Replicated(accelerator)


def _refuse_fp16(engine: str, mixed_precision: str) -> None:
    if mixed_precision == "fp16":
        raise ValueError(
            f"mixed_precision=fp16 needs a gradient scaler, which {engine} does not share; use bf16, or DDP."
        )


def _is_set(name: str) -> bool:
    return os.environ.get(name, "false").lower() in ("true", "1")
