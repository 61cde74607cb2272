"""``awm-lab sequences``: what it writes, that it continues from its cache, and bad input."""

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from awm.lab.cli import main
from awm.lab.sequences import command, evaluation, prepare
from awm.lab.sequences.cache import Cache
from awm.lab.sequences.data import measure, sample_sequences
from awm.lab.sequences.reward_model import correlation, train_reward_model
from awm.lab.sequences.settings import METHODS, Settings, check_method
from awm.lab.sequences.table import format_table, mean_curves, summarise
from awm.lab.sequences.world import World


def test_a_second_call_continues_from_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(*methods: str) -> dict[str, dict[str, Any]]:
        words = ["sequences", "--quick", "--seeds", "1", "--out", str(tmp_path / "out"), "--cache", str(tmp_path / "c")]
        assert main([*words, "--methods", *methods]) == 0
        results: dict[str, dict[str, Any]] = json.loads((tmp_path / "out" / "sequences.json").read_text())["results"]
        return results

    first = run("pretrained", "linear_neg")
    assert "training two reward models" in capsys.readouterr().out

    def never(*_: object, **__: object) -> None:
        raise AssertionError("computed again")

    monkeypatch.setattr(prepare, "pretrain", never)
    monkeypatch.setattr(prepare, "train_reward_model", never)
    monkeypatch.setattr(evaluation, "finetune", never)
    second = run("linear_neg", "best_of_n")
    assert second["runs"]["linear_neg"] == first["runs"]["linear_neg"]
    assert {"commit", "cpu_seconds"} < first["runs"]["linear_neg"][0].keys()
    assert set(second["summary"]) == {"linear_neg", "best_of_n"}
    assert (tmp_path / "out" / "sequences.png").read_bytes().startswith(b"\x89PNG")
    assert "linear_neg" in capsys.readouterr().out


def test_a_method_whose_loss_is_not_finite_leaves_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made: list[str] = []

    def run_method(bench: object, method: str, *, seed: int) -> dict[str, Any]:
        made.append(f"{method}-{seed}")
        if method == "exp" and seed == 1:
            raise FloatingPointError("the loss is not finite")
        return {"final": dict.fromkeys(command.SHOWN, 1.0)}

    monkeypatch.setattr(command, "run_method", run_method)
    bench: Any = SimpleNamespace(settings=Settings())
    runs, stopped = command.run_methods(bench, Cache(tmp_path), ["exp", "square"], 3)
    assert made == ["exp-0", "exp-1", "square-0", "square-1", "square-2"]
    assert list(runs) == ["square"] and stopped == {"exp": "the loss is not finite"}
    assert "exp stopped" in capsys.readouterr().err
    monkeypatch.setattr(command, "prepare", lambda *_, **__: bench)
    words = ["sequences", "--methods", "exp", "--seeds", "2", "--out", str(tmp_path), "--cache", str(tmp_path)]
    assert main(words) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: no method finished") and error.endswith("the loss is not finite")


def test_a_mistake_of_the_user_is_a_sentence(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["sequences", "--methods", "cubic", "--out", str(tmp_path)]) == 1
    error = capsys.readouterr().err
    assert "unknown method 'cubic'" in error and "square_neg" in error
    assert not list(tmp_path.iterdir())


def test_table_by_hand() -> None:
    def runs(*predicted: float) -> list[dict[str, Any]]:
        names = ("held_out", "true", "nll_pretrained", "kmer_correlation", "hamming", "gc")
        return [
            {
                "final": {"predicted": value, **dict.fromkeys(names, 0.5)},
                "updates": [{"predicted": value}, {"predicted": 1.0}],
            }
            for value in predicted
        ]

    rows = summarise({"pretrained": runs(0.0, 0.2), "exp": runs(4.0, 4.0), "square": runs(4.5, 5.5)})
    assert rows["square"]["predicted"]["mean"] == 5.0
    assert rows["square"]["predicted"]["std"] == pytest.approx(math.sqrt(0.5))
    assert rows["square"]["predicted_while_learning"]["mean"] == 3.0
    assert rows["square"]["improvement"] == pytest.approx(0.25)
    assert "improvement" not in rows["exp"] and "over_exp" not in rows["exp"]
    assert rows["pretrained"]["over_exp"] == pytest.approx(-0.975)
    curves = mean_curves({"square": runs(4.5, 5.5), "pretrained": [{"final": {}, "updates": []}]})
    assert curves == {"square": {"predicted": [5.0, 1.0]}}
    last = format_table(rows).splitlines()[-1]
    assert last.split()[:2] == ["square", "+25.0%"] and "5.000 ±0.707" in last and last.split()[-1] == "+25.0%"
    unlike = format_table({**rows, "wd1": rows["exp"]}).splitlines()
    assert unlike[-2].startswith("wd1 *") and unlike[-1].startswith("* temperature as published")


def test_methods_and_weightings() -> None:
    settings = Settings()
    assert settings.weighing("square_neg").weighting.floor == -0.5
    assert settings.weighing("square").weighting.floor == 0.0
    assert [check_method(name) for name in METHODS] == list(METHODS)
    with pytest.raises(ValueError, match="unknown method 'best_of_n'"):
        settings.weighing("best_of_n")


def test_the_reward_model_learns_activity() -> None:
    generator = torch.Generator().manual_seed(0)
    world = World()
    data = measure(world, sample_sequences(world, 1500, generator), generator)
    model = train_reward_model(data, epochs=4, seed=0)
    tokens = sample_sequences(world, 400, generator)
    assert correlation(model.score(tokens), world.activity(tokens)) > 0.4
    with pytest.raises(ValueError, match=r"letters are 0\.\.3"):
        model.score(torch.full((1, 64), 4))
