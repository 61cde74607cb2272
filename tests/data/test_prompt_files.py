from __future__ import annotations

import json
from pathlib import Path

import pytest

from awm.data.prompts import load_prompts


def test_geneval_lines_become_prompt_and_metadata(tmp_path: Path):
    record = {"prompt": "a photo of a star", "tag": "single_object", "include": [{"class": "star", "count": 1}]}
    (tmp_path / "train.jsonl").write_text(json.dumps(record) + "\n\n")
    prompts = load_prompts(tmp_path, "train", "geneval")
    assert prompts.text == ("a photo of a star",)
    assert prompts.metadata[0]["include"][0]["class"] == "star"


def test_ocr_takes_the_text_in_double_quotes(tmp_path: Path):
    (tmp_path / "test.txt").write_text('A sign that says "Big Sale"\n')
    assert load_prompts(tmp_path, "test", "general_ocr").metadata == ({"text": "Big Sale"},)


def test_plain_prompts_need_nothing_else(tmp_path: Path):
    (tmp_path / "train.txt").write_text("a cat\na dog\n")
    assert load_prompts(tmp_path, "train", "pickscore").text == ("a cat", "a dog")


def test_a_line_ends_at_a_newline_and_nowhere_else(tmp_path: Path):
    text = "\ufeffa cat\u2028with a hat\r\na dog\x85\n"
    (tmp_path / "train.txt").write_text(text, encoding="utf-8", newline="")
    assert load_prompts(tmp_path, "train", "pickscore").text == ("a cat\u2028with a hat", "a dog")


def test_another_encoding_is_named(tmp_path: Path):
    (tmp_path / "train.txt").write_bytes("ein Bär".encode("latin-1"))
    with pytest.raises(ValueError, match=r"train\.txt is not UTF-8 text"):
        load_prompts(tmp_path, "train", "pickscore")


@pytest.mark.parametrize(
    ("name", "content", "prompt_fn", "message"),
    [
        (
            "train.jsonl",
            '{"prompt": "a", "tag": "t", "include": []}\n{"prompt": ',
            "geneval",
            r"line 2: not valid JSON",
        ),
        ("train.jsonl", '{"prompt": "a"}', "geneval", r"line 1: GenEval metadata needs the key 'tag'"),
        ("train.txt", "a sign without quotes", "general_ocr", r"line 1: an OCR prompt needs the text"),
        ("train.txt", 'a sign that says ""', "general_ocr", r"line 1: an OCR prompt needs the text"),
        ("train.txt", "\n\n", "pickscore", r"holds no prompts"),
    ],
)
def test_malformed_files_are_named_with_the_line(tmp_path: Path, name: str, content: str, prompt_fn: str, message: str):
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        load_prompts(tmp_path, "train", prompt_fn)


def test_a_missing_file_says_what_was_looked_for(tmp_path: Path):
    with pytest.raises(ValueError, match=r"no test prompts in .*test\.jsonl, test_metadata\.jsonl, test\.txt"):
        load_prompts(tmp_path, "test", "geneval")
