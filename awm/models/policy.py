"""One model and its weight sets: current, anchor, reference, average, rollout.

A set is a list of tensors parallel to the trainable parameters, for LoRA and full fine-tuning alike. Switching
points each ``parameter.data`` at the set's tensor and back: nothing is copied, so nothing can be left behind. Where
parameters are sharded (FSDP2), the engine owns their memory, and switching copies this rank's parts in and out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from awm.interfaces import Model, WeightSet
from awm.models.equal_sets import EqualSets
from awm.models.export import save_transformer
from awm.models.lora import LoraType, Transformer, add_lora, load_lora, save_lora, set_adapters_enabled
from awm.models.rollout_copy import RolloutCopy
from awm.models.shards import forget_gathered, local, part_of, whole

# Of the others, the reference never changes, and the rollout's weights are taken anew in every epoch.
SAVED: tuple[WeightSet, ...] = ("current", "anchor", "average")


class Policy:
    """A model being trained.

    Attributes:
        model: its ``velocity`` always answers with the active weight set, *current* outside ``using``.
        rollout_copy: what ``sampling`` samples with; None if that is the trained transformer itself.
    """

    model: Model
    rollout_copy: RolloutCopy | None

    def __init__(
        self,
        model: Model,
        *,
        use_lora: bool = True,
        lora_type: LoraType = "attn",
        lora_rank: int = 32,
        lora_alpha: int = 64,
        lora_path: str = "",
        seed: int = 0,
        shard: Callable[[nn.Module], None] | None = None,
        merge_lora: bool = False,
        fp8: bool = False,
    ) -> None:
        """Make ``model.transformer`` trainable; wrap it (DistributedDataParallel) only afterwards.

        Args:
            model: frozen model; its transformer is a diffusers module.
            use_lora: train adapters; otherwise all weights of the transformer, in float32.
            lora_type: attn | ffn | all.
            lora_rank: rank of the adapters.
            lora_alpha: the adapters are scaled by lora_alpha / lora_rank.
            lora_path: folder with ``pytorch_lora_weights.safetensors`` to start from.
            seed: draws the adapters' first weights.
            shard: spreads the transformer's parameters over the ranks, in place, once it is known which are trained.
            merge_lora: sample with a copy that the adapters are merged into, see ``RolloutCopy``.
            fp8: and that computes in eight bits.

        Raises:
            ValueError: if the options contradict each other or the file at ``lora_path``.
        """
        self.model = model
        transformer: Transformer = model.transformer
        self._transformer = transformer  # stays the bare module when a wrapper takes its place in the model
        self._use_lora, self._kind = use_lora, type(transformer)
        if use_lora:
            add_lora(transformer, lora_type=lora_type, rank=lora_rank, alpha=lora_alpha, seed=seed)
            if lora_path:
                load_lora(transformer, Path(lora_path))
        elif lora_path:
            raise ValueError(f"lora_path={lora_path} needs use_lora=True; set use_lora or clear lora_path.")
        else:
            transformer.float().requires_grad_(True)
        if shard is not None:
            shard(transformer)
        named = {name: p for name, p in transformer.named_parameters() if p.requires_grad}
        self._names, self._parameters = list(named), list(named.values())
        self._sharded = any(isinstance(parameter, DTensor) for parameter in self._parameters)
        self._active: WeightSet = "current"
        self._current = _copy(self._live()) if self._sharded else self._live()
        self._sets: dict[str, list[Tensor]] = {name: _copy(self._current) for name in ("anchor", "average")}
        if not use_lora:
            self._sets["reference"] = _copy(self._current)
        self._equal = EqualSets(self._parameters)
        self._equal.copied("anchor")
        if merge_lora and (self._sharded or not use_lora):
            raise ValueError("merge_lora=True needs adapters to merge, in weights that are whole on every rank.")
        self.rollout_copy = RolloutCopy(transformer, fp8=fp8) if merge_lora else None
        model.transformer = transformer  # its parameters are others now, which the model may have to know

    def trainable_parameters(self) -> list[nn.Parameter]:
        """The parameters of *current*, the same objects for the life of the policy."""
        return list(self._parameters)

    @contextmanager
    def using(self, name: WeightSet) -> Iterator[None]:
        """Inside the block ``model.velocity`` uses these weights; after it, bit for bit the ones before.

        Blocks nest. A forward without gradient may stand between a gradient forward and its backward; the
        backward itself must run with the weights of its forward.

        Raises:
            ValueError: for "rollout" before ``snapshot_rollout``, and for an unknown name.
        """
        before = self._active
        self._activate(name)
        try:
            yield
        finally:
            self._activate(before)

    @contextmanager
    def sampling(self, name: WeightSet) -> Iterator[None]:
        """Inside the block ``model.velocity`` samples with these weights, as they are at its start.

        With the copy, if there is one, whose velocities carry no gradient; else as ``using``. Nothing in the block may
        ask for another set.
        """
        if self.rollout_copy is None:
            with self.using(name):
                yield
            return
        with self.using(name):
            self.rollout_copy.refresh()
        trained = self.model.transformer
        self.model.transformer = self.rollout_copy.transformer
        try:
            yield
        finally:
            self.model.transformer = trained

    def equals_current(self, name: WeightSet) -> bool:
        """Whether a set is known to hold, bit for bit, what *current* holds; False where it only might."""
        return name in self._equal

    def current_moved(self) -> None:
        """To be told when *current* was changed, by an optimizer's step or otherwise."""
        self._equal.moved()

    def update_anchor(self, decay: float) -> None:
        """Update: anchor <- decay * anchor + (1 - decay) * current."""
        torch._foreach_lerp_(self._sets["anchor"], self._tensors("current"), 1 - decay)
        if decay == 0:  # the interpolation is exact at its ends
            self._equal.copied("anchor")
        else:
            self._equal.changed("anchor")

    def update_average(self, decay: float) -> None:
        """Update: average <- decay * average + (1 - decay) * current."""
        torch._foreach_lerp_(self._sets["average"], self._tensors("current"), 1 - decay)

    def snapshot_rollout(self) -> None:
        """Store: rollout <- current."""
        current = self._tensors("current")
        if "rollout" in self._sets:
            torch._foreach_copy_(self._sets["rollout"], current)
        else:
            self._sets["rollout"] = _copy(current)
        self._equal.copied("rollout")

    def state_dict(self, *, keep: bool = True) -> dict[str, Any]:
        """The sets a run continues from, as {set: {parameter: whole tensor}} of copies on the CPU.

        A collective if the parameters are sharded.

        Args:
            keep: False for ranks that only take part in putting the parts together; they get nothing.
        """
        if not (keep or self._sharded):
            return {}
        state: dict[str, Any] = {}
        for name in SAVED:
            weights = {}
            for key, weight, parameter in zip(self._names, self._tensors(name), self._parameters, strict=True):
                full = whole(weight, parameter)
                if keep:
                    weights[key] = full.to("cpu", copy=True)
            state[name] = weights
        return state if keep else {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what ``state_dict`` gave, in place.

        Raises:
            ValueError: if sets, names or shapes differ; nothing is changed then.
        """
        if state.keys() != set(SAVED):
            found = ", ".join(state) or "nothing"
            raise ValueError(f"The state of a policy has current, anchor and average; this one has {found}.")
        for weights in state.values():
            self._check(weights)
        self._sets.pop("rollout", None)
        self.current_moved()
        for name, weights in state.items():
            parts = [
                part_of(weights[key], parameter) for key, parameter in zip(self._names, self._parameters, strict=True)
            ]
            torch._foreach_copy_(self._tensors(name), parts)
        forget_gathered(self._transformer)
        if all(torch.equal(weights, state["anchor"][key]) for key, weights in state["current"].items()):
            self._equal.copied("anchor")

    def export(self, folder: Path, weights: Mapping[str, Tensor]) -> None:
        """Write one set of ``state_dict()``: a LoRA for ``load_lora_weights``, or ``transformer/``."""
        if self._use_lora:
            save_lora(self._transformer, folder, weights)
        else:
            save_transformer(self._kind, self._transformer, folder / "transformer", weights)

    def _activate(self, name: WeightSet) -> None:
        if name == self._active:
            return
        is_base = self._use_lora and name == "reference"
        if self._active == "current":
            self._put_current_aside()
        if not is_base:
            self._show(self._current if name == "current" else self._tensors(name))
        if self._use_lora and "reference" in (name, self._active):
            set_adapters_enabled(self._transformer, not is_base)
        self._active = name

    def _put_current_aside(self) -> None:
        if self._sharded:
            torch._foreach_copy_(self._current, self._live())
        else:
            self._current = self._live()

    def _show(self, weights: list[Tensor]) -> None:
        """Let the network compute with these."""
        if self._sharded:
            torch._foreach_copy_(self._live(), weights)
            forget_gathered(self._transformer)
            if weights is self._current and weights[0].is_cuda:
                # A backward that comes next gathers on a stream of its own, which would not wait for this copy.
                torch.cuda.current_stream().synchronize()
            return
        for parameter, weight in zip(self._parameters, weights, strict=True):
            parameter.data = weight

    def _tensors(self, name: str) -> list[Tensor]:
        if name == "current":
            return self._live() if self._active == "current" else self._current
        if name not in self._sets:
            known = ", ".join(["current", *self._sets])
            raise ValueError(f"There is no weight set {name!r} now, only {known}; rollout needs snapshot_rollout().")
        return self._sets[name]

    def _live(self) -> list[Tensor]:
        return [local(parameter) for parameter in self._parameters]

    def _check(self, weights: Mapping[str, Tensor]) -> None:
        if weights.keys() != set(self._names):
            name = min(weights.keys() ^ set(self._names))
            raise ValueError(
                f"The state belongs to another policy: {name} is only in {'it' if name in weights else 'this one'}. "
                "Resume with the use_lora and lora_type the run was started with."
            )
        for name, parameter in zip(self._names, self._parameters, strict=True):
            if weights[name].shape != parameter.shape:
                raise ValueError(
                    f"The state belongs to another policy: {name} is {list(weights[name].shape)} there and "
                    f"{list(parameter.shape)} here. Resume with the model and lora_rank the run was started with."
                )


def _copy(tensors: list[Tensor]) -> list[Tensor]:
    return [tensor.clone() for tensor in tensors]
