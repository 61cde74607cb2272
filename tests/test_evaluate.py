"""What awm-eval promises: the run's own numbers, the same on any number of ranks and after any interruption."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from ml_collections import ConfigDict

from awm import evaluate
from awm.building import build_policy
from awm.configuration import config_to_dict
from awm.data.prompts import read_prompts
from awm.held_out.records import PartWriter, read_records
from awm.rewards.errors import RewardError
from awm.training.stopping import StopRequest
from tests.held_out.eval_ranks import evaluate_on_ranks
from tests.training.ranks import run_ranks
from tests.training.test_trainer import run

Make = Callable[..., ConfigDict]
SHAPES = ("circle", "square", "star", "ring")


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    """Nine prompts of two tasks, one of them twice, one that cannot be scored."""
    lines = [
        {"prompt": f"a photo of {n} {shape}s", "tag": tag, "include": [{"class": shape, "count": n}]}
        for n, tag in ((1, "single_object"), (2, "counting"))
        for shape in SHAPES
    ]
    lines += [lines[0], {"prompt": "a photo of a dragon", "tag": "counting", "include": [{"class": "dragon"}]}]
    file = tmp_path / "prompts.jsonl"
    file.write_text("\n".join(json.dumps(line) for line in lines))
    return file


@pytest.fixture
def config_file(make_config: Make, tmp_path: Path) -> Path:
    config = make_config(prompt_fn="geneval", sample__test_batch_size=3)
    with config.unlocked():
        rewards = {"jpeg_compressibility": 1.0, "geneval_shapes.strict": 0.0}
        config.reward_fn = ConfigDict(rewards, allow_dotted_keys=True)
    file = tmp_path / "config.json"
    file.write_text(json.dumps(config_to_dict(config)))
    return file


def evaluated(config: ConfigDict, out: Path, *options: str, stop: StopRequest | None = None) -> int | str:
    arguments = evaluate.parser().parse_args(["--out", str(out), *options])
    return evaluate.evaluate(config, arguments, stop or StopRequest())


def files(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.mark.parametrize("use_lora", [True, False])
def test_a_checkpoint_scores_what_the_run_said_it_did(make_config: Make, tmp_path: Path, use_lora: bool):
    config = make_config(num_epochs=2, use_lora=use_lora, train__learning_rate=1e-2 if use_lora else 1e-4)
    folder = run(config).outputs.run
    assert evaluated(config, tmp_path / "out", "--weights-from", str(folder), "--baseline") == 0
    for epoch, out in ((2, tmp_path / "out"), (0, tmp_path / "out/base")):
        theirs = read_records(folder / f"eval/epoch_{epoch:06d}")
        assert [record.scores for record in read_records(out)] == [record.scores for record in theirs]
    summary = json.loads((tmp_path / "out/summary.json").read_text())
    assert summary["evaluation"]["label"] == "run epoch_000002 average"
    change = summary["change"]["scores"]["jpeg_compressibility"]
    assert change["gain"] == pytest.approx(change["after"] - change["before"])
    assert change["after"] == summary["scores"]["jpeg_compressibility"]["mean"] < 0
    if not use_lora:  # such a transformer can also be trained on
        weights = folder / "checkpoints/epoch_000002/lora"
        config.pretrained.transformer = str(weights)
        policy = build_policy(config, torch.device("cpu"))
        saved = torch.load(weights.parent / "state.pt", weights_only=True)["policy"]["current"]
        with policy.using("reference"):
            start = dict(policy.model.transformer.named_parameters())
            assert saved.keys() == start.keys()
            assert all(torch.equal(saved[name], value) for name, value in start.items())


@pytest.mark.parametrize("world_size", [1, 2])
def test_ranks_and_kills_change_nothing(config_file: Path, prompts: Path, tmp_path: Path, world_size: int):
    options = ("--prompts", str(prompts), "--num-images-per-prompt", "2", "--num-saved-images", "5")
    undisturbed, disturbed = tmp_path / "undisturbed", tmp_path / "disturbed"
    assert run_ranks(1, evaluate_on_ranks, str(config_file), "--out", str(undisturbed), *options) == 0
    again = ("--out", str(disturbed), *options)
    if world_size == 2:
        with pytest.raises((EOFError, AssertionError)):
            run_ranks(2, _killed, str(config_file), *again)
        assert not (disturbed / "scores.jsonl").exists()
        assert any(content for name, content in files(disturbed).items() if name.startswith("parts/"))
    assert run_ranks(world_size, evaluate_on_ranks, str(config_file), *again) == 0
    assert files(disturbed) == files(undisturbed)
    assert len([name for name in files(disturbed) if name.endswith(".png")]) == 5
    records = read_records(disturbed)
    assert [r.index for r in records] == list(range(20))
    assert [r.copy for r in records if r.prompt == "a photo of 1 circles"] == [0, 1, 2, 3]
    assert records[0].scores.keys() > {"jpeg_compressibility", "geneval_shapes.strict", "geneval_shapes.correct"}
    assert records[0].scores["jpeg_compressibility"] != records[16].scores["jpeg_compressibility"]
    for record in records[18:]:
        assert record.scores["geneval_shapes"] is None and "dragon" in record.error
    table = (disturbed / "table.md").read_text()
    assert "| overall (mean of 2 tasks) |     20 |" in table and "2 images without some score" in table


def _killed(*arguments: str) -> int | str:
    return evaluate_on_ranks(*arguments, kill=(1, 1))


@pytest.fixture
def scored(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Indices of the images that are scored, in the order in which they are written."""
    indices: list[int] = []
    write = PartWriter.write

    def noting(self: PartWriter, batch: Sequence[Any]) -> None:
        write(self, batch)
        indices.extend(record.index for record in batch)

    monkeypatch.setattr(PartWriter, "write", noting)
    yield indices


def test_interrupted_and_continued_scores_every_image_once(
    make_config: Make, tmp_path: Path, scored: list[int], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    config, out, options = make_config(sample__test_batch_size=1), tmp_path / "out", ("--num-images-per-prompt", "3")
    stop = StopRequest()
    write = PartWriter.write

    def interrupting(self: PartWriter, batch: Sequence[Any]) -> None:
        write(self, batch)
        if len(scored) == 2:
            stop._handle(signal.SIGTERM, None)

    with monkeypatch.context() as patch:
        patch.setattr(PartWriter, "write", interrupting)
        assert evaluated(config, out, *options, stop=stop) == 0  # as after any SIGTERM
    first = len(scored)
    assert 2 <= first < 9 and not (out / "scores.jsonl").exists()
    assert f"stopped; {first} of 9 images are scored. The same command continues." in capsys.readouterr().err

    calls = []

    def dying(self: Any, images: Any, text: Any, metadata: Any) -> Any:
        calls.append(text)
        raise RewardError("jpeg_compressibility", "http://gone", "the server is gone")

    with monkeypatch.context() as patch:
        patch.setattr("awm.rewards.mixture.MixtureReward.__call__", dying)
        message = evaluated(config, out, *options)
    assert "the server is gone; what is scored so far is kept, the same command continues" in str(message)
    assert calls and len(scored) == first

    assert evaluated(config, out, *options) == 0
    assert sorted(scored) == list(range(9))
    assert f"9 images, {first} of them scored already" in capsys.readouterr().out

    # Complete: the same command loads no model and asks no reward.
    with monkeypatch.context() as patch:
        patch.setattr("awm.held_out.run.build_model", None)
        patch.setattr("awm.held_out.run.build_reward", None)
        assert evaluated(config, out, *options) == 0
        assert "| all images |      9 |" in capsys.readouterr().out
        # Anything else in this folder would mix two evaluations.
        changed = evaluated(make_config(sample__eval_num_steps=5, sample__test_batch_size=1), out, *options)
        assert "holds another evaluation (num_steps: 4 there, 5 now)" in str(changed)
    (out / "notes.txt").write_text("mine")
    assert evaluated(config, out, "--restart") == 0  # one image per prompt now
    assert len(read_records(out)) == 3 and (out / "notes.txt").exists()
    assert sorted(file.name for file in (out / "images").iterdir()) == ["00000.png", "00001.png", "00002.png"]


def test_what_is_wrong_is_said_before_anything_is_loaded(
    make_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("awm.held_out.run.build_model", None)
    out = tmp_path / "out"

    def message(*options: str, **changes: Any) -> str:
        return str(evaluated(make_config(**changes), out, *options))

    assert "there is no" in message("--weights-from", str(tmp_path / "nothing"))
    assert "--baseline compares weights with the base model" in message("--baseline")
    assert "pretrained.transformer" in message(pretrained__transformer=str(tmp_path))
    assert "sample.eval_num_steps=1 is not valid" in message(sample__eval_num_steps=1)
    text = tmp_path / "prompts.txt"
    text.write_text("a cat\n")
    assert "prompts.txt, line 1: not valid JSON" in message("--prompts", str(text), prompt_fn="geneval")
    assert read_prompts(text, "pickscore").text == ("a cat",)
    assert not out.exists()
    out.mkdir()
    (out / "scores.jsonl").write_text("")
    assert "holds scores.jsonl of something else" in message()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--config", "CONFIG"], "--out DIR is missing"),
        (["--out", "OUT"], "no --config given; give --config FILE.py:RECIPE"),
        (["--out", "OUT", "--weights-from", "HERE"], "no --config given, and .* is in no run folder"),
        (["--config", "CONFIG", "--out", "CONFIG"], "is a file; give a folder"),
        (["--config", "CONFIG", "--out", "OUT", "--prompts", "nothing.txt"], "--prompts nothing.txt is no file"),
        (["--config", "CONFIG", "--out", "OUT", "--num-images-per-prompt", "0"], "must be at least 1"),
        (["--config", "CONFIG", "--out", "OUT", "--weights", "current"], "needs --weights-from RUN"),
        (["--config", "CONFIG", "--out", "OUT", "--baselin"], "unknown option --baselin. Did you mean '--baseline'"),
    ],
)
def test_mistakes_on_the_command_line_are_named(
    make_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], message: str
):
    file = tmp_path / "config.json"
    file.write_text(json.dumps(config_to_dict(make_config())))
    (tmp_path / "plain").mkdir()
    places = {"CONFIG": str(file), "OUT": str(tmp_path / "out"), "HERE": str(tmp_path / "plain/x")}
    monkeypatch.setattr("sys.argv", ["awm-eval", *(places.get(option, option) for option in options)])
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    try:
        if "HERE" in options:
            file.rename(tmp_path / "other.json")
        with pytest.raises(SystemExit, match=message):
            evaluate.main()
    finally:
        for number, handler in zip((signal.SIGINT, signal.SIGTERM), handlers, strict=True):
            signal.signal(number, handler)
