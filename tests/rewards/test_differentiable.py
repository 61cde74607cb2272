"""Rewards with a gradient: right derivatives, the server's scores up to rounding, an ordinary reward when called."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from awm.images import quantise
from awm.interfaces import Reward
from awm.rewards.differentiable import (
    DifferentiableClipScore,
    DifferentiablePickScore,
    DifferentiableReward,
    differentiable_reward,
    prepare,
)
from awm.rewards.in_process import ScorerReward
from awm.rewards.mixture import MixtureReward
from reward_server.scorers.clip import Clip
from reward_server.scorers.clip_pixels import STD, preprocess
from reward_server.scorers.clipscore import ClipScore
from reward_server.scorers.pickscore import PickScore
from tests.tiny_clip import IMAGE_SIZE, save_tiny_clip

TEXT = ["a cat", "two dogs", "a cat"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def pickscore(folder: Path) -> DifferentiableReward:
    return DifferentiablePickScore(str(folder), processor=None, device="cpu")


def pictures(count: int, height: int, width: int, *, seed: int = 0, blur: int = 1) -> Tensor:
    """Random images in [0, 1]; ``blur`` pixels of each side look alike, as they do in photographs."""
    generator = torch.Generator().manual_seed(seed)
    small = torch.rand(count, 3, height // blur + 2, width // blur + 2, generator=generator)
    return F.interpolate(small, (height, width), mode="bilinear", antialias=True).clamp(0, 1)


@pytest.mark.parametrize(("height", "width"), [(32, 32), (48, 64), (70, 40), (20, 24)])
def test_the_gradient_is_that_of_finite_differences(folder: Path, height: int, width: int) -> None:
    reward = DifferentiablePickScore(str(folder), processor=None, device="cpu")
    reward.clip.model.double()
    images = (0.3 + 0.4 * pictures(2, height, width)).double().requires_grad_()  # no pixel near the bounds of clamp
    (gradient,) = torch.autograd.grad(reward.score(images, TEXT[:2]).sum(), images)
    generator = torch.Generator().manual_seed(1)
    for _ in range(3):
        direction = torch.randn(images.shape, generator=generator, dtype=torch.float64)
        step = 1e-6 * direction
        with torch.no_grad():
            difference = (reward.score(images + step, TEXT[:2]) - reward.score(images - step, TEXT[:2])).sum() / 2e-6
        assert (gradient * direction).sum().item() == pytest.approx(difference.item(), rel=1e-6)


def test_each_image_gets_the_gradient_of_its_own_score_alone(pickscore: DifferentiableReward) -> None:
    images = pictures(3, 64, 64).requires_grad_()
    scores = pickscore.score(images, TEXT)
    (gradient,) = torch.autograd.grad(scores[1], images)
    assert scores.shape == (3,) and torch.isfinite(gradient).all()
    assert gradient[1].abs().max() > 1e-4
    assert not gradient[0].any() and not gradient[2].any()
    assert not any(parameter.requires_grad for parameter in pickscore.clip.model.parameters())


def test_following_the_gradient_raises_the_score(pickscore: DifferentiableReward) -> None:
    images = pictures(3, 64, 64).requires_grad_()
    before = pickscore.score(images, TEXT)
    (gradient,) = torch.autograd.grad(before.sum(), images)
    after = pickscore.score((images + 0.01 * gradient.sign()).clamp(0, 1), TEXT)
    assert (after > before + 0.05).all()


@pytest.mark.parametrize(("height", "width"), [(32, 32), (64, 64), (96, 64), (64, 100), (24, 24)])
def test_pixels_are_the_servers_up_to_rounding(height: int, width: int) -> None:
    images = quantise(pictures(4, height, width))
    server = np.stack([preprocess(image.permute(1, 2, 0).numpy(), IMAGE_SIZE) for image in images])
    difference = (prepare(images / 255, IMAGE_SIZE) - torch.from_numpy(server)).abs() * torch.tensor(STD)[:, None, None]
    levels = 255 * difference  # PIL rounds to 8 bit after each of two passes, and cuts off what overshoots
    assert levels.max() < 1.6 and levels.mean() < 0.4


@pytest.mark.parametrize(("height", "width"), [(32, 32), (64, 64), (96, 64), (256, 256)])
@pytest.mark.parametrize("kind", ["pickscore", "clipscore"])
def test_scores_are_the_servers_up_to_rounding(folder: Path, kind: str, height: int, width: int) -> None:
    if kind == "pickscore":
        here: Reward = DifferentiablePickScore(str(folder), processor=None, device="cpu", name=kind)
        there: Reward = ScorerReward(kind, PickScore(str(folder), processor=None, device="cpu"), kind)
    else:
        here = DifferentiableClipScore(str(folder), device="cpu", name=kind)
        there = ScorerReward(kind, ClipScore(str(folder), device="cpu"), kind)
    images = quantise(pictures(16, height, width, blur=4)) / 255
    ours, server = (reward(images, ["a cat", "two dogs"] * 8, [{}] * 16) for reward in (here, there))
    assert set(ours.parts) == set(server.parts)
    # Measured on this random network, which is far more sensitive than a trained one: up to 0.06 of the spread.
    bound = 1e-5 if height == width == IMAGE_SIZE else 0.1
    assert (ours.total - server.total).abs().max() < bound * server.total.std()
    assert torch.corrcoef(torch.stack([ours.total, server.total]))[0, 1] > 0.999


def test_called_it_is_an_ordinary_reward_without_gradient(pickscore: DifferentiableReward) -> None:
    images = pictures(3, 64, 64).requires_grad_()
    rewards = pickscore(images, TEXT, [{}] * 3)
    assert not rewards.total.requires_grad and rewards.valid.all()
    torch.testing.assert_close(rewards.total, pickscore.score(images, TEXT).detach())
    assert set(rewards.parts) == {"differentiable_pickscore", "differentiable_pickscore.raw"}
    torch.testing.assert_close(rewards.parts["differentiable_pickscore.raw"], 26 * rewards.total)
    pickscore.check()


def test_an_empty_prompt_masks_only_its_own_image(pickscore: DifferentiableReward) -> None:
    images = pictures(3, 64, 64)
    rewards = pickscore(images, ["a cat", " ", "two dogs"], [{}] * 3)
    assert rewards.valid.tolist() == [True, False, True]
    expected = pickscore.score(images[[0, 2]], ["a cat", "two dogs"])
    torch.testing.assert_close(rewards.total[[0, 2]], expected)
    assert not pickscore(images[:1], [""], [{}]).valid.any()
    with pytest.raises(ValueError, match="a prompt is empty"):
        pickscore.score(images, ["a cat", "", "two dogs"])


def test_images_and_texts_must_match(pickscore: DifferentiableReward) -> None:
    with pytest.raises(ValueError, match=r"2 texts for images of shape \[3, 3, 64, 64\]"):
        pickscore.score(pictures(3, 64, 64), TEXT[:2])


def test_it_mixes_with_other_rewards_and_computes_shared_parts_once(folder: Path) -> None:
    made = {
        name: DifferentiablePickScore(str(folder), processor=None, device="cpu", name=name)
        for name in ("differentiable_pickscore", "differentiable_pickscore.raw")
    }
    mixture = MixtureReward({name: (reward, 1.0) for name, reward in made.items()})
    rewards = mixture(pictures(3, 64, 64), TEXT, [{}] * 3)
    torch.testing.assert_close(rewards.total, 27 * rewards.parts["differentiable_pickscore"])


@pytest.mark.parametrize("name", ["differentiable_pickscore.raw", "differentiable_clipscore"])
def test_by_name_it_has_the_published_model(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str | None]] = []

    def tiny(model: str, *, processor: str | None = None, **options: str | None) -> Clip:
        asked.append((model, processor))
        return Clip(str(folder), device="cpu")

    monkeypatch.setattr("awm.rewards.differentiable.Clip", tiny)
    reward = differentiable_reward(name)
    published = {
        "differentiable_pickscore.raw": ("yuvalkirstain/PickScore_v1", "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"),
        "differentiable_clipscore": ("openai/clip-vit-large-patch14", None),
    }
    assert asked == [published[name]]
    rewards = reward(pictures(1, 64, 64), ["a cat"], [{}])
    torch.testing.assert_close(rewards.total, rewards.parts[name])
