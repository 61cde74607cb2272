"""How far the policy's velocity has drifted from the pre-trained model's, for losses that do not say it."""

from __future__ import annotations

import torch
from torch import Tensor

from awm.flow.path import interpolate
from awm.flow.rng import SampleNoise
from awm.interfaces import Policy
from awm.objectives.terms import norm_ratio
from awm.training.distributed import Distributed
from awm.types import Experience

PROBES = 8  # samples of an epoch, each at one time of its own


class VelocityProbe:
    """Mean of ||v_current|| / ||v_reference|| over a few samples of the epoch at evenly spaced times.

    The samples do not depend on the number of ranks. Two forwards without gradient; every rank makes both, with
    equally many rows, whether or not it holds a probed sample.

    Args:
        policy: compared with its own reference.
        distributed: the ranks.
        seed: keys the noise.
    """

    def __init__(self, policy: Policy, distributed: Distributed, seed: int) -> None:
        self.policy, self.distributed, self.seed = policy, distributed, seed

    def __call__(self, experience: Experience, epoch: int) -> float:
        """Measure ``epoch`` (counted from 0) on this rank's equal share of it; a collective."""
        mine, total = len(experience), len(experience) * self.distributed.world_size
        probes = min(PROBES, total)
        chosen = [number * total // probes for number in range(probes)]
        first = self.distributed.rank * mine
        held = [number for number in range(probes) if first <= chosen[number] < first + mine]
        rows = -(-probes // self.distributed.world_size)
        number = torch.tensor([*held, *[0] * rows][:rows])  # ranks without a probe compute one for nothing
        index = (torch.tensor(chosen)[number] - first).clamp(0, mine - 1)
        times = (number + 0.5) / probes
        ratio = self._ratio(experience.take(index), times, epoch)[: len(held)].sum()
        return float(self.distributed.sum(ratio)) / probes

    @torch.no_grad()
    def _ratio(self, samples: Experience, times: Tensor, epoch: int) -> Tensor:
        t = times.to(samples.x_0)
        noise = SampleNoise(self.seed, "probe", epoch, samples.sample_index.tolist(), samples.x_0.device)
        x_t = interpolate(samples.x_0, noise.randn(samples.x_0.shape[1:]), t)
        condition = samples.condition.take(samples.prompt_index)
        current = self.policy.model.velocity(x_t, t, condition)
        with self.policy.using("reference"):
            reference = self.policy.model.velocity(x_t, t, condition)
        return norm_ratio(current.unsqueeze(0), reference.unsqueeze(0))
