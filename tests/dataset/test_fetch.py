"""Downloads on request: from a real server, and what is said where there is no network."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from dataset import fetch as fetch_module
from dataset.fetch import fetch, fetch_shards, shards
from dataset.geneval import build as geneval
from dataset.pickscore import build as pickscore


@pytest.fixture
def site(tmp_path: Path) -> Iterator[str]:
    folder = tmp_path / "site"
    folder.mkdir()
    (folder / "evaluation_metadata.jsonl").write_bytes((geneval.FOLDER / "test.jsonl").read_bytes())
    handler = partial(type("Quiet", (SimpleHTTPRequestHandler,), {"log_message": lambda *_: None}), directory=folder)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_the_official_file_is_fetched_checked_and_kept_out_of_training(
    site: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(geneval, "OFFICIAL_URL", f"{site}/evaluation_metadata.jsonl")
    geneval.main(["--official", "download", "--num-train", "50", "--out", str(tmp_path)])
    test, train = (geneval.read_metadata(tmp_path / f"{split}.jsonl") for split in ("test", "train"))
    assert (len(test), len(train)) == (553, 50)
    assert not {geneval.meaning(record) for record in test} & {geneval.meaning(record) for record in train}


def test_what_cannot_be_downloaded_says_what_to_do(site: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"404.*download it elsewhere and give its path"):
        fetch(f"{site}/nothing.jsonl")
    with pytest.raises(ValueError, match=r"cannot download http://127.0.0.1:9/x"):
        fetch("http://127.0.0.1:9/x")
    monkeypatch.setattr(fetch_module, "MAX_BYTES", 100)
    with pytest.raises(ValueError, match="which no prompt file is"):
        fetch(f"{site}/evaluation_metadata.jsonl")


def test_the_hub_out_of_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ValueError, match="cannot download nobody/nothing"):
        fetch_shards("nobody/nothing", "train")


def test_shards_of_a_split() -> None:
    names = [
        "README.md",
        "data/train-00001-of-00002.parquet",
        "data/train-00000-of-00002.parquet",
        "data/test-0.parquet",
    ]
    assert shards(names, "train") == ["data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet"]
    assert shards(["train/0.parquet", "training/0.parquet"], "train") == ["train/0.parquet"]


def test_the_command_line_names_a_data_set_or_takes_the_default() -> None:
    parse = pickscore.parser().parse_args
    assert parse(["--from-hub"]).from_hub == pickscore.PICK_A_PIC
    assert parse(["--from-hub", "me/mine", "--split", "validation"]).from_hub == "me/mine"
    assert parse([]).from_hub is None
