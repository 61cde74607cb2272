"""Every number the experiment depends on, and the methods it compares."""

from __future__ import annotations

from dataclasses import dataclass

from awm.lab.sequences.world import World
from awm.objectives.group_weights import GroupWeighing
from awm.weightings import Weighting

FINETUNED = ("exp", "linear", "square", "linear_neg", "square_neg", "wd1")
BASELINES = ("pretrained", "best_of_n", "rejection")
METHODS = (*BASELINES, *FINETUNED)
PUBLISHED = (*BASELINES, "exp", "wd1")  # what SiMPO's table 3 compares its variants with (exp is RL-D2's rule)
UNMATCHED = ("wd1",)  # weights not solved for the KL target of the others, and never without the pull


@dataclass(frozen=True, slots=True)
class Settings:
    """Sizes and hyper-parameters; all methods share them.

    Attributes:
        world: what is true.
        data_size: sequences of background data; each half trains a reward model.
        reward_epochs: passes of each reward model over its half.
        pretrain_steps: updates of the masked-diffusion model before fine-tuning.
        updates: times a batch is sampled; with groups x group_size it is the budget of every method.
        groups: groups of samples per batch, each with its own normaliser.
        group_size: N.
        inner_steps: optimizer steps per batch, each with fresh times and masks.
        learning_rate: of Adam in fine-tuning, constant.
        target_kl: KL of the groups' weights from uniform, nats, that the temperature is solved for.
        floor: smallest weight of the "neg" variants.
        centred: credit W - 1 with the pull to the model that sampled, instead of W alone.
        pull: alpha of that pull, which wd1's weights, of mean zero, always have.
        error_clip: largest cross-entropy at which a letter of negative mass is still repelled, nats.
        kept_share: of the budget that rejection fine-tuning keeps.
        sampler_steps: model calls per sequence.
        eval_size: sequences sampled from each fine-tuned model.
        eval_versions: masked versions of each that its likelihood is estimated with.
    """

    world: World = World()  # noqa: RUF009 - World is frozen
    data_size: int = 20_000
    reward_epochs: int = 12
    pretrain_steps: int = 2_400
    updates: int = 40
    groups: int = 4
    group_size: int = 32
    inner_steps: int = 4
    learning_rate: float = 1e-3
    target_kl: float = 1.5
    floor: float = -0.5
    centred: bool = False
    pull: float = 1.0
    error_clip: float = 5.0
    kept_share: float = 0.05
    sampler_steps: int = 16
    eval_size: int = 512
    eval_versions: int = 8

    @property
    def batch(self) -> int:
        """Sequences per update."""
        return self.groups * self.group_size

    @property
    def budget(self) -> int:
        """Sequences a method may sample and score before it is evaluated."""
        return self.updates * self.batch

    def weighing(self, method: str) -> GroupWeighing:
        """Weight function and temperature of a fine-tuned method; an unknown name raises ValueError.

        wd1 keeps its published psi = 1, in units of the batch's standard deviation. Small KL targets have no sensible
        temperature: the positive part of its weights keeps its shape while they all go to zero.
        """
        check_method(method, FINETUNED)
        if method == "wd1":
            return GroupWeighing(Weighting("wd1"), temperature=1.0)
        name, _, negative = method.partition("_")
        return GroupWeighing(Weighting(name, floor=self.floor if negative else 0.0), target_kl=self.target_kl)

    def centre_and_pull(self, weighting: Weighting) -> tuple[float, float]:
        """What is taken from the weights, and alpha: W - centre + alpha has mean one in either form."""
        if weighting.name == "wd1":
            return 0.0, self.pull
        return (1.0, self.pull) if self.centred else (0.0, 0.0)


QUICK = Settings(
    data_size=300, reward_epochs=1, pretrain_steps=6, updates=3, groups=2, group_size=8, inner_steps=2, target_kl=0.7,
    sampler_steps=6, eval_size=24, eval_versions=2,
)  # fmt: skip


def check_method(method: str, known: tuple[str, ...] = METHODS) -> str:
    """Return ``method`` if it is known, else raise ValueError listing what is."""
    if method not in known:
        raise ValueError(f"unknown method {method!r}; known: {', '.join(known)}.")
    return method
