"""One epoch's optimizer steps on its samples."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from awm.data.grouping import update_chunks
from awm.interfaces import Objective, Policy, PreparesStep
from awm.training.distributed import Distributed
from awm.training.geometry import Geometry
from awm.training.micro_batches import micro_batches, micro_batches_with_advantage, with_advantage
from awm.training.stopping import StopRequestedError
from awm.training.undo import Undo
from awm.types import Experience, LossOutput

Progress = Callable[[int], object]
OVER_ALL = ("loss", "loss/policy")
"""Metrics that are zero, not unknown, for samples that are left out."""


class NonFiniteLossError(RuntimeError):
    """A loss or gradient became NaN or infinite; raised on every rank, with the weights of the epoch's start."""


class Update:
    """Passes over the samples of an epoch, each split into optimizer steps, each into micro-batches.

    The loss of a step is the mean over its valid samples on all ranks, whatever the micro-batch size and the
    number of ranks.

    Args:
        policy: model and weight sets; *current* is trained.
        objective: what a micro-batch costs.
        optimizer: over the trainable parameters, already prepared by ``distributed``.
        distributed: the ranks.
        geometry: sizes of the epoch.
        max_grad_norm: gradient norm is clipped to this.
        seed: keys training times and noise.
        keep_rollout_weights: keep those that sampled for the updates after the first.
        allow_skipped_steps: tolerate steps the fp16 scaler skips on overflow.
        skip_zero_advantage: run no forward for samples whose advantage is zero. The loss stays a mean over all valid
            samples, so that only their KL terms are missing; metrics are means over the samples that were run, but
            for ``OVER_ALL``.
    """

    def __init__(
        self,
        *,
        policy: Policy,
        objective: Objective,
        optimizer: torch.optim.Optimizer,
        distributed: Distributed,
        geometry: Geometry,
        max_grad_norm: float,
        seed: int,
        keep_rollout_weights: bool,
        allow_skipped_steps: bool = False,
        skip_zero_advantage: bool = False,
    ) -> None:
        self.policy, self.objective, self.optimizer = policy, objective, optimizer
        self.distributed, self.geometry, self.seed = distributed, geometry, seed
        self.max_grad_norm, self.allow_skipped_steps = max_grad_norm, allow_skipped_steps
        self.keep_rollout_weights, self.skip_zero_advantage = keep_rollout_weights, skip_zero_advantage
        self.undo = Undo(policy, optimizer, distributed)

    def __call__(self, experience: Experience, epoch: int, progress: Progress) -> tuple[dict[str, float], int]:
        """Train on one epoch's samples, wholly or not at all.

        Returns:
            Mean metrics over all steps and ranks, and the number of optimizer steps taken.

        Raises:
            StopRequestedError: from ``progress``, on all ranks; weights and optimizer are as before the call.
            NonFiniteLossError: on all ranks, likewise.
        """
        takes_several = self.geometry.updates_per_epoch > 1
        if takes_several:
            self.undo.remember()
        try:
            return self._train(experience, epoch, progress)
        except (StopRequestedError, NonFiniteLossError):
            if takes_several:
                self.undo.go_back()
            self.optimizer.zero_grad(set_to_none=True)
            raise

    def _train(self, experience: Experience, epoch: int, progress: Progress) -> tuple[dict[str, float], int]:
        totals: dict[str, list[float]] = defaultdict(list)
        steps, number = 0, 0
        if self.keep_rollout_weights and self.geometry.updates_per_epoch > 1:
            self.policy.snapshot_rollout()
        for inner_epoch in range(self.geometry.num_passes):
            first = self.distributed.rank * len(experience)
            for chunk in update_chunks(
                self.seed,
                epoch,
                inner_epoch,
                first,
                len(experience),
                self.geometry.updates_per_pass,
                unit=self._unit,
            ):
                number += 1
                place = f"epoch {epoch + 1}, optimizer step {number} of {self.geometry.updates_per_epoch}"
                metrics = self._step(experience.take(chunk), epoch, inner_epoch, steps == 0, progress, place)
                steps += int(bool(metrics) and not metrics.get("skipped_steps"))
                for name, value in metrics.items():
                    totals[name].append(value)
        return {name: sum(values) / len(values) for name, values in totals.items()}, steps

    def _step(
        self, samples: Experience, epoch: int, inner_epoch: int, on_policy: bool, progress: Progress, place: str
    ) -> dict[str, float]:
        """Accumulate the gradient over micro-batches, clip, step; nothing if no sample has a valid reward."""
        count = self.distributed.sum(samples.valid.sum().float())
        if count == 0:
            return {}
        divisor = count.to(samples.x_0.device)  # once: each copy to a GPU makes the CPU wait for it
        sums: dict[str, Tensor] = {}
        key: dict[str, Any] = {"seed": self.seed, "epoch": epoch, "inner_epoch": inner_epoch, "on_policy": on_policy}
        batches = self._micro_batches(samples)
        if isinstance(self.objective, PreparesStep):
            terms = self.objective.prepare_step(self.policy, batches, **key, gather=self.distributed.gather)
            batches = [replace(batch, group_terms=term) for batch, term in zip(batches, terms, strict=True)]
        left = len(samples)
        for number, batch in enumerate(batches):
            last = number == len(batches) - 1
            with self.distributed.accumulating(self.transformer, last=last):
                output = self.objective(self.policy, batch, **key)
                self.distributed.backward(masked_sum(output.loss, batch.valid) / divisor)
            _accumulate(sums, output, batch.valid)
            done = left if last else len(batch)
            left -= done
            progress(done)
        grad_norm = self.distributed.clip_grad_norm(self.policy.trainable_parameters(), self.max_grad_norm)
        self._check_finite(sums["loss"], grad_norm, place)
        self.optimizer.step()
        self.policy.current_moved()
        self.optimizer.zero_grad(set_to_none=True)
        metrics = self._means(sums, samples, count) | {"grad_norm": float(grad_norm)}
        if self.allow_skipped_steps:
            metrics["skipped_steps"] = float(self.distributed.step_was_skipped())
        return metrics

    def _micro_batches(self, samples: Experience) -> list[Experience]:
        size = self.geometry.micro_batch_size
        if self.skip_zero_advantage:
            return micro_batches_with_advantage(samples, size, self.distributed.gather)
        return micro_batches(samples, size)

    def _means(self, sums: dict[str, Tensor], samples: Experience, count: Tensor) -> dict[str, float]:
        names = list(sums)
        totals = self.distributed.sum(torch.stack([sums[name] for name in names]))
        if not self.skip_zero_advantage:
            return dict(zip(names, (totals / count).tolist(), strict=True))
        run = self.distributed.sum(with_advantage(samples).sum().float())
        means = {name: total / (count if name in OVER_ALL else run) for name, total in zip(names, totals, strict=True)}
        known = {name: float(mean) for name, mean in means.items() if run > 0 or name in OVER_ALL}
        return known | {"skipped_fraction": float(1 - run / count)}

    @property
    def _unit(self) -> int:
        """Consecutive samples that an optimizer step gets together."""
        splits_groups = not self.objective.needs.whole_groups or self.geometry.updates_per_pass == 1
        return 1 if splits_groups else self.geometry.images_per_prompt

    @property
    def transformer(self) -> nn.Module:
        """The network as the forward uses it, wrapped for data parallelism if it is."""
        return self.policy.model.transformer

    def _check_finite(self, loss: Tensor, grad_norm: Tensor, place: str) -> None:
        """One host synchronisation per optimizer step; an fp16 gradient overflow is the scaler's business."""
        # The gradient is everybody's after the reduction: only the loss says whose micro-batch it was.
        losses, norms = self.distributed.gather(torch.tensor([[float(loss), float(grad_norm)]])).unbind(1)
        guilty = (~torch.isfinite(losses)).nonzero().flatten().tolist()
        if not guilty and (self.allow_skipped_steps or bool(torch.isfinite(norms).all())):
            return
        what = f"loss on rank {', '.join(map(str, guilty))}" if guilty else "gradient (every rank's loss is finite)"
        raise NonFiniteLossError(
            f"non-finite {what} in {place} (loss sums of the ranks: {_listed(losses)}; gradient norm "
            f"{float(norms[0]):.4g}). The epoch was abandoned. The same settings would meet this again: start a new "
            f"run_name from the newest checkpoint's weights (train.lora_path) with a lower train.learning_rate, a "
            f"higher train.beta or train.ema_beta, or mixed_precision=bf16."
        )


def masked_sum(values: Tensor, valid: Tensor) -> Tensor:
    """Sum of values [B] over valid [B]; a NaN in an invalid row does not spread."""
    return torch.where(valid, values, torch.zeros_like(values)).sum()


def _accumulate(sums: dict[str, Tensor], output: LossOutput, valid: Tensor) -> None:
    for name, values in {"loss": output.loss.detach(), **output.metrics}.items():
        part = masked_sum(values.float(), valid)
        sums[name] = sums[name] + part if name in sums else part


def _listed(losses: Tensor, most: int = 8) -> str:
    shown = ", ".join(f"{value:.4g}" for value in losses[:most].tolist())
    return shown + (", ..." if len(losses) > most else "")
