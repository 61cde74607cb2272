"""PickScore, CLIPScore, HPSv2.1 and the aesthetic score: their formulas, their image preparation, their refusals."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from reward_server.scorers.aesthetic import Aesthetic, build_head
from reward_server.scorers.base import Item, ItemError, Outcome, Scorer, Scores
from reward_server.scorers.clip_files import CLIPModel, load_tokenizer
from reward_server.scorers.clip_pixels import MEAN, STD, preprocess
from reward_server.scorers.clipscore import ClipScore
from reward_server.scorers.hps import HPSv2, pad_to_square
from reward_server.scorers.pickscore import PickScore
from tests.tiny_clip import EMBEDDING, IMAGE_SIZE, save_tiny_clip

PROMPTS = ["a cat", "two dogs", "a cat", "a red bench in the rain"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("head") / "head.pth"
    torch.save(PublishedHead(EMBEDDING).state_dict(), path)
    return path


class PublishedHead(nn.Module):
    """The aesthetic head as it was trained, dropout layers and names included."""

    def __init__(self, dimension: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(dimension, 1024),
            nn.Dropout(0.2),
            nn.Linear(1024, 128),
            nn.Dropout(0.2),
            nn.Linear(128, 64),
            nn.Dropout(0.1),
            nn.Linear(64, 16),
            nn.Linear(16, 1),
        )

    def forward(self, embeddings: Tensor) -> Tensor:
        scores: Tensor = self.layers(embeddings)
        return scores


def picture(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def batch(prompts: list[str] = PROMPTS) -> list[Item]:
    return [Item(picture(48, 32 + 16 * (seed % 3), seed), prompt, {}) for seed, prompt in enumerate(prompts)]


def scores(outcomes: list[Outcome]) -> list[float]:
    assert all(isinstance(outcome, Scores) for outcome in outcomes)
    return [outcome.score for outcome in outcomes if isinstance(outcome, Scores)]


def raw(outcomes: list[Outcome]) -> list[float]:
    return [outcome.metrics["raw"] for outcome in outcomes if isinstance(outcome, Scores)]


def logits(folder: Path, items: list[Item], prepare: Callable[[NDArray[np.uint8]], Tensor] | None = None) -> Tensor:
    """What CLIPModel itself puts on the diagonal of its logits, one image at a time."""
    model, tokenizer = CLIPModel.from_pretrained(folder).eval(), load_tokenizer(str(folder))
    values = []
    for item in items:
        pixels = prepare(item.image) if prepare else torch.from_numpy(preprocess(item.image, IMAGE_SIZE))
        tokens = tokenizer([item.prompt], return_tensors="pt")
        with torch.no_grad():
            values.append(model(pixel_values=pixels[None], **tokens).logits_per_image.squeeze())
    return torch.stack(values)


def test_pickscore_is_the_models_logit_over_26(folder: Path) -> None:
    outcomes = PickScore(str(folder), processor=None, device="cpu")(batch())
    expected = logits(folder, batch())
    torch.testing.assert_close(torch.tensor(raw(outcomes)), expected, atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(torch.tensor(scores(outcomes)), expected / 26, atol=1e-5, rtol=1e-5)
    assert expected.std() > 5  # the pairs differ


def test_clipscore_is_the_cosine(folder: Path) -> None:
    outcomes = ClipScore(str(folder), device="cpu")(batch())
    expected = logits(folder, batch()) / 100.00296
    torch.testing.assert_close(torch.tensor(scores(outcomes)), expected, atol=1e-6, rtol=1e-5)
    assert raw(outcomes) == pytest.approx([100 * score for score in scores(outcomes)])


@pytest.mark.parametrize("antialias", [True, False])
def test_hps_is_the_cosine_of_the_whole_image_on_black(folder: Path, antialias: bool) -> None:
    outcomes = HPSv2(str(folder), antialias=antialias, device="cpu")(batch())
    by_hand = logits(folder, batch(), lambda image: pad_to_square(image, IMAGE_SIZE, antialias=antialias)) / 100.00296
    torch.testing.assert_close(torch.tensor(scores(outcomes)), by_hand, atol=1e-6, rtol=1e-5)
    cropped = logits(folder, batch()) / 100.00296
    assert (by_hand - cropped).abs().max() > 0.01
    assert raw(outcomes) == pytest.approx([100 * score for score in scores(outcomes)])


def test_hps_pads_with_black_in_the_middle_of_a_square() -> None:
    mean, std = torch.tensor(MEAN)[:, None, None], torch.tensor(STD)[:, None, None]
    image = np.full((90, 40, 3), 200, np.uint8)
    pixels = pad_to_square(image, 32) * std + mean
    assert pixels.shape == (3, 32, 32)
    # 90 -> 32, 40 -> 14.2 -> 14: nine black columns on either side.
    torch.testing.assert_close(pixels[:, :, 9:23], torch.full((3, 32, 14), 200 / 255))
    torch.testing.assert_close(pixels[:, :, :9], torch.zeros(3, 32, 9), atol=1e-6, rtol=0)
    torch.testing.assert_close(pixels[:, :, 23:], torch.zeros(3, 32, 9), atol=1e-6, rtol=0)
    wide = pad_to_square(np.full((3, 32, 3), 200, np.uint8), 32) * std + mean  # an odd rest: one more below
    assert (wide[0, :, 0] > 0.5).nonzero().flatten().tolist() == [14, 15, 16]
    assert pad_to_square(picture(1, 500), 32).shape == (3, 32, 32)


def test_hps_can_smooth_before_shrinking_or_not() -> None:
    image = np.zeros((128, 128, 3), np.uint8)
    image[:, 1::4] = 255  # one white column in four
    for antialias, grey in ((True, 0.25), (False, 0.59375)):  # the mean; the cubic's weight half a pixel away
        pixels = pad_to_square(image, 32, antialias=antialias) * torch.tensor(STD)[:, None, None]
        inner = (pixels + torch.tensor(MEAN)[:, None, None])[:, :, 4:-4]
        torch.testing.assert_close(inner, torch.full_like(inner, grey), atol=0.02, rtol=0)


def test_hps_leaves_an_image_of_the_right_size_as_it_is() -> None:
    image = picture(32, 32)
    pixels = pad_to_square(image, 32) * torch.tensor(STD)[:, None, None] + torch.tensor(MEAN)[:, None, None]
    torch.testing.assert_close(pixels, torch.from_numpy(image).permute(2, 0, 1) / 255)


def test_the_aesthetic_score_is_the_heads_rating_of_the_embedding(folder: Path, head: Path) -> None:
    scorer = Aesthetic(str(head), str(folder), device="cpu")
    reference = PublishedHead(EMBEDDING).eval()
    reference.load_state_dict(torch.load(head, weights_only=True))
    with torch.no_grad():
        expected = reference(scorer.clip.image_embeddings([item.image for item in batch()])).squeeze(-1)
    torch.testing.assert_close(torch.tensor(scores(scorer(batch()))), expected, atol=1e-6, rtol=1e-5)
    assert expected.std() > 1e-4
    # The prompt does not matter, not even an empty one.
    assert scores(scorer(batch(["", "x", "", "y"]))) == scores(scorer(batch()))


def test_every_scorer_accepts_its_own_example_on_grey_and_no_items(folder: Path, head: Path) -> None:
    for scorer in scorers(folder, head):
        prompt, metadata = scorer.example()
        grey = Item(np.full((64, 64, 3), 127, np.uint8), prompt, metadata)
        assert np.isfinite(scores(scorer([grey]))).all()
        assert scorer([]) == []


def test_an_empty_prompt_costs_only_its_own_item_its_score(folder: Path, head: Path) -> None:
    for scorer in scorers(folder, head)[:3]:
        items = batch(["a cat", "", "two dogs", " \n"])
        outcomes = scorer(items)
        assert [o.code if isinstance(o, ItemError) else "" for o in outcomes] == ["", "bad_prompt", "", "bad_prompt"]
        alone = scores(scorer(items[:1]) + scorer(items[2:3]))
        assert scores([outcomes[0], outcomes[2]]) == pytest.approx(alone, abs=1e-5)
        assert all(isinstance(outcome, ItemError) for outcome in scorer(batch(["", ""])))


def test_a_repeated_prompt_is_encoded_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scorer = PickScore(str(folder), processor=None, device="cpu")
    encoded: list[str] = []
    encode = scorer.clip.encode_texts
    monkeypatch.setattr(scorer.clip, "encode_texts", lambda texts: encoded.extend(texts) or encode(texts))
    scorer(batch())
    assert encoded == ["a cat", "two dogs", "a red bench in the rain"]


def test_fingerprints_tell_what_changes_a_score(folder: Path, head: Path) -> None:
    pick, clip, hps, aesthetic = (scorer.fingerprint() for scorer in scorers(folder, head))
    assert pick == {**clip, "divisor": "26.0"}
    assert hps["preprocessing"] != clip["preprocessing"] and hps["antialias"] == "true"
    assert HPSv2(str(folder), antialias=False, device="cpu").fingerprint()["antialias"] == "false"
    assert set(aesthetic) == {*clip, "head_sha256"}
    assert all(len(fp["weights_sha256"]) == 64 for fp in (pick, clip, hps, aesthetic))


def test_missing_files_say_what_to_download(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"hf download xswu/HPSv2 HPS_v2\.1_compressed\.pt"):
        HPSv2()
    with pytest.raises(ValueError, match=r"model is '/nowhere\.pt'"):
        HPSv2("/nowhere.pt")
    with pytest.raises(ValueError, match=r"sac\+logos\+ava1-l14-linearMSE\.pth"):
        Aesthetic()
    broken = tmp_path / "broken.pth"
    broken.write_bytes(b"no checkpoint")
    with pytest.raises(ValueError, match="cannot be read as weights alone"):
        Aesthetic(str(broken), str(folder))
    torch.save([1.0], broken)
    with pytest.raises(ValueError, match="no state dict"):
        Aesthetic(str(broken), str(folder))


def test_a_head_of_another_clip_is_refused(head: Path) -> None:
    weights: OrderedDict[str, Tensor] = torch.load(head, weights_only=True)
    with pytest.raises(ValueError, match=r"layers\.0\.weight .* \[1024, 16\], expected \[1024, 768\]"):
        build_head(weights, 768)
    with pytest.raises(ValueError, match=r"layers\.7\.bias .* has shape None, expected \[1\]"):
        build_head({name: weight for name, weight in weights.items() if name != "layers.7.bias"}, EMBEDDING)
    with pytest.raises(ValueError, match=r"layers\.9\.bias .* expected None"):
        build_head({**weights, "layers.9.bias": torch.zeros(1)}, EMBEDDING)


def scorers(folder: Path, head: Path) -> list[Scorer]:
    return [
        PickScore(str(folder), processor=str(folder), device="cpu"),
        ClipScore(str(folder), device="cpu"),
        HPSv2(str(folder), device="cpu"),
        Aesthetic(str(head), str(folder), device="cpu"),
    ]
