"""What every objective on the forward process does around its loss: noise, forwards, KL terms.

An objective asks for ``forward: ForwardProcess`` in its constructor, which is made from the ``train.`` keys below, and
is left with its own equation:

    noised = self.forward.noised(batch, seed=seed, epoch=epoch, inner_epoch=inner_epoch)
    v = self.forward.velocities(policy, noised, anchor=True)
    loss, metrics = my_loss(v.current, v.anchor, noised.target, noised.t, batch.advantage)
    return self.forward.output(loss, metrics, noised, v)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from torch import Tensor

from awm.flow.rng import SampleNoise
from awm.interfaces import Policy, WeightSet
from awm.objectives.noising import NoisedBatch, Noising, at_times, random_times
from awm.objectives.terms import KL_WEIGHTS, anchoring, check_name, kl_term, norm_ratio, velocity_mse
from awm.types import Experience, LossOutput


@dataclass(frozen=True, slots=True)
class Velocities:
    """What weight sets predict for one noised micro-batch, [T, B, C, H, W] each.

    Where only the KL terms need the anchor or the reference, and ``train.kl_timesteps`` gives them K of the T times, it
    is [K, B, C, H, W], at ``NoisedBatch.kl_times``.

    Attributes:
        current: of the policy being trained, with gradient.
        anchor: of the slow copy, without; None unless asked for, or needed by its KL.
        reference: of the pre-trained model, likewise.
        rollout: of the policy that sampled; None unless asked for.
    """

    current: Tensor
    anchor: Tensor | None = None
    reference: Tensor | None = None
    rollout: Tensor | None = None


class ForwardProcess:
    """Noises micro-batches, runs the forwards that are needed and no others, and adds the KL terms.

    Args:
        grid: times of the rollout, n + 1, as scheduled (without the end-point edits of a solver).
        train_timesteps: T, times each sample is trained at.
        timestep_fraction: share of the grid that is trained on, from the noise end.
        time_type: distribution of the times, see ``draw_times``.
        time_shift: shift of the two continuous distributions.
        guidance_scale: classifier-free guidance of every forward in training; 1 for none.
        reference_guidance_scale: that of the reference's forwards, if it is to teach guidance; None: the same.
        group_noise: the images of a prompt share their times and noise.
        beta: coefficient of the KL to the reference; 0 skips its forward.
        kl_weight: Uniform or ELBO.
        ema_beta: coefficient of the KL to the anchor; 0 skips its forward.
        kl_ema_weight: Uniform or ELBO.
        kl_timesteps: K, number of a sample's T times at which the KL terms are evaluated: a random subset, drawn anew
            for every pass, over which they are averaged, so that value and gradient are right on average. Velocities
            that an objective asks for by itself are made at all times. None: all.

    Raises:
        ValueError: an unknown name, or K is not between 1 and T.
    """

    def __init__(
        self,
        *,
        grid: tuple[float, ...],
        train_timesteps: int = 6,
        timestep_fraction: float = 0.9,
        time_type: str = "discrete_wo_init",
        time_shift: float = 3.0,
        guidance_scale: float = 1.0,
        reference_guidance_scale: float | None = None,
        group_noise: bool = False,
        beta: float = 0.0,
        kl_weight: str = "Uniform",
        ema_beta: float = 0.0,
        kl_ema_weight: str = "Uniform",
        kl_timesteps: int | None = None,
    ) -> None:
        check_name("kl_weight", kl_weight, KL_WEIGHTS)
        check_name("kl_ema_weight", kl_ema_weight, KL_WEIGHTS)
        if kl_timesteps is not None and not 1 <= kl_timesteps <= train_timesteps:
            raise ValueError(
                f"train.kl_timesteps={kl_timesteps} is how many of a sample's train.train_timesteps={train_timesteps} "
                f"times have KL terms; set it to 1 to {train_timesteps}, or leave it unset for all."
            )
        self.noise = Noising(
            grid=grid,
            num_times=train_timesteps,
            fraction=timestep_fraction,
            kind=time_type,
            shift=time_shift,
            group_noise=group_noise,
        )
        self.group_noise = group_noise
        self.guidance_scale = guidance_scale
        self.reference_guidance_scale = guidance_scale if reference_guidance_scale is None else reference_guidance_scale
        self.beta, self.kl_weight = beta, kl_weight
        self.ema_beta, self.kl_ema_weight = ema_beta, kl_ema_weight
        self.train_timesteps = train_timesteps
        has_kl = beta > 0 or ema_beta > 0
        self.kl_timesteps = kl_timesteps if has_kl and kl_timesteps != train_timesteps else None

    def noised(self, batch: Experience, *, seed: int, epoch: int, inner_epoch: int) -> NoisedBatch:
        """The micro-batch at its T times; the same numbers whenever it is called with the same key."""
        noised = self.noise(batch, seed=seed, epoch=epoch, inner_epoch=inner_epoch)
        if self.kl_timesteps is None:
            return noised
        noise = SampleNoise(seed, f"train/{inner_epoch}/kl", epoch, batch.sample_index, batch.x_0.device)
        return replace(noised, kl_times=random_times(noise, self.train_timesteps, self.kl_timesteps))

    def frozen(
        self,
        policy: Policy,
        noised: NoisedBatch,
        *,
        anchor: bool = False,
        reference: bool = False,
        rollout: bool = False,
        current: bool = False,
    ) -> dict[str, Tensor]:
        """Velocities of the weight sets that are asked for, without gradient; no other forward is made.

        A set that equals *current* shares its forward, if that is asked for.
        """
        asked: dict[WeightSet, bool] = {
            "reference": reference,
            "anchor": anchor,
            "rollout": rollout,
            "current": current,
        }
        made: dict[str, Tensor] = {}
        for name in (name for name, wanted in asked.items() if wanted):
            weights: WeightSet = "current" if current and self._equals_current(policy, name) else name
            if weights not in made:
                made[weights] = noised.frozen_velocity(policy, weights, self._scale_of(weights))
            made[name] = made[weights]
        return made

    def velocities(
        self,
        policy: Policy,
        noised: NoisedBatch,
        *,
        anchor: bool = False,
        reference: bool = False,
        rollout: bool = False,
    ) -> Velocities:
        """The current velocity, those asked for, and those that the KL terms need.

        A set that equals *current* has its velocity, and no forward of its own.
        """
        asked: dict[WeightSet, bool] = {"reference": reference, "anchor": anchor, "rollout": rollout}
        needed = asked | {"reference": reference or self.beta > 0, "anchor": anchor or self.ema_beta > 0}
        names = [name for name, is_needed in needed.items() if is_needed]
        equal = [name for name in names if self._equals_current(policy, name)]
        for_kl = noised if noised.kl_times is None else noised.at(noised.kl_times)
        # Before the forward with gradient: its activations are then not held while others run.
        others: dict[str, Tensor] = {
            name: (noised if asked[name] else for_kl).frozen_velocity(policy, name, self._scale_of(name))
            for name in names
            if name not in equal
        }
        current = noised.velocity(policy, self.guidance_scale)
        return Velocities(current, **others, **dict.fromkeys(equal, current.detach()))

    def anchoring(self, t: Tensor, *, pull: float) -> Tensor:
        """[T, B] total coefficient of an objective's ``pull`` and the KL terms at times t, see ``terms.anchoring``."""
        return anchoring(
            t,
            pull=pull,
            beta=self.beta,
            kl_weight=self.kl_weight,
            ema_beta=self.ema_beta,
            kl_ema_weight=self.kl_ema_weight,
        )

    def output(
        self,
        loss: Tensor,
        metrics: Mapping[str, Tensor],
        noised: NoisedBatch,
        velocities: Velocities,
        *,
        reference_scale: Tensor | None = None,
    ) -> LossOutput:
        """The objective's loss [B] plus beta KL_ref + ema_beta KL_anchor, and all metrics, detached.

        ``reference_scale`` [B] multiplies beta for each sample.
        """
        total, kl_metrics = self._with_kl(loss, noised, velocities, reference_scale)
        if self.reference_guidance_scale != self.guidance_scale:
            kl_metrics.pop(
                "velocity_norm_ratio", None
            )  # guidance lengthens the reference's: the trainer probes instead
        seen = {"loss/policy": loss, **metrics, **kl_metrics}
        if "velocity_mse" not in metrics:
            seen["velocity_mse"] = velocity_mse(velocities.current.detach(), noised.target).mean(0)
        return LossOutput(total, {name: value.detach() for name, value in seen.items()})

    def _with_kl(
        self, loss: Tensor, noised: NoisedBatch, velocities: Velocities, reference_scale: Tensor | None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        metrics: dict[str, Tensor] = {}
        if self.beta > 0 and velocities.reference is not None:
            current, other, t = _where_known(noised, velocities.current, velocities.reference)
            kl = kl_term(current, other, t, weight=self.kl_weight)
            loss = loss + (self.beta if reference_scale is None else self.beta * reference_scale) * kl
            metrics |= {"loss/kl_reference": kl, "velocity_norm_ratio": norm_ratio(current, other)}
        if self.ema_beta > 0 and velocities.anchor is not None:
            current, other, t = _where_known(noised, velocities.current, velocities.anchor)
            kl = kl_term(current, other, t, weight=self.kl_ema_weight)
            loss = loss + self.ema_beta * kl
            metrics["loss/kl_anchor"] = kl
        return loss, metrics

    def _scale_of(self, name: WeightSet) -> float:
        return self.reference_guidance_scale if name == "reference" else self.guidance_scale

    @staticmethod
    def _equals_current(policy: Policy, name: WeightSet) -> bool:
        # The reference may have other guidance, and adapters that are zero are not known to be.
        return name in ("anchor", "rollout") and policy.equals_current(name)


def _where_known(noised: NoisedBatch, current: Tensor, other: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Both velocities and t, at the times at which the other one is known."""
    if noised.kl_times is None or len(other) == len(current):
        return current, other, noised.t
    return at_times(current, noised.kl_times), other, at_times(noised.t, noised.kl_times)
