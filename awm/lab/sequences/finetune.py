"""Online fine-tuning: sample groups, weigh them by their reward, match the weighted samples, repeat.

Weights and temperature come from the image trainer's own code (``awm.objectives.group_weights``); the loss is the
discrete one of ``awm.lab.sequences.objective``. Without a condition, a group is just N samples of the one policy;
several groups per update lower the noise of the normaliser.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from awm.lab.sequences.denoiser import Denoiser
from awm.lab.sequences.diffusion import draw_times, mask_tokens, sample
from awm.lab.sequences.measures import median
from awm.lab.sequences.objective import case_two_share, weighted_denoising_loss
from awm.lab.sequences.settings import Settings
from awm.objectives.group_weights import GroupWeighing

Score = Callable[[Tensor], Tensor]
"""tokens [B, L] -> [B] float32, higher is better."""


def credit_of(
    reward: Tensor, weighing: GroupWeighing, *, group_size: int, centre: float
) -> tuple[Tensor, dict[str, float]]:
    """Credit c = W - centre [B] of rewards [B] in consecutive groups, and metrics of the weights."""
    group = torch.arange(len(reward)) // group_size
    weights = weighing(reward.double(), group, torch.ones(len(reward), dtype=torch.bool))
    return weights.value - centre, {name.replace("/", "_"): value for name, value in weights.metrics.items()}


def finetune(
    pretrained: Denoiser,
    reward: Score,
    weighing: GroupWeighing,
    settings: Settings,
    *,
    seed: int,
    watch: Mapping[str, Score] | None = None,
) -> tuple[Denoiser, list[dict[str, float]]]:
    """A fine-tuned copy of ``pretrained``, and one record per update.

    Args:
        pretrained: where it starts; it is not changed.
        reward: what is maximised.
        weighing: SiMPO's weight function and its temperature.
        settings: sizes and hyper-parameters.
        seed: of all sampling; methods with the same seed see the same random numbers.
        watch: other scores of the sampled sequences, reported by their name but never learned from.

    Returns:
        The model, and for every update, before its optimizer steps, the medians of reward and watched scores over the
        batch, and metrics of weights and loss.
    """
    generator = torch.Generator().manual_seed(seed)
    model = copy.deepcopy(pretrained)
    optimizer = torch.optim.Adam(model.parameters(), lr=settings.learning_rate, betas=(0.9, 0.99))
    centre, pull = settings.centre_and_pull(weighing.weighting)
    records = []
    for _ in range(settings.updates):
        length = settings.world.length
        tokens = sample(model, settings.batch, length, steps=settings.sampler_steps, generator=generator)
        predicted = reward(tokens)
        credit, metrics = credit_of(predicted, weighing, group_size=settings.group_size, centre=centre)
        seen = {"predicted": predicted, **{name: score(tokens) for name, score in (watch or {}).items()}}
        record = {name: median(value) for name, value in seen.items()} | metrics
        record["case_two"] = case_two_share(tokens, credit + pull)
        record |= improve(model, optimizer, tokens, credit, settings, generator, pull=pull)
        records.append(record)
    return model, records


def improve(
    model: Denoiser,
    optimizer: torch.optim.Optimizer,
    tokens: Tensor,
    credit: Tensor,
    settings: Settings,
    generator: torch.Generator,
    *,
    pull: float,
) -> dict[str, float]:
    """The optimizer steps of one batch, each on freshly masked sequences; returns means of its metrics.

    Raises:
        FloatingPointError: the loss is not finite; the weights are then those before the step.
    """
    old = copy.deepcopy(model).requires_grad_(False)
    total: dict[str, float] = {}
    for _ in range(settings.inner_steps):
        t = draw_times(1, len(tokens), generator)
        x_t = mask_tokens(tokens, t, generator)
        log_probs = model(x_t)
        output = weighted_denoising_loss(
            log_probs,
            old(x_t) if pull else log_probs,
            tokens,
            x_t,
            t,
            credit,
            pull=pull,
            error_clip=settings.error_clip,
        )
        loss = output.loss.mean()
        if not bool(loss.isfinite()):
            raise FloatingPointError("the loss is not finite; lower the learning rate, or raise the pull.")
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        for name, value in {**output.metrics, "gradient_norm": norm}.items():
            total[name] = total.get(name, 0.0) + value.mean().item() / settings.inner_steps
    return total
