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
from dataclasses import dataclass

from torch import Tensor

from awm.interfaces import Policy
from awm.objectives.noising import NoisedBatch, Noising
from awm.objectives.terms import KL_WEIGHTS, add_kl_terms, check_name, velocity_mse
from awm.types import Experience, LossOutput


@dataclass(frozen=True, slots=True)
class Velocities:
    """What weight sets predict for one noised micro-batch, [T, B, C, H, W] each.

    Attributes:
        current: of the policy being trained, with gradient.
        anchor: of the slow copy, without; None unless asked for.
        reference: of the pre-trained model.
        rollout: of the policy that sampled.
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
    ) -> None:
        check_name("kl_weight", kl_weight, KL_WEIGHTS)
        check_name("kl_ema_weight", kl_ema_weight, KL_WEIGHTS)
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

    def noised(self, batch: Experience, *, seed: int, epoch: int, inner_epoch: int) -> NoisedBatch:
        """The micro-batch at its T times; the same numbers whenever it is called with the same key."""
        return self.noise(batch, seed=seed, epoch=epoch, inner_epoch=inner_epoch)

    def frozen(
        self,
        policy: Policy,
        noised: NoisedBatch,
        *,
        anchor: bool = False,
        reference: bool = False,
        rollout: bool = False,
    ) -> dict[str, Tensor]:
        """Velocities of the weight sets that are asked for, without gradient; no other forward is made."""
        scale = {"anchor": self.guidance_scale, "reference": self.reference_guidance_scale}
        wanted = {"reference": reference, "anchor": anchor, "rollout": rollout}
        return {
            name: noised.frozen_velocity(policy, name, scale.get(name, self.guidance_scale))
            for name in ("reference", "anchor", "rollout")
            if wanted[name]
        }

    def velocities(
        self,
        policy: Policy,
        noised: NoisedBatch,
        *,
        anchor: bool = False,
        reference: bool = False,
        rollout: bool = False,
    ) -> Velocities:
        """The current velocity, those asked for, and those that the KL terms need."""
        # Before the forward with gradient: its activations are then not held while others run.
        others = self.frozen(
            policy,
            noised,
            anchor=anchor or self.ema_beta > 0,
            reference=reference or self.beta > 0,
            rollout=rollout,
        )
        return Velocities(noised.velocity(policy, self.guidance_scale), **others)

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
        total, kl_metrics = add_kl_terms(
            loss,
            velocities.current,
            noised.t,
            velocity_reference=velocities.reference if self.beta > 0 else None,
            velocity_anchor=velocities.anchor if self.ema_beta > 0 else None,
            beta=self.beta,
            kl_weight=self.kl_weight,
            ema_beta=self.ema_beta,
            kl_ema_weight=self.kl_ema_weight,
            reference_scale=reference_scale,
        )
        if self.reference_guidance_scale != self.guidance_scale:
            kl_metrics.pop(
                "velocity_norm_ratio", None
            )  # guidance lengthens the reference's: the trainer probes instead
        error = velocity_mse(velocities.current.detach(), noised.target).mean(0)
        seen = {"loss/policy": loss, "velocity_mse": error, **metrics, **kl_metrics}
        return LossOutput(total, {name: value.detach() for name, value in seen.items()})
