"""Scores on disk: nothing finished is lost, nothing half-written counts."""

from __future__ import annotations

from pathlib import Path

import pytest

from awm.held_out.records import PartFiles, PartWriter, Record, read_records, write_records


def record(index: int) -> Record:
    return Record(index, f"prompt {index}", "counting", 0, {"r": index / 2, "r.sub": None}, "r.sub: broken", None)


def test_scores_come_back_as_they_were_written_and_in_order(tmp_path: Path):
    write_records(tmp_path, [record(2), record(0)])
    assert read_records(tmp_path) == [record(0), record(2)]
    assert [file.name for file in tmp_path.iterdir()] == ["scores.jsonl"]


def test_a_batch_that_a_kill_cut_short_counts_as_not_written(tmp_path: Path):
    parts = PartFiles(tmp_path)
    writer = parts.writer(parts.next_launch(), rank=0)
    writer.write([record(0), record(1)])
    writer.write([record(2), record(3)])
    (file,) = (tmp_path / "parts").iterdir()
    file.write_bytes(file.read_bytes()[:-9])
    assert parts.read() == {0: record(0), 1: record(1)}
    # The next launch leaves the torn file alone and goes on in its own.
    again = parts.writer(parts.next_launch(), rank=0)
    again.write([record(2), record(3)])
    assert parts.read() == {i: record(i) for i in range(4)}
    assert len(list((tmp_path / "parts").iterdir())) == 2
    parts.remove()
    assert parts.read() == {} and parts.next_launch() == 1


def test_a_write_that_fails_leaves_no_half_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    writer = PartWriter(tmp_path / "part.jsonl")
    writer.write([record(0)])
    before = (tmp_path / "part.jsonl").read_bytes()

    def full_disk(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full_disk)
        with pytest.raises(OSError, match="No space left"):
            writer.write([record(1)])
    assert (tmp_path / "part.jsonl").read_bytes() == before
    writer.write([record(2)])
    assert writer.records == [record(0), record(2)]


def test_damage_is_named(tmp_path: Path):
    (tmp_path / "scores.jsonl").write_text('{"index": 1}\n')
    with pytest.raises(ValueError, match=r"scores\.jsonl is damaged .* --restart"):
        read_records(tmp_path)
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts/0001-00000.jsonl").write_text("[{]\n")
    with pytest.raises(ValueError, match=r"0001-00000\.jsonl is damaged .* remove it"):
        PartFiles(tmp_path).read()
