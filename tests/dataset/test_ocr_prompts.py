"""What dataset/ocr promises: one short text per prompt, and no text on both sides of the split."""

from __future__ import annotations

from pathlib import Path

import pytest

from awm.data.prompts import load_prompts
from dataset.ocr import build
from dataset.ocr.vocabulary import FINISHES, PLACES


def test_committed_files_load_with_one_to_three_words_each():
    for split, count in (("train", build.NUM_TRAIN), ("test", build.NUM_TEST)):
        prompts = load_prompts(build.FOLDER, split, "general_ocr")
        assert len(prompts) == len(set(prompts.text)) == count
        for prompt, record in zip(prompts.text, prompts.metadata, strict=True):
            assert prompt.count('"') == 2
            assert 1 <= len(record["text"].split()) <= 3


def test_both_sides_have_single_words_phrases_and_digits():
    for split in ("train", "test"):
        texts = [str(record["text"]) for record in load_prompts(build.FOLDER, split, "general_ocr").metadata]
        words = [text for text in texts if text.isalpha()]
        digits = [text for text in texts if text.isdecimal()]
        phrases = [text for text in texts if len(text.split()) > 1]
        assert len(words) + len(digits) + len(phrases) == len(texts)
        assert min(len(words), len(digits), len(phrases)) >= len(texts) / 50


def test_no_text_is_on_both_sides():
    train, test = (set(map(build.target, load_prompts(build.FOLDER, s, "general_ocr").text)) for s in ("train", "test"))
    assert len(train) > 500 and len(test) > 100
    assert not train & test


def test_rebuilding_gives_the_committed_files(tmp_path: Path):
    build.main(["--out", str(tmp_path)])
    for name in ("train.txt", "test.txt"):
        assert (tmp_path / name).read_bytes() == (build.FOLDER / name).read_bytes()


def test_the_vocabulary_fits_its_use():
    for place in PLACES:
        assert all(scene.count("{}") == 1 and '"' not in scene for scene in place.scenes)
        assert all(1 <= len(text.split()) <= 3 and '"' not in text for text in place.texts)
    assert not any('"' in finish for finish in FINISHES)


def test_a_file_of_ones_own_is_split_by_text(tmp_path: Path):
    lines = [f'{scene} that says "{text}"' for scene in ("A sign", "A mug") for text in ("One", "TWO", "Three", "Four")]
    lines += ['A poster that says "two"', lines[0]]
    source = tmp_path / "mine.txt"
    source.write_text("\n\n".join(lines))
    build.main(["--from", str(source), "--num-test", "3", "--out", str(tmp_path)])
    train, test = (load_prompts(tmp_path, split, "general_ocr").text for split in ("train", "test"))
    assert len(test) == 3 and len(set(train)) == len(train) >= 4
    assert not set(map(build.target, train)) & set(map(build.target, test))


@pytest.mark.parametrize(
    ("content", "num_test", "message"),
    [
        ('A sign "A"\nA sign without text\n', "1", "mine.txt, line 2: an OCR prompt needs the text"),
        ('A sign "A"\n', "1", "too few to hold out 1"),
        ('A sign "A"\nA mug "B"\n', "5", "lower --num-test"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str, num_test: str, message: str
):
    (tmp_path / "mine.txt").write_text(content)
    with pytest.raises(SystemExit):
        build.main(["--from", str(tmp_path / "mine.txt"), "--num-test", num_test, "--out", str(tmp_path / "out")])
    assert message in capsys.readouterr().err


def test_asking_for_too_many_says_how_many_there_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        build.main(["--num-train", "999999", "--out", str(tmp_path)])
    assert "--num-train 999999 is more than the" in capsys.readouterr().err
