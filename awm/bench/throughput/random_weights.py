"""A checkpoint folder without weights, loaded with random ones that are drawn on the device in their own dtype."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline
from torch import Tensor, nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

from awm.bench.throughput.models import Loading
from awm.bench.throughput.patching import replaced
from awm.models.sd3 import SD3

SEED = 0


class RandomWeights(Loading):
    """In place of ``SD3.load``: the same weights for all models that are loaded, and where possible the same memory.

    Frozen weights are never written to, so that models of several trainers may share them: text encoders and
    autoencoder as they are, the transformer's tensors below modules of its own, which can be adapted and compiled.

    Args:
        folder: configs and tokenizers, as ``awm.bench.throughput.medium.write_checkpoint`` writes them.
        share: False if the transformer's weights are to be trained.
    """

    def __init__(self, folder: Path, *, share: bool) -> None:
        self.folder, self._share = folder, share
        self._parts: dict[tuple[str, torch.dtype, torch.device], nn.Module] = {}
        self._weights: dict[tuple[torch.dtype, torch.device], dict[str, Tensor]] = {}

    def installed(self) -> AbstractContextManager[None]:
        """Inside the block ``SD3.load`` draws them."""

        def load(
            cls: type[Any],
            /,
            model: str,
            *,
            revision: str | None = None,
            dtype: torch.dtype = torch.bfloat16,
            transformer_dtype: torch.dtype | None = None,
            device: torch.device | str = "cpu",
            **options: Any,
        ) -> SD3:
            pipeline = self.pipeline(dtype, transformer_dtype or dtype, torch.device(device))
            model_with_them: SD3 = cls(pipeline, dtype=dtype, device=device, **options)
            return model_with_them

        return replaced(SD3, "load", classmethod(load))

    def pipeline(self, dtype: torch.dtype, transformer_dtype: torch.dtype, device: torch.device) -> Any:
        """A pipeline with a transformer of its own."""
        clip, t5 = _maker(CLIPTextModelWithProjection, CLIPTextConfig), _maker(T5EncoderModel, T5Config)
        return StableDiffusion3Pipeline(
            transformer=self._transformer(dtype, transformer_dtype, device),
            scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
            vae=self._part("vae", AutoencoderKL.from_config, dtype, device),
            text_encoder=self._part("text_encoder", clip, dtype, device),
            tokenizer=CLIPTokenizer.from_pretrained(self.folder / "tokenizer"),
            text_encoder_2=self._part("text_encoder_2", clip, dtype, device),
            tokenizer_2=CLIPTokenizer.from_pretrained(self.folder / "tokenizer_2"),
            text_encoder_3=self._part("text_encoder_3", t5, dtype, device),
            tokenizer_3=T5Tokenizer.from_pretrained(self.folder / "tokenizer_3"),
        )

    def shared_bytes(self, model: Any = None) -> int:
        """What all models made so far share; with ``model``, what it uses of that, in whichever dtypes it has."""
        shared = _by_address(value for part in self._parts.values() for value in (*part.parameters(), *part.buffers()))
        shared |= _by_address(value for weights in self._weights.values() for value in weights.values())
        if model is not None:
            parts = [part for part in model._pipeline.components.values() if isinstance(part, nn.Module)]
            used = _by_address(value for part in parts for value in (*part.parameters(), *part.buffers()))
            shared = {address: value for address, value in shared.items() if address in used}
        return sum(value.numel() * value.element_size() for value in shared.values())

    def _part(self, name: str, make: Callable[[Any], Any], dtype: torch.dtype, device: torch.device) -> nn.Module:
        key = name, dtype, device
        if key not in self._parts:
            self._parts[key] = self._drawn(name, make, dtype, device)
        return self._parts[key]

    def _transformer(self, dtype: torch.dtype, transformer_dtype: torch.dtype, device: torch.device) -> nn.Module:
        kind = SD3Transformer2DModel
        if not self._share:
            return self._drawn("transformer", kind.from_config, dtype, device).to(transformer_dtype)
        if (dtype, device) not in self._weights:
            drawn = self._drawn("transformer", kind.from_config, dtype, device)
            self._weights[dtype, device] = drawn.state_dict()
        if (transformer_dtype, device) not in self._weights:
            narrow = self._weights[dtype, device]
            self._weights[transformer_dtype, device] = {name: v.to(transformer_dtype) for name, v in narrow.items()}
        with torch.device("meta"):
            own: nn.Module = kind.from_config(self._config("transformer"))
        own.load_state_dict(self._weights[transformer_dtype, device], assign=True)
        return own.requires_grad_(False)

    def _drawn(self, name: str, make: Callable[[Any], Any], dtype: torch.dtype, device: torch.device) -> nn.Module:
        """The libraries' own first weights, drawn where they stay."""
        devices = [device] if device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices), _default_dtype(dtype), device:
            torch.manual_seed(SEED)
            module: nn.Module = make(self._config(name))
        return module.to(dtype).requires_grad_(False).eval()

    def _config(self, name: str) -> Any:
        return json.loads((self.folder / name / "config.json").read_text())


def _by_address(tensors: Iterable[Tensor]) -> dict[int, Tensor]:
    return {tensor.data_ptr(): tensor for tensor in tensors}


def _maker(kind: Any, config: Any) -> Callable[[Any], Any]:
    return lambda values: kind(config(**values))


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
