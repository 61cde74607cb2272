"""DiffusionNFT: flow matching of two mixtures with the old policy, one for what is good and one for what is bad.

    v+ = (1 - b) v_old + b v        v- = (1 + b) v_old - b v        r = clip(A / (2 A_max) + 1/2, 0, 1)
    L = (A_max / b) E_{t, eps}[ r ||x_0+ - x_0||^2 / m+  +  (1 - r) ||x_0- - x_0||^2 / m- ]

with the data predictions x_0+- = x_t - t v+-, the normalisers m+- = sg[max(mean |x_0+- - x_0|, 1e-5)], and ||.||^2 a
mean over the D elements, as everywhere here. No likelihood enters, and the loss is bounded below. Without normalisers
it is b^2 times the squared distance to v_old + ((2 r - 1) / b) (u - v_old), plus a constant, see ``nft_loss``: b sets
how far one image moves the policy. DiffusionNFT, https://arxiv.org/abs/2509.16117; the form of its released code.

r = 1/2 (no advantage) pulls to the old policy: published so, and what holds prompts that teach nothing in place. Off
the old policy m+ and m- differ, so the normalised loss has no minimiser that could be written down.
"""

from __future__ import annotations

from torch import Tensor

from awm.flow.path import at_least_float32, expand_time
from awm.interfaces import Policy
from awm.objectives.forward_process import ForwardProcess
from awm.objectives.terms import require_positive
from awm.types import Experience, LossOutput, Needs

SMALLEST_ERROR = 1e-5  # of the normaliser, in units of the data


def nft_loss(
    velocity: Tensor,
    velocity_anchor: Tensor,
    target: Tensor,
    t: Tensor,
    advantage: Tensor,
    *,
    beta: float,
    advantage_max: float,
    adaptive: bool = True,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss of B samples, each averaged over its T times.

    The plain form (``adaptive=False``) is r ||v+ - u||^2 + (1 - r) ||v- - u||^2, without the factor A_max / b. With
    e_old = v_old - u and a = 2 r - 1 it is exactly [derived here]

        b^2 ||v - v_old + (a / b) e_old||^2 + (1 - a^2) ||e_old||^2

    whose minimiser at one x_t is v_old - E[a e_old | x_t] / b. At v = v_old the gradient of the normalised form is
    2 A t e / (D mean |e|), whatever b and A_max: AWM's with the weight t / mean |e| [derived here].

    Args:
        velocity: [T, B, C, H, W] of the policy being trained; the only argument that gets a gradient.
        velocity_anchor: [T, B, C, H, W] v_old, of the policy that sampled.
        target: [T, B, C, H, W] u, the path's velocity eps - x_0.
        t: [T, B] times.
        advantage: [B] A.
        beta: b, more than 0.
        advantage_max: A_max, the advantage at which r is 1, more than 0.
        adaptive: divide each branch by its own normaliser, as published.

    Returns:
        [B] loss, and per sample r and the error of each branch (normalised or not, as in the loss).
    """
    require_positive("nft_beta", beta)
    require_positive("advantage_max", advantage_max)
    error_old = at_least_float32(velocity_anchor.detach()) - at_least_float32(target)
    # As sums with the old error rather than as mixtures: near the old policy, nothing cancels.
    step = beta * (at_least_float32(velocity) - at_least_float32(velocity_anchor.detach()))
    branches = [error_old + step, error_old - step]
    positive, negative = (
        self_normalised_error(error, t) if adaptive else error.square().flatten(2).mean(2) for error in branches
    )
    optimality = (advantage / (2 * advantage_max) + 0.5).clamp(0, 1)
    loss = (optimality * positive + (1 - optimality) * negative).mean(0) * (advantage_max / beta if adaptive else 1.0)
    return loss, {"nft/r": optimality, "nft/positive_error": positive.mean(0), "nft/negative_error": negative.mean(0)}


def self_normalised_error(error: Tensor, t: Tensor) -> Tensor:
    """Squared error of the data prediction, in mean absolute errors: ||x - x_0||^2 / sg[max(mean |x - x_0|, 1e-5)].

    x - x_0 = -t e for an error e = v - u of the velocity. The gradient does not see the normaliser.

    Args:
        error: [T, B, C, H, W] e.
        t: [T, B] times.

    Returns:
        [T, B], in units of the data.
    """
    residual = (expand_time(t, error) * error).flatten(2)
    return residual.square().mean(2) / residual.detach().abs().mean(2).clamp(min=SMALLEST_ERROR)


class DiffusionNFT:
    """The objective. The anchor is the old policy, so it has to sample: ``train.off_policy``.

    With ``train.kl_ema_decay=0`` the anchor is the policy at the start of the epoch; published are slower ones.

    Args:
        forward: noise, forwards and KL terms.
        nft_beta: b, more than 0; published: 1, and 0.1 for OCR and several rewards. The smaller, the weaker the pull to
            the old policy.
        nft_adaptive: divide each branch by its own normaliser, as published; False is the plain form of ``nft_loss``.
        advantage_max: bound on |advantage|, ``train.advantage_max``; published: that of the clipping, 5.

    Raises:
        ValueError: a scale is not positive.
    """

    needs = Needs()

    def __init__(
        self,
        *,
        forward: ForwardProcess,
        nft_beta: float = 1.0,
        nft_adaptive: bool = True,
        advantage_max: float = 1.0,
    ) -> None:
        require_positive("nft_beta", nft_beta)
        require_positive("advantage_max", advantage_max)
        self.forward = forward
        self.beta, self.adaptive, self.advantage_max = nft_beta, nft_adaptive, advantage_max

    def __call__(
        self, policy: Policy, batch: Experience, *, seed: int, epoch: int, inner_epoch: int, on_policy: bool
    ) -> LossOutput:
        """Loss of a micro-batch, see ``awm.interfaces.Objective``."""
        noised = self.forward.noised(batch, seed=seed, epoch=epoch, inner_epoch=inner_epoch)
        v = self.forward.velocities(policy, noised, anchor=True)
        assert v.anchor is not None
        loss, metrics = nft_loss(
            v.current,
            v.anchor,
            noised.target,
            noised.t,
            batch.advantage,
            beta=self.beta,
            advantage_max=self.advantage_max,
            adaptive=self.adaptive,
        )
        return self.forward.output(loss, metrics, noised, v)
