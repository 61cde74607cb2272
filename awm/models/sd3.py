"""Stable Diffusion 3 and 3.5 as a velocity field: text, velocity, images.

Any folder or hub id in the layout of ``diffusers.StableDiffusion3Pipeline`` fits, the packaged ``"tiny"`` one
included. See https://arxiv.org/abs/2403.03206.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from diffusers import StableDiffusion3Pipeline
from torch import Tensor, nn

from awm.models.checkpoint_folder import T5_PARTS, resolve_sd3
from awm.models.compiled import BlockCompiler
from awm.models.fused_gelu import use_fused_gelu
from awm.models.latents import latent_shape
from awm.models.rms_norm import use_rms_norm_in_pieces
from awm.models.short_attention import use_short_attention
from awm.models.weights import Weights, load_any_lora, load_transformer
from awm.types import Condition

TEXT_ENCODERS = ("text_encoder", "text_encoder_2", "text_encoder_3")
DEFAULT_T5_TOKENS = 128
ENCODE_CHUNK = 16  # prompts; T5-XXL activations of more do not fit beside the transformer on a 24 GB device
DECODE_CHUNK = 2**21  # pixels, 8 images of 512 x 512
DECODE_IMAGES = 32  # diffusers leaves channels-last for 64 and more images, which takes a fifth longer


def images_at_once(pixels: int) -> int:
    """How many images of so many pixels are decoded together."""
    return min(DECODE_IMAGES, max(1, DECODE_CHUNK // pixels))


class SD3:
    """An SD3 checkpoint behind the ``Model`` interface; every part is frozen until a policy says otherwise.

    Attributes:
        transformer: the velocity network. May be replaced by a wrapper of itself (DistributedDataParallel) or a copy.
            Set it, if only to itself, when the dtype of a parameter has changed.
        device: where the transformer and the autoencoder live.
        dtype: what the forward passes compute in. Float32 inputs and outputs either way.
    """

    def __init__(
        self,
        pipeline: Any,
        *,
        dtype: torch.dtype,
        device: torch.device | str,
        max_sequence_length: int | None = None,
        gradient_checkpointing: bool = False,
    ) -> None:
        """Take over the parts of a ``StableDiffusion3Pipeline``; ``SD3.load`` makes one and has the same options."""
        self.device = torch.device(device)
        self.dtype = dtype
        self._pipeline = pipeline.to(self.device)
        for part in pipeline.components.values():
            if isinstance(part, nn.Module):
                part.requires_grad_(False).eval()
        pipeline.vae.to(memory_format=torch.channels_last)
        if gradient_checkpointing:
            pipeline.transformer.enable_gradient_checkpointing()
        if self.device.type == "cpu" and dtype != torch.float32:
            use_short_attention(pipeline.transformer)
            use_rms_norm_in_pieces(pipeline.transformer)
            use_fused_gelu(pipeline.transformer)
        self.transformer = pipeline.transformer
        self._compiler = BlockCompiler()
        self._max_sequence_length = max_sequence_length or _t5_tokens(pipeline)
        self._negative = self.encode([""])

    @classmethod
    def load(
        cls,
        model: str,
        *,
        revision: str | None = None,
        dtype: torch.dtype = torch.bfloat16,
        transformer_dtype: torch.dtype | None = None,
        device: torch.device | str = "cpu",
        max_sequence_length: int | None = None,
        gradient_checkpointing: bool = False,
    ) -> SD3:
        """Load a checkpoint.

        Args:
            model: hub id, local folder, or ``"tiny"`` for the one shipped with this package.
            revision: branch, tag or commit on the hub; None or "" for its main branch.
            dtype: compute dtype, and storage dtype of everything frozen.
            transformer_dtype: storage dtype of the transformer if it differs; float32 keeps every bit of the
                checkpoint for full fine-tuning.
            device: where to put it.
            max_sequence_length: T5 tokens of a prompt; None for 128, or what the tokenizer takes if that is less.
            gradient_checkpointing: recompute each block in the backward pass instead of storing it.

        Raises:
            ValueError: if ``model`` is not found or not an SD3 checkpoint, before any weight is read.
        """
        location, has_t5 = resolve_sd3(model, revision=revision or None)
        dtypes = {"default": dtype, "transformer": transformer_dtype or dtype}
        # Diffusers reloads a pipeline saved without T5 only if told again that there is none.
        absent = {} if has_t5 else dict.fromkeys(T5_PARTS)
        load: Any = StableDiffusion3Pipeline.from_pretrained
        pipeline = load(location, revision=revision or None, dtype=dtypes, **absent)
        return cls(
            pipeline,
            dtype=dtype,
            device=device,
            max_sequence_length=max_sequence_length,
            gradient_checkpointing=gradient_checkpointing,
        )

    @property
    def transformer(self) -> nn.Module:
        """The velocity network."""
        return self._network

    @transformer.setter
    def transformer(self, network: nn.Module) -> None:
        self._network = network
        # Asked here and not in every forward: to look at all parameters takes a fifth of a forward's time.
        self._is_mixed = self.dtype != torch.float32 and any(p.dtype == torch.float32 for p in network.parameters())

    @torch.no_grad()
    def encode(self, text: Sequence[str]) -> Condition:
        """Condition of each string: CLIP tokens, then T5 tokens, and the two pooled CLIP embeddings.

        Raises:
            RuntimeError: after ``release_text_encoders``.
        """
        if self._pipeline.text_encoder is None:
            raise RuntimeError(
                "The text encoders were released, so nothing can be encoded; encode every prompt before "
                "release_text_encoders(), or use offload_text_encoders('cpu') to keep them."
            )
        parts = []
        for start in range(0, len(text), ENCODE_CHUNK):
            embeds, _, pooled, _ = self._pipeline.encode_prompt(
                list(text[start : start + ENCODE_CHUNK]),
                None,
                None,
                device=self._pipeline.text_encoder.device,
                do_classifier_free_guidance=False,
                max_sequence_length=self._max_sequence_length,
            )
            parts.append(Condition(embeds, pooled).to(self.device, self.dtype))
        return Condition.cat(parts)

    def velocity(self, x_t: Tensor, t: Tensor, condition: Condition, guidance_scale: float = 1.0) -> Tensor:
        """Velocity v = eps - x_0 at x_t; with guidance v(neg) + scale * (v(pos) - v(neg)), neg the empty prompt.

        Args:
            x_t: [B, C, h, w] noisy latents.
            t: [B] times in [0, 1], 1 = noise.
            condition: B rows, row i belongs to x_t[i].
            guidance_scale: 1 is one forward of B; anything else one forward of 2 B.

        Returns:
            [B, C, h, w] float32.
        """
        if guidance_scale == 1.0:
            return self._forward(x_t, t, condition)
        both = Condition.cat([self._negative.repeat(len(condition)), condition])
        negative, positive = self._forward(x_t.repeat(2, 1, 1, 1), t.repeat(2), both).chunk(2)
        return negative + guidance_scale * (positive - negative)

    def decode(self, x_0: Tensor) -> Tensor:
        """Images [B, 3, H, W] float32 in [0, 1] of latents [B, C, h, w], some at a time to bound memory."""
        config = self._pipeline.vae.config
        latents = (x_0.float() / config.scaling_factor + (config.shift_factor or 0.0)).to(self.dtype)
        pixels = latents.shape[-2] * latents.shape[-1] * self._pipeline.vae_scale_factor**2
        images = []
        for chunk in latents.split(images_at_once(pixels)):
            chunk = chunk.contiguous(memory_format=torch.channels_last)
            image = self._pipeline.vae.decode(chunk, return_dict=False)[0].float()
            images.append((image * 0.5 + 0.5).clamp(0, 1).contiguous())
        return torch.cat(images)

    @property
    def default_resolution(self) -> int:
        """Pixels a side the checkpoint was made for."""
        pipeline = self._pipeline
        return int(pipeline.transformer.config.sample_size * pipeline.vae_scale_factor)

    def apply(self, weights: Weights) -> None:
        """Draw with a LoRA, or another transformer, from now on, as plain diffusers would.

        Raises:
            ValueError: if they do not fit this checkpoint; ``check_fit`` says so before anything is loaded.
        """
        if weights.kind == "lora":
            load_any_lora(self._pipeline, weights)
        else:
            load_transformer(self._pipeline.transformer, weights)
        self.transformer = self._pipeline.transformer
        if self._pipeline.text_encoder is not None:  # a LoRA may change the text encoders, too
            self._negative = self.encode([""])

    def compile_blocks(self, transformer: nn.Module | None = None, *, backend: str | Callable[..., Any] = "") -> None:
        """Compile each block by itself: a small graph, reused for every block like it; see ``BlockCompiler``.

        Args:
            transformer: a copy that will take the transformer's place; None for the transformer itself.
            backend: torch.compile's, if not its default.
        """
        if backend:
            self._compiler = BlockCompiler(backend)
        self._compiler.add(self._pipeline.transformer if transformer is None else transformer)

    def latent_shape(self, resolution: int) -> tuple[int, int, int]:
        """(C, h, w) of the latent of a square image of ``resolution`` pixels a side.

        Raises:
            ValueError: if the checkpoint cannot draw that size.
        """
        config = self._pipeline.transformer.config
        return latent_shape(
            resolution,
            channels=config.in_channels,
            patch=config.patch_size,
            positions=config.pos_embed_max_size,
            scale=self._pipeline.vae_scale_factor,
        )

    def offload_text_encoders(self, device: torch.device | str) -> None:
        """Move the text encoders; ``encode`` computes there and still answers on ``self.device``."""
        for name in TEXT_ENCODERS:
            encoder = getattr(self._pipeline, name)
            if encoder is not None:
                encoder.to(device)

    def release_text_encoders(self) -> None:
        """Free the text encoders for good; conditions made so far, and guidance, keep working."""
        for name in TEXT_ENCODERS:
            setattr(self._pipeline, name, None)

    def _forward(self, x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        inputs = {
            "hidden_states": x_t.to(self.dtype),
            "timestep": 1000 * t,
            "encoder_hidden_states": condition.embeds.to(self.dtype),
            "pooled_projections": condition.pooled.to(self.dtype),
        }

        def forward() -> Tensor:
            velocity: Tensor = self.transformer(**inputs, return_dict=False)[0]
            return velocity

        # Float32 weights (LoRA's, or all in full fine-tuning) are cast to the compute dtype; others are in it already.
        with torch.autocast(self.device.type, self.dtype, enabled=self._is_mixed):
            # A caller's own autocast keeps casts of the LoRA weights until it exits; those would survive a
            # change of weight set, or hand a cast made under no_grad to a forward that needs its gradient.
            torch.clear_autocast_cache()
            return self._compiler(forward).float()


def _t5_tokens(pipeline: Any) -> int:
    if pipeline.tokenizer_3 is None:
        return DEFAULT_T5_TOKENS
    return min(DEFAULT_T5_TOKENS, int(pipeline.tokenizer_3.model_max_length))
