"""The ways to run the same epochs that are compared: without one saving of the trainer each, and with its options."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from awm.bench.throughput.switches import (
    Float32Autoencoder,
    Float32Base,
    ForwardPerTime,
    FreedMemory,
    LibraryAdapters,
    LibraryAttention,
    LibraryGelu,
    LibraryNorm,
    MakeSwitch,
    OldForward,
    RewardsAtTheEnd,
    TextPerImage,
)
from awm.configuration import config_to_dict, default_config, flatten
from awm.models.fused_gelu import is_available as has_fused_gelu
from awm.registry import nearest

DEFAULT, COMMON = "default", "as_commonly_written"
MERGED, APART = "--config.sample.merge_lora=True", "--config.sample.merge_lora=False"
SKIPPING = "--config.train.skip_zero_advantage=True"
FEW_KL = "--config.train.kl_timesteps=2"
COMPILED = "--config.train.compile=True"
Refusal = Callable[[Any, str], str]
"""(configuration, kind of device) -> why a variant would measure nothing there, or "" if it can be measured."""


@dataclass(frozen=True, slots=True)
class Variant:
    """One way to run an epoch.

    Attributes:
        meaning: what it does where the default does otherwise.
        switches: savings that it goes without.
        words: options of the configuration that it sets.
        refusal: where it cannot be measured.
        exact: whether it computes the same numbers as the default, but for rounding.
    """

    meaning: str
    switches: tuple[MakeSwitch, ...] = ()
    words: tuple[str, ...] = ()
    refusal: Refusal = lambda config, device: ""
    exact: bool = True


def _full_precision(config: Any, device: str) -> str:
    if config.mixed_precision == "no":
        return "mixed_precision=no keeps and computes everything in float32 already"
    return "" if config.use_lora else "full fine-tuning keeps its weights in float32 already"


def _not_awm(config: Any, device: str) -> str:
    known = config.train.algorithm == "awm"
    return "" if known else f"it is written for train.algorithm=awm, not {config.train.algorithm}"


def _no_kernels_of_its_own(config: Any, device: str) -> str:
    if device != "cpu":
        return "only on a CPU are these awm's own; a GPU takes the library's by default"
    return "" if config.mixed_precision != "no" else "in float32 the default is the library's"


def _no_layers_of_its_own(config: Any, device: str) -> str:
    if why := _no_kernels_of_its_own(config, device):
        return why
    if not config.use_lora:
        return "full fine-tuning, which keeps its weights in float32, takes the library's"
    return "compiled blocks take the library's" if config.train.compile else ""


def _no_fused_gelu(config: Any, device: str) -> str:
    if why := _no_layers_of_its_own(config, device):
        return why
    if config.mixed_precision != "bf16" or not has_fused_gelu():
        return "only in bfloat16, and on processors that multiply it, has the default a GELU of awm's own"
    if config.lora_type == "attn" or config.sample.merge_lora:
        return ""
    return f"with lora_type={config.lora_type} only merged rollouts have a GELU of awm's own"


def _not_on_a_cpu(config: Any, device: str) -> str:
    return "" if device == "cpu" else "tensors on a GPU have torch's own allocator"


def _no_cuda(config: Any, device: str) -> str:
    return "" if device == "cuda" else "it needs a CUDA device"


WITHOUT: dict[str, Variant] = {
    "text_per_image": Variant("the text of every image is encoded, not once of every prompt", (TextPerImage,)),
    "float32_base": Variant(
        "frozen weights in float32 under autocast, not in the compute dtype",
        (Float32Base,),
        refusal=_full_precision,
        exact=False,
    ),
    "forward_per_time": Variant("a forward for each training time, not one for all", (ForwardPerTime,)),
    "old_forward": Variant(
        "one more forward in every micro-batch, for the likelihood under the old policy",
        (OldForward,),
        refusal=_not_awm,
    ),
    "float32_vae": Variant(
        "images decoded in float32, channels first, not in the compute dtype, channels last", (Float32Autoencoder,)
    ),
    "library_attention": Variant(
        "torch's fused attention kernel in half precision on a CPU, not attention written out",
        (LibraryAttention,),
        refusal=_no_kernels_of_its_own,
        exact=False,
    ),
    "library_norm": Variant(
        "diffusers' RMSNorm of queries and keys in half precision on a CPU, not in pieces of a cache's size",
        (LibraryNorm,),
        refusal=_no_layers_of_its_own,
        exact=False,
    ),
    "library_gelu": Variant(
        "a linear layer and then torch's GELU in bfloat16 on a CPU, not one product",
        (LibraryGelu,),
        refusal=_no_fused_gelu,
        exact=False,
    ),
    "library_adapters": Variant(
        "PEFT's layers with an adapter in half precision on a CPU, not two products that add up by themselves",
        (LibraryAdapters,),
        refusal=_no_layers_of_its_own,
        exact=False,
    ),
    "memory_returned": Variant(
        "freed tensors' memory goes back to the kernel, on a CPU", (FreedMemory,), refusal=_not_on_a_cpu
    ),
    "unmerged_lora": Variant("rollouts with the adapters apart from the weights", words=(APART,), exact=False),
    "rewards_at_end": Variant("no image is scored before the last one is sampled", (RewardsAtTheEnd,)),
}
"""Each goes without one saving of the default."""

WITH: dict[str, Variant] = {
    "merge_lora": Variant(
        "rollouts with the adapters merged into a copy of the weights",
        words=(MERGED,),
        exact=False,
    ),
    "skip_zero_advantage": Variant(
        "no training on prompts whose images all score the same", words=(SKIPPING,), exact=False
    ),
    "kl_timesteps": Variant("KL terms at two of the training times", words=(FEW_KL,), exact=False),
    "options": Variant(
        "merge_lora, skip_zero_advantage and kl_timesteps", words=(MERGED, SKIPPING, FEW_KL), exact=False
    ),
    "compile": Variant("transformer blocks compiled", words=(COMPILED,), exact=False),
    "merge_lora_compile": Variant("adapters merged and blocks compiled", words=(MERGED, COMPILED), exact=False),
    "fp8": Variant(
        "rollouts with linear layers in 8 bits, adapters merged, blocks compiled",
        words=("--config.sample.fp8=True", MERGED, COMPILED),
        refusal=_no_cuda,
        exact=False,
    ),
}
"""Each takes options that are off by default."""

TABLE: dict[str, Variant] = {
    DEFAULT: Variant("the configuration as it is"),
    **WITHOUT,
    COMMON: Variant("without any of these savings, as far as they are there", exact=False),
    **WITH,
}


def check_names(names: Sequence[str]) -> tuple[str, ...]:
    """The names once each, ``default`` first, for it is what all are compared with; without names, all.

    Raises:
        ValueError: a name is unknown.
    """
    for name in names:
        if name not in TABLE:
            raise ValueError(f"unknown variant {name!r}; known: {', '.join(TABLE)}.{nearest(name, list(TABLE))}")
    return tuple(dict.fromkeys([DEFAULT, *(names or TABLE)]))


def resolve(name: str, config: Any, device: str) -> Variant:
    """The variant as it is for this configuration and kind of device."""
    if name != COMMON:
        return TABLE[name]
    there = [each for each in WITHOUT.values() if not refusal(each, config, device)]
    return Variant(
        TABLE[COMMON].meaning,
        tuple(make for each in there for make in each.switches),
        tuple(word for each in there for word in each.words),
        exact=False,
    )


def refusal(variant: Variant, config: Any, device: str, *, by_name: bool = True) -> str:
    """Why ``variant`` is not measured, or "".

    Args:
        variant: the one in question.
        config: what the others run.
        device: its kind.
        by_name: False if nobody asked for this one in particular.
    """
    if why := variant.refusal(config, device):
        return why
    if COMPILED in variant.words and device == "cpu" and not by_name:
        return "compiling takes minutes on a CPU; name it in --variants"
    known, given = flatten(default_config().to_dict()), flatten(config_to_dict(config))
    settings = [word.removeprefix("--config.").partition("=")[::2] for word in variant.words]
    for key, _ in settings:
        if key not in known:
            return f"this version's configuration has no {key}"
    if settings and all(str(given[key]) == value for key, value in settings):
        return f"the default has {' and '.join(f'{key}={value}' for key, value in settings)} already"
    return ""
