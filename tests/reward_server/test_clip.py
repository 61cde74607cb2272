"""The CLIP that scorers share: the same pixels as transformers, the same numbers as its model, and no silent gaps."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from transformers import AutoProcessor, CLIPImageProcessorPil, CLIPModel

from reward_server.scorers import clip as clip_module
from reward_server.scorers.clip import Clip, preprocess
from reward_server.scorers.clip_files import load_tokenizer
from tests.tiny_clip import EMBEDDING, save_tiny_clip

TEXTS = ["a cat", "two dogs on a red bench", "x" * 300, ""]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def clip(folder: Path) -> Clip:
    return Clip(str(folder), device="cpu")


def noise(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def by_transformers(image: NDArray[np.uint8]) -> NDArray[np.float32]:
    processor = CLIPImageProcessorPil()
    # Told where the channels are: transformers takes the rows of an image three pixels high for them.
    pixels = processor(images=[image], return_tensors="np", input_data_format="channels_last")["pixel_values"]
    return np.asarray(pixels[0])


SIZES = [(224, 224), (512, 512), (64, 64), (1024, 1024), (225, 224), (224, 225), (768, 1024), (1024, 769)]
SIZES += [(100, 333), (333, 101), (301, 777), (13, 200), (20, 1000), (1, 1), (224, 1000), (999, 224)]


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_pixels_are_those_of_transformers_bit_for_bit(height: int, width: int) -> None:
    image = noise(height, width)
    expected = by_transformers(image)
    pixels = preprocess(image)
    assert pixels.dtype == expected.dtype and pixels.shape == (3, 224, 224)
    np.testing.assert_array_equal(pixels, expected)


@pytest.mark.parametrize(("height", "width"), [(2, 500), (1024, 3), (1, 700)])
def test_a_thin_strip_is_resized_only_where_it_is_seen(height: int, width: int) -> None:
    step = 1 / 255 / 0.26  # one of 255 levels, in normalised units
    x, y = np.meshgrid(np.linspace(0, 9, width), np.linspace(0, 9, height))
    smooth = np.stack([np.sin(x + y), np.cos(x), np.sin(y)], axis=-1)
    strip = (127 + 100 * smooth).astype(np.uint8)
    np.testing.assert_allclose(preprocess(strip), by_transformers(strip), atol=1.1 * step)


def test_a_strip_as_large_as_the_server_admits_needs_little_memory() -> None:
    pixels = preprocess(np.zeros((4096 * 4096, 1, 3), np.uint8))  # resized as a whole it would have 2.5 TB
    assert pixels.shape == (3, 224, 224)


def test_embeddings_are_those_of_transformers_processor_and_model(folder: Path, clip: Clip) -> None:
    images = [noise(40, 50, 1), noise(64, 64, 2), noise(90, 33, 3)]
    processor = AutoProcessor.from_pretrained(folder, local_files_only=True)
    processor.image_processor = CLIPImageProcessorPil.from_pretrained(folder)
    model = CLIPModel.from_pretrained(folder, local_files_only=True)
    inputs = processor(text=TEXTS, images=images, return_tensors="pt", padding="max_length", truncation=True)
    with torch.no_grad():
        expected = model(**inputs)
    torch.testing.assert_close(clip.image_embeddings(images), expected.image_embeds, atol=1e-6, rtol=0)
    torch.testing.assert_close(clip.text_embeddings(TEXTS), expected.text_embeds, atol=1e-6, rtol=0)
    assert clip.logit_scale == pytest.approx(100, rel=1e-4)
    assert expected.text_embeds[0] @ expected.text_embeds[1] < 0.9  # the test tells texts apart


def test_embeddings_have_unit_norm_and_float32_whatever_the_weights_are(folder: Path) -> None:
    clip = Clip(str(folder), device="cpu", dtype="bfloat16")
    for embeddings in (clip.image_embeddings([noise(40, 50)]), clip.text_embeddings(["a cat"])):
        assert embeddings.dtype == torch.float32
        torch.testing.assert_close(embeddings.norm(dim=-1), torch.ones(1))
    full = Clip(str(folder), device="cpu").image_embeddings([noise(40, 50)])
    assert 0 < (full - clip.image_embeddings([noise(40, 50)])).abs().max() < 0.05


def test_neither_batch_mates_nor_chunks_change_an_embedding(clip: Clip, monkeypatch: pytest.MonkeyPatch) -> None:
    images = [noise(40, 50, seed) for seed in range(5)]
    together, texts = clip.image_embeddings(images), clip.text_embeddings(TEXTS)
    sizes: list[int] = []
    forward = clip.model.vision_model.register_forward_pre_hook(
        lambda module, args, kwargs: sizes.append(len(kwargs["pixel_values"])), with_kwargs=True
    )
    monkeypatch.setattr(clip_module, "IMAGES_PER_PASS", 2)
    monkeypatch.setattr(clip_module, "TEXTS_PER_PASS", 1)
    torch.testing.assert_close(clip.image_embeddings(images), together, atol=1e-6, rtol=0)
    torch.testing.assert_close(clip.text_embeddings(TEXTS), texts, atol=1e-6, rtol=0)
    forward.remove()
    assert sizes == [2, 2, 1]


def test_no_images_and_no_texts_are_fine(clip: Clip) -> None:
    assert clip.image_embeddings([]).shape == clip.text_embeddings([]).shape == (0, EMBEDDING)


def test_text_beyond_the_limit_is_cut_off_not_refused(clip: Clip) -> None:
    long = "x " * 75  # start + 75 words + end = 77 tokens
    embeddings = clip.text_embeddings([long, long + "y z", "x " * 74])
    torch.testing.assert_close(embeddings[0], embeddings[1])
    assert (embeddings[0] - embeddings[2]).abs().max() > 1e-4


def test_the_fingerprint_follows_the_weights_not_the_folder(folder: Path, clip: Clip, tmp_path: Path) -> None:
    other = Clip(str(save_tiny_clip(tmp_path / folder.name)), device="cpu")
    assert other.fingerprint() == clip.fingerprint()
    with torch.no_grad():
        other.model.visual_projection.weight[3, 5] += 1e-6
    del other.__dict__["_fingerprint"]
    changed = {name for name, value in other.fingerprint().items() if clip.fingerprint()[name] != value}
    assert changed == {"weights_sha256"}
    assert Clip(str(folder), device="cpu", dtype="bfloat16").fingerprint()["dtype"] == "bfloat16"


def test_a_model_with_weights_missing_is_refused(tmp_path: Path) -> None:
    folder = save_tiny_clip(tmp_path)
    weights = load_file(folder / "model.safetensors")
    del weights["visual_projection.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"not a complete CLIP model: it lacks 1 of .*visual_projection"):
        Clip(str(folder), device="cpu")


def test_a_folder_without_vocabulary_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no vocabulary"):
        load_tokenizer(str(tmp_path))
    with pytest.raises(ValueError, match="no vocabulary"):
        Clip(str(folder), processor=str(tmp_path), device="cpu")


def test_what_is_not_there_names_the_download(folder: Path) -> None:
    with pytest.raises(ValueError, match="hf download nobody/nothing"):
        Clip("nobody/nothing", processor=str(folder), device="cpu")


def test_another_models_tokenizer_is_refused(folder: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(str(folder))
    tokenizer.add_tokens(["<one more>"])
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="does not belong to the model"):
        Clip(str(folder), processor=str(tmp_path), device="cpu")


def test_configs_with_the_old_end_of_text_give_the_same_embeddings(clip: Clip, tmp_path: Path) -> None:
    folder = save_tiny_clip(tmp_path)
    config = folder / "config.json"
    end = f'"eos_token_id": {clip.tokenizer.eos_token_id}'
    assert end in config.read_text()
    config.write_text(config.read_text().replace(end, '"eos_token_id": 2'))
    old = Clip(str(folder), device="cpu")
    torch.testing.assert_close(old.text_embeddings(TEXTS), clip.text_embeddings(TEXTS), atol=1e-6, rtol=0)


def test_unknown_dtype_lists_the_known(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"dtype is 'fp16'; choose one of float32, float16, bfloat16"):
        Clip(str(folder), dtype="fp16")


def test_a_broken_torchvision_is_named(tmp_path: Path) -> None:
    package = tmp_path / "torchvision"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')\n")
    root = Path(__file__).parents[2]
    program = f"import sys; sys.path[:0] = [{str(tmp_path)!r}, {str(root)!r}]; import reward_server.scorers.clip"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=300)
    assert done.returncode != 0
    assert "nms does not exist" in done.stderr
    assert "remove it: pip uninstall torchvision" in done.stderr.splitlines()[-1]
