"""What a configuration may say: the tables of plug-ins, the range of every key, and which keys fit each other."""

from awm.validation.checks import geometry, validate
from awm.validation.tables import OBJECTIVES, SAMPLERS, TRACKERS, rollout_sampler

__all__ = ["OBJECTIVES", "SAMPLERS", "TRACKERS", "geometry", "rollout_sampler", "validate"]
