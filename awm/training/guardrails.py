"""Signs in the metrics that a run is going wrong, and how often to say so."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limits:
    """What is still healthy; section ``guardrails`` of the configuration.

    Attributes:
        zero_std_ratio: largest share of prompts whose images all score the same.
        invalid_fraction: largest share of images without a score.
        velocity_norm_low: smallest ratio of velocity norms, current over reference.
        velocity_norm_high: largest.
        repeat_epochs: epochs before the same warning is given again.
    """

    zero_std_ratio: float
    invalid_fraction: float
    velocity_norm_low: float
    velocity_norm_high: float
    repeat_epochs: int


def breaches(metrics: Mapping[str, float | int | None], limits: Limits) -> dict[str, str]:
    """The metrics of one epoch that are beyond their limits: name -> what is wrong and what to do about it.

    A metric that is missing or not a number breaks nothing.
    """
    found = {}
    zero_std = metrics.get("reward/zero_std_ratio")
    if zero_std is not None and zero_std > limits.zero_std_ratio:
        found["reward/zero_std_ratio"] = (
            f"{zero_std:.0%} of the prompts have images that all score the same (guardrails.zero_std_ratio="
            f"{limits.zero_std_ratio:g}) and teach nothing. Sample more images per prompt, add stochasticity "
            f"(sample.noise_level), or use a finer reward or prompts of another difficulty."
        )
    invalid = metrics.get("reward/invalid_fraction")
    if invalid is not None and invalid > limits.invalid_fraction:
        found["reward/invalid_fraction"] = (
            f"{invalid:.1%} of the images have no score (guardrails.invalid_fraction={limits.invalid_fraction:g}); the "
            f"reward server's log names them. The run stops above reward_server.max_invalid_fraction."
        )
    ratio = metrics.get("velocity_norm_ratio")
    if ratio is not None and (ratio < limits.velocity_norm_low or ratio > limits.velocity_norm_high):
        found["velocity_norm_ratio"] = (
            f"the velocity is {ratio:.2f} times as long as the pre-trained model's (guardrails.velocity_norm_low="
            f"{limits.velocity_norm_low:g}, velocity_norm_high={limits.velocity_norm_high:g}), which comes before "
            f"images lose quality. Look at samples/; raise train.beta or lower train.learning_rate."
        )
    if metrics.get("parity/exceeded"):
        found["parity/reward_gap"] = (
            f"faster weights score {metrics['parity/reward_gap']:+.2f} standard deviations of the rewards against the "
            f"trained ones (sample.max_reward_gap), and a run that is resumed would refuse them. Go on with "
            f"sample.fp8=False, or else with sample.merge_lora=False."
        )
    return found


class Guardrails:
    """Gives each kind of warning once, and again after ``limits.repeat_epochs`` epochs."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._warned: dict[str, int] = {}

    def warnings(self, epoch: int, found: Mapping[str, str]) -> list[str]:
        """Those of ``breaches`` that are due in ``epoch``, each one line."""
        pause = self.limits.repeat_epochs
        due = [name for name in found if epoch - self._warned.get(name, epoch - pause) >= pause]
        self._warned |= dict.fromkeys(due, epoch)
        return [f"warning, epoch {epoch}: {name}: {found[name]}" for name in due]
