"""Run by ``accelerate launch`` in test_ranks.py: one epoch, everything compared is written by the main rank.

rank_worker.py CONFIG.json OUT.pt
"""

from __future__ import annotations

import sys

import torch

from awm.building import build_trainer
from awm.configuration import config_from_json
from awm.training.distributed import Distributed
from awm.training.stopping import StopRequest


def main(config_path: str, out: str) -> None:
    torch.set_num_threads(1)
    config = config_from_json(config_path)
    distributed = Distributed(config.mixed_precision)
    trainer = build_trainer(config, distributed, StopRequest(distributed))
    seen: dict[str, torch.Tensor] = {}

    experience = trainer.experience

    def recording(rollout, gathered):  # type: ignore[no-untyped-def]
        result = experience(rollout, gathered)
        seen["x_0"] = distributed.gather(result.x_0)
        seen["reward"] = gathered.rewards.total
        seen["advantage"] = distributed.gather(result.advantage)
        return result

    step = trainer.update.optimizer.step
    gradients: list[torch.Tensor] = []

    def stepping() -> None:
        gradients.append(torch.cat([p.grad.flatten() for p in trainer.policy.trainable_parameters()]).clone())
        step()

    trainer.experience = recording  # type: ignore[method-assign]
    trainer.update.optimizer.step = stepping  # type: ignore[method-assign]
    trainer.train()
    trainer.outputs.finish()
    if distributed.is_main:
        torch.save(seen | {"gradients": torch.stack(gradients)}, out)
    distributed.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
