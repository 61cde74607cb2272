"""Every number an online RL run depends on, with the two presets of the command.

Paper: SiMPO, table of hyperparameters in appendix F, and section 5.2 (5 environments, 1e6 steps, 2e5 updates, 20
evaluation episodes, N = 32 actions per state, KL target 1.5). What its text leaves open is from the authors' code:
batch, target rate, noise on the candidates, refresh of the old policy, best of 10 actions when evaluating.

The quick preset evaluates a single draw. With the best of 10 by Q even a policy that is not trained solves Pendulum:
that shows the critics. The paper preset keeps 10, the authors' protocol, so that its returns compare with theirs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from typing import Any

from awm.lab.control.landscapes import LANDSCAPES
from awm.registry import nearest
from awm.weightings import Weighting

ALGORITHMS = ("simpo", "rfm", "frozen")
PATHS = ("flow", "diffusion")
ESTIMATORS = ("noise", "gradient", "combined")
WEIGHTINGS = {"exp": "exp", "linear": "linear", "square": "square", "linear_neg": "linear", "square_neg": "square"}
ACTIVATIONS = ("mish", "silu")
PRESETS = ("paper", "quick")
NOT_TRAINED = "not trained"
"""What the policy of algorithm frozen is called."""


@dataclass(frozen=True, slots=True)
class ControlSettings:
    """One run; the defaults are the paper's.

    Attributes:
        environment: a Gymnasium id with continuous actions, "Hopper-v5".
        algorithm: simpo, rfm, or frozen: the critics learn, the policy stays as it was drawn.
        path: flow (straight path, the network predicts velocity) or diffusion (cosine schedule, predicts noise).
        weighting: of SiMPO; the name with _neg cuts weights at ``floor`` instead of 0.
        estimator: of RFM's velocity target.
        landscape: name of a function of forward speed that replaces the reward, or None.
        total_steps: transitions collected in all environments together.
        num_environments: stepped side by side.
        warmup_steps: transitions with uniform random actions before the first update.
        steps_per_update: transitions collected per gradient step of critics and policy.
        evaluation_interval: steps between evaluations.
        evaluation_episodes: episodes of one evaluation.
        evaluation_candidates: actions drawn per state there, of which the one with the largest Q is taken.
        width: hidden features of policy and critics.
        depth: their hidden layers.
        activation: between them, mish or silu; on a CPU torch's mish takes nine times as long as its silu.
        sampling_steps: network calls that turn noise into an action.
        batch_size: states per update.
        num_candidates: N, actions (SiMPO) or noises (RFM) per state.
        discount: gamma.
        critic_learning_rate: Adam's.
        policy_learning_rate: Adam's, at the start.
        final_policy_learning_rate: at the end; linear in between.
        target_rate: share of the critics that moves into their target copies after each update.
        buffer_size: transitions kept.
        reward_scale: multiplies rewards before the critics see them.
        exploration_noise: std added to actions while collecting; actions are in [-1, 1].
        candidate_noise: SiMPO, std added to candidates before Q scores them.
        refresh_interval: SiMPO, updates after which the policy that proposes candidates is renewed.
        target_kl: SiMPO, KL of the weights from uniform that the temperature is set to, nats.
        floor: SiMPO, lowest weight of the _neg weightings, in units of the mean weight.
        pull: SiMPO, coefficient alpha of a pull toward the old policy's prediction; with alpha >= -floor negative
            weights cannot repel any more. The paper has none.
        temperature: RFM, final temperature in units of the spread of Q over the actions of a state.
        initial_temperature: RFM, at the start; linear over the first third of the updates.
        wall: RFM, std of the target's Gaussian tails outside the box of actions.
    """

    environment: str
    algorithm: str = "simpo"
    path: str = "flow"
    weighting: str = "linear"
    estimator: str = "combined"
    landscape: str | None = None
    total_steps: int = 1_000_000
    num_environments: int = 5
    warmup_steps: int = 5_000
    steps_per_update: int = 5
    evaluation_interval: int = 20_000
    evaluation_episodes: int = 20
    evaluation_candidates: int = 10
    width: int = 256
    depth: int = 3
    activation: str = "mish"
    sampling_steps: int = 20
    batch_size: int = 256
    num_candidates: int = 32
    discount: float = 0.99
    critic_learning_rate: float = 3e-4
    policy_learning_rate: float = 3e-4
    final_policy_learning_rate: float = 3e-5
    target_rate: float = 0.005
    buffer_size: int = 1_000_000
    reward_scale: float = 1.0
    exploration_noise: float = 0.0
    candidate_noise: float = 0.2
    refresh_interval: int = 1_000
    target_kl: float = 1.5
    floor: float = -0.5
    pull: float = 0.0
    temperature: float = 0.1
    initial_temperature: float = 0.4
    wall: float = 0.2

    def __post_init__(self) -> None:
        _check("algorithm", self.algorithm, ALGORITHMS)
        _check("path", self.path, PATHS)
        _check("weighting", self.weighting, tuple(WEIGHTINGS))
        _check("estimator", self.estimator, ESTIMATORS)
        _check("activation", self.activation, ACTIVATIONS)
        if self.landscape is not None:
            _check("landscape", self.landscape, tuple(LANDSCAPES))
        self._check_numbers()

    @property
    def variant(self) -> str:
        """What the run is called in tables and legends, "SiMPO linear, flow"."""
        if self.algorithm == "simpo":
            return f"SiMPO {self.weighting}, {self.path}"
        if self.algorithm == "rfm":
            return f"RFM {self.estimator}, {self.path}"
        return f"{NOT_TRAINED}, {self.path}"

    @property
    def num_updates(self) -> int:
        """Gradient steps of the whole run."""
        return max(self.total_steps - self.warmup_steps, 0) // self.steps_per_update

    @property
    def has_negative_weights(self) -> bool:
        """Whether SiMPO may give an action a weight below zero."""
        return self.weighting.endswith("_neg")

    def weight_function(self) -> Weighting:
        """The weighting by name, shared with the image trainer."""
        floor = self.floor if self.has_negative_weights else 0.0
        return Weighting(WEIGHTINGS[self.weighting], floor=floor)

    def _check_numbers(self) -> None:
        for name in _COUNTS:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}.")
        for name in _POSITIVE:
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be a finite number above 0, not {getattr(self, name)}.")
        for name in _NOT_NEGATIVE:
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be a finite number, at least 0, not {getattr(self, name)}.")
        if self.num_candidates < 2:
            raise ValueError("num_candidates must be at least 2: one action alone cannot be better than the others.")
        if self.algorithm == "rfm" and self.num_candidates < 4:
            raise ValueError(
                f"num_candidates must be at least 4 for rfm, not {self.num_candidates}: half of them are uniform "
                f"actions, and the spread of Q over those needs two."
            )
        if self.discount >= 1 or self.target_rate > 1:
            raise ValueError(
                f"discount must be below 1 and target_rate at most 1, not {self.discount}, {self.target_rate}."
            )
        if self.total_steps <= self.warmup_steps:
            raise ValueError(
                f"{self.total_steps} steps leave none to learn from: the first {self.warmup_steps} are random; "
                f"ask for more than that with --steps."
            )


def preset(name: str, environment: str, **changes: Any) -> ControlSettings:
    """The settings of a preset for one environment, with some of them changed.

    ``paper`` is meant for 1e6 steps on a GPU; ``quick`` has smaller networks, batches and samplers, larger
    learning rates and a policy renewed more often, so that learning shows within minutes on one CPU core.

    Raises:
        ValueError: an unknown preset or value.
    """
    _check("preset", name, PRESETS)
    settings = ControlSettings(environment, **(_QUICK if name == "quick" else {}))
    known = {field.name for field in fields(ControlSettings)}
    unknown = sorted(set(changes) - known)
    if unknown:
        raise ValueError(f"unknown setting {unknown[0]!r}.{nearest(unknown[0], sorted(known))}")
    return replace(settings, **changes)


_COUNTS = (
    "total_steps",
    "num_environments",
    "steps_per_update",
    "evaluation_interval",
    "evaluation_episodes",
    "evaluation_candidates",
    "width",
    "depth",
    "sampling_steps",
    "batch_size",
    "buffer_size",
    "refresh_interval",
)
_POSITIVE = (
    "discount",
    "critic_learning_rate",
    "policy_learning_rate",
    "final_policy_learning_rate",
    "target_rate",
    "reward_scale",
    "target_kl",
    "temperature",
    "initial_temperature",
    "wall",
)
_NOT_NEGATIVE = ("warmup_steps", "exploration_noise", "candidate_noise", "pull")

_QUICK: dict[str, Any] = {
    "total_steps": 12_000,
    "warmup_steps": 1_000,
    "evaluation_interval": 1_000,
    "evaluation_episodes": 10,
    "evaluation_candidates": 1,
    "width": 64,
    "depth": 2,
    "activation": "silu",
    "sampling_steps": 6,
    "batch_size": 128,
    "num_candidates": 16,
    "critic_learning_rate": 1e-3,
    "policy_learning_rate": 1e-3,
    "final_policy_learning_rate": 3e-4,
    "target_rate": 0.01,
    "reward_scale": 0.1,
    "exploration_noise": 0.1,
    "refresh_interval": 20,
}


def _check(kind: str, name: str, known: tuple[str, ...]) -> None:
    if name not in known:
        raise ValueError(f"unknown {kind} {name!r}; known: {', '.join(known)}.{nearest(name, list(known))}")
