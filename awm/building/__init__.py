"""ConfigDict -> objects: the one package that knows both the configuration and the classes."""

from awm.building.objects import (
    DTYPES,
    build_evaluation,
    build_model,
    build_objective,
    build_optimizer,
    build_policy,
    build_reward,
    build_rollout_sampler,
    build_sampler,
    make_sampler,
    without_effect,
)
from awm.building.trainer import build_trainer

__all__ = [
    "DTYPES",
    "build_evaluation",
    "build_model",
    "build_objective",
    "build_optimizer",
    "build_policy",
    "build_reward",
    "build_rollout_sampler",
    "build_sampler",
    "build_trainer",
    "make_sampler",
    "without_effect",
]
