"""What one prompt, one image and one training row cost: counted on the modules themselves, on the meta device.

Floating point operations are two per multiply-add, of matrix products, convolutions and attention.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from awm.models.weightless import META, Weightless


@dataclass(frozen=True, slots=True)
class Costs:
    """Operations and bytes of one unit of each kind of work.

    Attributes:
        encode: text encoders, per prompt.
        forward: transformer without gradient, per row.
        training: transformer with gradient, forward and backward, per row.
        decode: autoencoder, per image.
        saved_bytes: what the backward pass of one training row needs kept, an estimate.
    """

    encode: int
    forward: int
    training: int
    decode: int
    saved_bytes: int


def count_costs(parts: Weightless, *, resolution: int, gradient_checkpointing: bool) -> Costs:
    """Count ``parts``, each in the dtype it has.

    Args:
        parts: the checkpoint; its transformer has its adapters, or requires a gradient as a whole.
        resolution: pixels a side of its images.
        gradient_checkpointing: each block's forward runs once more in the backward pass.
    """
    inputs = parts.transformer_inputs(resolution)
    forward = _count(lambda: parts.transformer(**inputs))
    saved = 0

    def forward_and_backward() -> None:
        nonlocal saved
        with torch.enable_grad():
            with _SavedBytes(parts.transformer) as counter:
                velocity = parts.transformer(**inputs, return_dict=False)[0]
            saved = counter.total
            velocity.float().sum().backward()

    training = _count(forward_and_backward)
    if gradient_checkpointing:
        training += forward
        saved = _checkpointed(parts.transformer, saved, inputs)
    latent = torch.empty(1, *parts.latent_shape(resolution), dtype=parts.autoencoder.dtype, device=META)
    return Costs(
        encode=sum(_count(_encoding(encoder, parts)) for encoder in parts.text_encoders),
        forward=forward,
        training=training,
        decode=_count(lambda: parts.autoencoder.decode(latent)),
        saved_bytes=saved,
    )


def module_bytes(module: nn.Module) -> int:
    """Bytes of parameters and buffers."""
    return sum(value.numel() * value.element_size() for value in (*module.parameters(), *module.buffers()))


def _count(work: Callable[[], Any]) -> int:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        work()
    return int(counter.get_total_flops())


def _encoding(encoder: nn.Module, parts: Weightless) -> Callable[[], Any]:
    is_clip = type(encoder).__name__.startswith("CLIP")
    tokens = torch.zeros(1, parts.clip_tokens if is_clip else parts.t5_tokens, dtype=torch.int64, device=META)
    return lambda: encoder(tokens, output_hidden_states=is_clip)


class _SavedBytes(TorchFunctionMode):
    """Adds up what autograd keeps inside the block, each piece of memory once, and no weights.

    On the meta device attention falls apart into products that keep their whole matrix; a real device's fused
    kernels keep queries, keys, values and output.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self._weights = {_storage(p) for p in module.parameters()}
        self._seen: dict[int, Tensor] = {}
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._note, lambda tensor: tensor)

    @property
    def total(self) -> int:
        return sum(tensor.untyped_storage().nbytes() for tensor in self._seen.values())

    def __enter__(self) -> _SavedBytes:
        self._hooks.__enter__()
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        self._hooks.__exit__(*error)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        with torch.autograd.graph.saved_tensors_hooks(lambda tensor: tensor, lambda tensor: tensor):
            output = func(*args, **(kwargs or {}))
        for tensor in (*args[:3], output):
            self._note(tensor)
        return output

    def _note(self, tensor: Tensor) -> Tensor:
        if _storage(tensor) not in self._weights:
            self._seen[_storage(tensor)] = tensor  # kept alive, so that no other memory gets its address
        return tensor


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _checkpointed(transformer: Any, saved: int, inputs: dict[str, Tensor]) -> int:
    """One block's share at a time, and both streams at the door of each block."""
    blocks, config = len(transformer.transformer_blocks), transformer.config
    image = inputs["hidden_states"]
    tokens = image.shape[-2] * image.shape[-1] // config.patch_size**2 + inputs["encoder_hidden_states"].shape[1]
    width = config.num_attention_heads * config.attention_head_dim
    return int(saved // blocks + blocks * tokens * width * image.element_size())
