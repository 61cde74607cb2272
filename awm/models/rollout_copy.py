"""A second transformer for sampling: the adapters merged into the weights they adapt, W + (alpha / rank) B A.

Sampling needs no gradient and no adapter of its own, so it can do without the two small products that each adapter
adds to a layer, and without autocast, which casts the float32 adapters anew in every forward. What it samples with is
rounded once to the model's precision, where changes of W below its last bit are lost; forwards whose small differences
are the signal (current, anchor, reference) stay with the adapters.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from awm.models.float8 import Float8Linear
from awm.models.lora import TARGETS


class RolloutCopy:
    """A transformer without adapters that computes what another computes with them.

    It shares the memory of everything that no adapter changes. In eight bits, it has weights of its own for all
    projections and feed-forwards of the blocks.

    Attributes:
        transformer: the network; its weights are those of the last ``refresh``.
    """

    transformer: nn.Module

    def __init__(self, transformer: Any, *, fp8: bool = False) -> None:
        """Copy ``transformer``, a diffusers ``SD3Transformer2DModel`` with adapters, as it is now.

        Args:
            transformer: the network that is trained; not wrapped, and with whole parameters.
            fp8: compute the linear layers of the blocks in eight-bit floats, see :mod:`awm.models.float8`.
        """
        self._adapted = {name: part for name, part in transformer.named_modules() if isinstance(part, LoraLayer)}
        # What is in the memo is taken as it is, and so shared.
        shared = {id(tensor): tensor for tensor in (*transformer.parameters(), *transformer.buffers())}
        network = copy.deepcopy(transformer, shared)
        for name, layer in self._adapted.items():
            network.set_submodule(name, _own_weight(layer.get_base_layer()))
        del network.peft_config
        network._hf_peft_config_loaded = False  # what diffusers asks
        if fp8:
            for name, linear in _block_linears(network):
                network.set_submodule(name, Float8Linear(linear))
        self.transformer = network
        self.refresh()

    @torch.no_grad()
    def refresh(self) -> None:
        """Merge the adapters as they are now; those that are switched off change nothing."""
        for name, layer in self._adapted.items():
            mine, weight = self.transformer.get_submodule(name), merged_weight(layer)
            if isinstance(mine, Float8Linear):
                mine.set_weight(weight)
            else:
                mine.get_parameter("weight").copy_(weight)

    def own_bytes(self) -> int:
        """Bytes that are not shared with the transformer it is a copy of."""
        own: list[Tensor] = [self.transformer.get_submodule(name).get_parameter("weight") for name in self._plain()]
        own += [t for part in self.transformer.modules() if isinstance(part, Float8Linear) for t in part.buffers()]
        return sum(tensor.numel() * tensor.element_size() for tensor in own)

    def _plain(self) -> list[str]:
        return [name for name in self._adapted if isinstance(self.transformer.get_submodule(name), nn.Linear)]


def merged_weight(layer: Any) -> Tensor:
    """[outputs, inputs] float32 W + (alpha / rank) B A of a layer with an adapter; W if that is switched off."""
    weight: Tensor = layer.get_base_layer().weight.float()
    if layer.disable_adapters:
        return weight
    with _exact_products(weight.device.type):
        for name in layer.active_adapters:
            down, up = layer.lora_A[name].weight.float(), layer.lora_B[name].weight.float()
            weight = torch.addmm(weight, up, down, alpha=layer.scaling[name])
    return weight


@contextmanager
def _exact_products(kind: str) -> Iterator[None]:
    """Float32 products: a caller's autocast would round them to half precision, and TF32 a GPU's to 10 bits."""
    matmul = torch.backends.cuda.matmul
    before = matmul.allow_tf32
    matmul.allow_tf32 = False
    try:
        with torch.autocast(kind, enabled=False) if torch.amp.is_autocast_available(kind) else nullcontext():
            yield
    finally:
        matmul.allow_tf32 = before


def _own_weight(linear: nn.Linear) -> nn.Linear:
    """The same layer with room for another weight."""
    own = nn.Linear(linear.in_features, linear.out_features, bias=False, device="meta")
    own.weight = nn.Parameter(torch.empty_like(linear.weight), requires_grad=False)
    own.bias = linear.bias
    return own


def _block_linears(network: Any) -> list[tuple[str, nn.Linear]]:
    """What a block applies to every token; the modulation, of one row an image, gains nothing by fewer bits."""
    ends = tuple(f".{target}" for target in TARGETS["all"])
    return [
        (name, part)
        for name, part in network.named_modules()
        if isinstance(part, nn.Linear)
        and name.startswith("transformer_blocks.")
        and name.endswith(ends)
        and Float8Linear.fits(part)
    ]
