"""The reward's gradient reaches the latents through the model's decoder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from awm.models.sd3 import SD3
from awm.rewards.errors import RewardError
from awm.training.reward_gradient import RewardGradient
from tests.helpers import TinyFlow


def ramp(images: Tensor, text: Sequence[str]) -> Tensor:
    """Brightness, more of it to the right."""
    return (images.double() * torch.linspace(0, 1, images.shape[3], dtype=torch.float64)).mean((1, 2, 3))


def every(count: int) -> Tensor:
    return torch.ones(count, dtype=torch.bool)


def test_it_is_the_slope_of_the_reward_along_a_line_of_latents(checkpoint: Path) -> None:
    model = SD3.load(str(checkpoint), dtype=torch.float64, device=torch.device("cpu"))
    generator = torch.Generator().manual_seed(0)
    x_0, direction = torch.randn(2, 2, *model.latent_shape(32), generator=generator).unbind()
    gradient = RewardGradient(model, ramp, batch_size=1)(x_0, ["a", "b"], every(2))
    assert gradient.dtype == torch.float32 and not gradient.requires_grad
    step = 1e-3  # short: the clamp to [0, 1] makes the reward piecewise
    with torch.no_grad():
        high, low = (ramp(model.decode(x_0 + sign * step * direction), []) for sign in (1, -1))
    slope = (gradient.double() * direction).flatten(1).sum(1)
    torch.testing.assert_close(slope, (high - low) / (2 * step), rtol=1e-2, atol=1e-5)
    assert slope.abs().min() > 1e-5
    assert all(parameter.grad is None for parameter in model.transformer.parameters())


def test_images_go_through_a_few_at_a_time_with_their_own_prompts() -> None:
    seen: list[tuple[int, list[str]]] = []

    def score(images: Tensor, text: Sequence[str]) -> Tensor:
        seen.append((len(images), list(text)))
        return images.sum((1, 2, 3)) * torch.tensor([float(len(t)) for t in text])

    x_0, text = torch.randn(5, 4, 2, 2, generator=torch.Generator().manual_seed(1)), ["a", "bb", "ccc", "dddd", "e"]
    model = TinyFlow()
    few, all_at_once = (RewardGradient(model, score, size)(x_0, text, every(5)) for size in (2, 5))
    assert seen == [(2, ["a", "bb"]), (2, ["ccc", "dddd"]), (1, ["e"]), (5, text)]
    torch.testing.assert_close(few, all_at_once)
    s = x_0[:, :3].sigmoid()
    expected = s * (1 - s) * torch.tensor([1.0, 2.0, 3.0, 4.0, 1.0]).reshape(5, 1, 1, 1)
    torch.testing.assert_close(few[:, :3], expected)
    assert (few[:, 3] == 0).all()


def test_images_without_a_reward_are_not_asked_about() -> None:
    def score(images: Tensor, text: Sequence[str]) -> Tensor:
        assert "" not in text
        return images.sum((1, 2, 3))

    x_0 = torch.zeros(3, 4, 2, 2)
    gradient = RewardGradient(TinyFlow(), score, 2)(x_0, ["a", "", "b"], torch.tensor([True, False, True]))
    assert (gradient[1] == 0).all() and (gradient[[0, 2], :3] == 0.25).all()


def test_a_gradient_that_is_not_finite_is_an_error_that_names_the_prompt() -> None:
    def score(images: Tensor, text: Sequence[str]) -> Tensor:
        return (images.mean((1, 2, 3)) - 0.5).abs().sqrt()  # infinitely steep where an image is grey

    x_0 = torch.stack([torch.ones(4, 2, 2), torch.zeros(4, 2, 2)])
    with pytest.raises(RewardError, match="not finite for an image of the prompt 'grey'"):
        RewardGradient(TinyFlow(), score, 2)(x_0, ["bright", "grey"], every(2))


def test_a_decoder_in_half_precision_has_the_gradient_of_a_full_one(checkpoint: Path) -> None:
    def faint(images: Tensor, text: Sequence[str]) -> Tensor:
        return ramp(images, text).float() / 4096  # as one pixel of many: below the smallest number of float16

    x_0 = torch.randn(1, *SD3.load(str(checkpoint), device=torch.device("cpu")).latent_shape(32))
    full, half = (
        RewardGradient(SD3.load(str(checkpoint), dtype=dtype, device=torch.device("cpu")), faint, 1)(
            x_0, ["a"], every(1)
        )
        for dtype in (torch.float32, torch.float16)
    )
    assert torch.nn.functional.cosine_similarity(full.flatten(), half.flatten(), dim=0) > 0.99
    assert 0.95 < half.norm() / full.norm() < 1.05
