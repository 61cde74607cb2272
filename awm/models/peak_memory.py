"""Most bytes in tensors at any moment of a network's work, counted without doing it.

On the meta device tensors have sizes and lives but no contents: what is alive at once is what an allocator would have
to hold, down to the block that a checkpointed backward pass recomputes. Kernels' workspaces are not counted.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm, linear, scaled_dot_product_attention
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.checkpoint import checkpoint

from awm.models.sd3 import images_at_once
from awm.models.weightless import META, Weightless


@dataclass(frozen=True, slots=True)
class Line:
    """Bytes that are affine in a number of rows."""

    fixed: float
    per_row: float

    def __call__(self, rows: float) -> float:
        """Bytes of so many rows."""
        return self.fixed + self.per_row * rows


@dataclass(frozen=True, slots=True)
class Peaks:
    """What a checkpoint's work needs beside its weights.

    Attributes:
        training: forward and backward of the transformer, by rows.
        sampling: its forward without gradient, by rows.
        decoding: of the autoencoder, by images.
        decoded_at_once: images that the model decodes together, of a larger batch.
    """

    training: Line
    sampling: Line
    decoding: Line
    decoded_at_once: int


def count_peaks(parts: Weightless, *, resolution: int, gradient_checkpointing: bool) -> Peaks:
    """Count ``parts``, whose transformer has its adapters, or requires a gradient as a whole.

    Args:
        parts: the checkpoint.
        resolution: pixels a side of its images.
        gradient_checkpointing: keep each block's input only, and run it once more in the backward pass.
    """
    transformer = parts.transformer
    if gradient_checkpointing:
        transformer.enable_gradient_checkpointing(_checkpointed)
    inputs = parts.transformer_inputs(resolution)

    def forward(rows: int, *, backward: bool) -> Callable[[], None]:
        batch = {name: value.repeat(rows, *[1] * (value.ndim - 1)) for name, value in inputs.items()}

        def work() -> None:
            with torch.set_grad_enabled(backward):
                velocity = transformer(**batch, return_dict=False)[0]
                if backward:
                    velocity.float().square().sum().backward()
            for parameter in transformer.parameters():
                parameter.grad = None

        return work

    def decode(images: int) -> Callable[[], None]:
        latents = torch.empty(images, *parts.latent_shape(resolution), dtype=parts.autoencoder.dtype, device=META)

        @torch.no_grad()
        def work() -> None:
            parts.autoencoder.decode(latents, return_dict=False)[0].float()

        return work

    return Peaks(
        training=_line(lambda rows: forward(rows, backward=True), transformer),
        sampling=_line(lambda rows: forward(rows, backward=False), transformer),
        decoding=_line(decode, parts.autoencoder),
        decoded_at_once=images_at_once(resolution**2),
    )


def _line(work: Callable[[int], Callable[[], None]], module: nn.Module) -> Line:
    one, two = (peak_bytes(work(rows), module.parameters()) for rows in (1, 2))
    return Line(2 * one - two, two - one)


def peak_bytes(work: Callable[[], Any], held: Iterable[Tensor] = ()) -> int:
    """Most bytes alive at once in tensors that ``work`` makes; ``held`` were there before and do not count."""
    with _Alive(held) as alive, _AsOnGpu():
        work()
    return int(alive.peak)


class _Alive(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self, held: Iterable[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        # Kept, so that no other memory gets their addresses.
        self._known = {tensor.untyped_storage()._cdata: tensor.untyped_storage() for tensor in held}
        self._watched: dict[int, weakref.ref[Any]] = {}
        self.now = self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        # A view of something older is no new memory, also if it was made before this began.
        for tensor in tree_leaves((args, kwargs)):
            if isinstance(tensor, Tensor) and (storage := tensor.untyped_storage())._cdata not in self._watched:
                self._known[storage._cdata] = storage
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._watch(tensor.untyped_storage())
        return result

    def _watch(self, storage: torch.UntypedStorage) -> None:
        address, size = storage._cdata, storage.nbytes()
        if address in self._watched or address in self._known:
            return

        def gone(_: Any) -> None:
            del self._watched[address]
            self.now -= size

        self._watched[address] = weakref.ref(storage, gone)
        self.now += size
        self.peak = max(self.peak, self.now)


def _checkpointed(block: nn.Module, *args: Any) -> Any:
    """As diffusers does it; a backward pass, in which modes step aside, recomputes as on a GPU, too."""
    contexts = lambda: (nullcontext(), _AsOnGpu())  # noqa: E731
    return checkpoint(block.__call__, *args, use_reentrant=False, context_fn=contexts)


class _AsOnGpu(TorchFunctionMode):
    """What a GPU does otherwise than the meta device: fused attention, and autocast's choice of precision.

    Its kernels never hold the matrix of all pairs of tokens. In half precision autocast normalises in float32, and what
    comes of it is cast for each of the linear layers that take it.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is scaled_dot_product_attention:
            return _Attention.apply(*args[:3])  # type: ignore[no-untyped-call]
        if func is layer_norm:
            args, kwargs = tree_map_only(Tensor, Tensor.float, (args, kwargs))
        elif func is linear and args[0].dtype != args[1].dtype:
            args = (args[0].to(args[1].dtype), *args[1:])
        return func(*args, **kwargs)


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        output = torch.empty_like(query)
        log_sum = query.new_empty(query.shape[:-1], dtype=torch.float32)
        ctx.save_for_backward(query, key, value, output, log_sum)
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        query, key, value, *_ = ctx.saved_tensors
        return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)
