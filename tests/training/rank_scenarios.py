"""What ranks do in tests: train from a configuration and report everything that must not depend on their number."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate.state import AcceleratorState, PartialState
from torch import Tensor

from awm.building import build_trainer
from awm.configuration import config_from_json
from awm.rewards.table import IN_PROCESS
from awm.training.checkpoint import CheckpointError
from awm.training.distributed import Distributed
from awm.training.metrics import read_metrics
from awm.training.stopping import StopRequest
from awm.types import Rewards

ENGINES: dict[str, dict[str, str]] = {
    "ddp": {},
    "fsdp2": {
        "ACCELERATE_USE_FSDP": "true",
        "FSDP_VERSION": "2",
        "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
        "FSDP_TRANSFORMER_CLS_TO_WRAP": "JointTransformerBlock",
    },
    "zero1": {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "1", "DS_ACCELERATOR": "cpu"},
    "zero2": {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "2", "DS_ACCELERATOR": "cpu"},
}


class Brightness:
    """Scores an image by its mean: a smooth function of the weights, unlike the size of a JPEG."""

    source = "brightness"

    def __init__(self, name: str) -> None:
        self.name = name

    def check(self) -> None: ...

    def __call__(self, images: Tensor, text: Sequence[str], metadata: Sequence[Any]) -> Rewards:
        total = self.score(images, text)
        return Rewards(total, {self.name: total}, torch.isfinite(total))

    def score(self, images: Tensor, text: Sequence[str]) -> Tensor:
        return images.double().mean((1, 2, 3)).float()


class TiedBrightness(Brightness):
    """The same for circles only: all images of any other prompt are worth nothing."""

    def score(self, images: Tensor, text: Sequence[str]) -> Tensor:
        return super().score(images, text) * torch.tensor([float("circle" in words) for words in text])


IN_PROCESS.add("brightness", "tests.training.rank_scenarios:Brightness")
IN_PROCESS.add("tied_brightness", "tests.training.rank_scenarios:TiedBrightness")


def use_engine(name: str) -> None:
    """Set what ``accelerate launch`` would set for this engine, and forget the one before."""
    for settings in ENGINES.values():
        for key in settings:
            os.environ.pop(key, None)
    os.environ.update(ENGINES[name])
    if "DS_ACCELERATOR" in ENGINES[name]:
        import deepspeed

        # Compiling it takes a minute, for reductions through shared memory that gloo does as well.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    AcceleratorState._reset_state()
    PartialState._reset_state()


def train_all(runs: list[tuple[str, str]]) -> dict[str, dict[str, Any]]:
    """Train each (engine, configuration file) in turn in these ranks; results by configuration file."""
    return {config: train(engine, config) for engine, config in runs}


def train(engine: str, config_path: str) -> dict[str, Any]:
    """Run a whole training.

    Returns:
        The first and the last epoch's latents, the last one's rewards and advantages, every optimizer step's gradient
        if the engine shows it, all weight sets at the end, the optimizer's state, and the lines of metrics.jsonl.
    """
    use_engine(engine)
    config = config_from_json(config_path)
    distributed = Distributed(config.mixed_precision)
    trainer = build_trainer(config, distributed, StopRequest(distributed))
    seen: dict[str, Any] = {"gradients": []}
    credit, step = trainer.credit, trainer.update.optimizer.step

    def recording(rollout: Any, gathered: Any, prompts: Any, epoch: int) -> Any:
        result, metrics = credit(rollout, gathered, prompts, epoch)
        seen["x_0"] = distributed.gather(result.x_0)
        seen.setdefault("first_x_0", seen["x_0"])
        seen["reward"] = gathered.rewards.total
        seen["advantage"] = distributed.gather(result.advantage)
        return result, metrics

    def stepping() -> None:
        gradients = [parameter.grad for parameter in trainer.policy.trainable_parameters()]
        if all(gradient is not None for gradient in gradients):
            whole = [g.full_tensor() if hasattr(g, "full_tensor") else g for g in gradients]
            seen["gradients"].append(torch.cat([g.flatten() for g in whole]).clone())
        step()

    trainer.credit = recording  # type: ignore[assignment]
    trainer.update.optimizer.step = stepping  # type: ignore[method-assign]
    trainer.train()
    trainer.outputs.finish()
    run = Path(config.logdir) / config.run_name
    return seen | {
        "weights": trainer.policy.state_dict(),
        "optimizer": distributed.optimizer_state(trainer.update.optimizer),
        "metrics": read_metrics(run / "metrics.jsonl"),
        "shown": str(type(trainer.policy.model.transformer).__name__),
    }


def count_reductions(engine: str, config_path: str) -> int:
    """How often gradients cross the ranks while training."""
    use_engine(engine)
    config = config_from_json(config_path)
    distributed = Distributed(config.mixed_precision)
    trainer = build_trainer(config, distributed, StopRequest(distributed))
    count = 0

    def hook(_, bucket):  # type: ignore[no-untyped-def]  # DDP insists on its own type or none
        nonlocal count
        count += 1
        work = torch.distributed.all_reduce(bucket.buffer().div_(distributed.world_size), async_op=True)
        return work.get_future().then(lambda done: done.value()[0])

    def counting(*args: Any, **options: Any) -> Any:
        nonlocal count
        count += 1
        return reduce_scatter(*args, **options)

    reduce_scatter = torch.distributed.reduce_scatter_single
    if engine == "ddp":
        trainer.policy.model.transformer.register_comm_hook(None, hook)
    torch.distributed.reduce_scatter_single = counting  # what FSDP2 calls
    try:
        trainer.train()
    finally:
        torch.distributed.reduce_scatter_single = reduce_scatter
    return count


def refusal(engine: str, config_path: str, environment: dict[str, str]) -> str:
    """What this engine says instead of training."""
    use_engine(engine)
    os.environ.update(environment)
    config = config_from_json(config_path)
    try:
        distributed = Distributed(config.mixed_precision)
        build_trainer(config, distributed, StopRequest(distributed))
    except (ValueError, CheckpointError) as error:
        return str(error)
    finally:
        for key in environment:
            os.environ.pop(key)
    return "nothing was refused"


def found_batch_sizes(config_path: str) -> tuple[list[tuple[int, int]], bool]:
    """(micro-batch, sampling batch) of each rank that finds its own, the last one having room for two images only.

    And whether a training with them leaves equal weights on all ranks.
    """
    from awm.building import batch_sizes

    class Unlimited:
        def free(self) -> int:
            return 10**12

        def start(self) -> None: ...

        def peak(self) -> int:
            return 1

        def clear(self) -> None: ...

    use_engine("ddp")
    config = config_from_json(config_path)
    distributed = Distributed(config.mixed_precision)
    trial, is_last = batch_sizes.TrainingTrial.__call__, distributed.rank == distributed.world_size - 1

    def limited(self: Any, images: int) -> None:
        trial(self, images)
        if is_last and images > 2:
            raise torch.OutOfMemoryError("CUDA out of memory.")

    batch_sizes.meter_of, batch_sizes.TrainingTrial.__call__ = lambda device: Unlimited(), limited  # type: ignore
    trainer = build_trainer(config, distributed, StopRequest(distributed))
    trainer.train()
    trainer.outputs.finish()
    sizes = distributed.gather_objects([(trainer.geometry.micro_batch_size, trainer.geometry.sample_batch_size)])
    weights = torch.cat([p.detach().flatten() for p in trainer.policy.trainable_parameters()])
    all_weights = distributed.gather(weights).reshape(distributed.world_size, -1)
    return sizes, bool((all_weights == all_weights[0]).all())
