"""server.yaml: every wrong key says what it holds and what it may hold."""

from __future__ import annotations

from pathlib import Path

import pytest

from reward_server.settings import ScorerSettings, Settings, SettingsError, load_settings, token_from_environment
from reward_server.wire import Limits
from tests.reward_server.serving import FAKES

SHIPPED = Path(__file__).parents[2] / "reward_server" / "server.yaml"


def load(tmp_path: Path, text: str) -> Settings:
    path = tmp_path / "server.yaml"
    path.write_text(text)
    given = load_settings(path)
    return Settings(**{key: value for key, value in given.items() if key not in ("host", "port")})


def test_everything_can_be_said(tmp_path: Path) -> None:
    settings = load(
        tmp_path,
        """
        host: 0.0.0.0
        port: 9000
        deadline_s: 50
        max_queued: 1000
        limits: {max_items: 32, max_pixels: 1048576}
        scorers:
          geneval:
          second:
            scorer: geneval
            options: {detector: shapes}
            python: ~/env/bin/../bin/python
            devices: [cuda:0, "cuda:1"]
            workers_per_device: 3
            batch_images: 8
            batch_wait_s: 0
            timeout_s: 20
            start_timeout_s: 5.5
            env: {OMP_NUM_THREADS: "4"}
        """.replace("~/env/bin/../bin/python", "/usr/bin/env"),
    )
    assert settings.deadline_s == 50.0 and settings.max_queued == 1000
    assert settings.limits == Limits(max_items=32, max_pixels=1 << 20)
    assert settings.scorers["geneval"] == ScorerSettings("geneval")
    assert settings.scorers["second"] == ScorerSettings(
        scorer="geneval",
        options={"detector": "shapes"},
        python="/usr/bin/env",
        devices=("cuda:0", "cuda:1"),
        workers_per_device=3,
        batch_images=8,
        batch_wait_s=0.0,
        timeout_s=20.0,
        start_timeout_s=5.5,
        env={"OMP_NUM_THREADS": "4"},
    )


def test_the_shipped_file_is_valid() -> None:
    assert list(load_settings(SHIPPED)["scorers"]) == ["geneval", "ocr", "pickscore"]


def test_paths_are_relative_to_the_file(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(FAKES.read_text())
    settings = load(tmp_path, "scorers: {mine: {scorer: 'mine.py:Fake'}}")
    assert settings.scorers["mine"].scorer == f"{tmp_path}/mine.py:Fake"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("scorers: [geneval]", "expected a key `scorers` with one entry per reward"),
        ("geneval: {}", "expected a key `scorers`"),
        ("scorers: {}", "no scorer is given; choose among .*geneval"),
        ("scorers: {genevall: {}}", r"scorers.genevall: unknown scorer 'genevall'; known: .* Did you mean 'geneval'\?"),
        ("scorers: {a.b: {scorer: geneval}}", r"scorers.a.b: a reward's name is letters, digits, _ and -"),
        (
            "scorers: {geneval: {device: cpu}}",
            r"unknown key scorers.geneval.device; known: .* Did you mean 'devices'\?",
        ),
        ("scorers: {geneval: {devices: cpu}}", "scorers.geneval.devices is 'cpu'; expected a list of strings"),
        (
            "scorers: {geneval: {devices: [gpu]}}",
            r"scorers.geneval.devices=\['gpu'\]; expected a list of cpu or cuda:N",
        ),
        ("scorers: {geneval: {batch_images: many}}", "scorers.geneval.batch_images is 'many'; expected an integer"),
        ("scorers: {geneval: {batch_images: true}}", "is True; expected an integer"),
        ("scorers: {geneval: {batch_images: 0}}", "batch_images=0; expected a number above 0"),
        ("scorers: {geneval: {timeout_s: .nan}}", "timeout_s=nan; expected seconds, above 0"),
        ("scorers: {geneval: {batch_wait_s: -1}}", "batch_wait_s=-1.0; expected seconds, 0 to 604800"),
        ("scorers: {geneval: {python: nowhere/python}}", "nowhere/python is no executable"),
        ("scorers: {geneval: {options: [1]}}", r"scorers.geneval.options is \[1\]; expected a dictionary"),
        ("scorers: {mine: {scorer: 'mine.py:Mine'}}", "there is no file .*mine.py"),
        ("scorers: {mine: {scorer: 'mine:a b'}}", "names no class; expected path/to/file.py:Class"),
        ("scorers: {geneval: {}}\nlimit: {}", r"unknown key limit; known: .* Did you mean 'limits'\?"),
        ("scorers: {geneval: {}}\nlimits: {max_items: 0}", "limits.max_items=0; expected a number above 0"),
        ("scorers: {geneval: {}}\nlimits: {max_item: 1}", "unknown key limits.max_item"),
        ("scorers: {geneval: {}}\nport: '80'", "port is '80'; expected an integer"),
        ("scorers: {geneval: {}}\nmax_queued: 10", "max_queued=10 cannot hold one request of 256 images"),
        ("scorers: {geneval: {}", "is not YAML"),
        ("scorers: {geneval: {}}\nport: 99999", r"port=99999; expected 0 \(any free one\) to 65535"),
        ("scorers: {geneval: {}}\n3: 4", "unknown key 3"),
        ("scorers: {geneval: {}, geneval: {}}", "the key 'geneval' stands there twice"),
        ("scorers: {geneval: {timeout_s: .inf}}", "timeout_s=inf; expected seconds, above 0 and at most 604800"),
        ("scorers: {geneval: {batch_wait_s: .inf}}", "batch_wait_s=inf; expected seconds, 0 to 604800"),
        ("scorers: {geneval: {env: {OMP_NUM_THREADS: 4}}}", 'is not text; put it into quotes: OMP_NUM_THREADS: "4"'),
        ("scorers: {geneval: {options: {revision: 2024-05-01}}}", "put it into quotes if it is a name"),
        ("scorers: {geneval: {options: {weights: !!binary aGk=}}}", "something else than text"),
        ("!!python/object/apply:os.system [ls]", "is not YAML"),
    ],
)
def test_what_is_wrong_is_said(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        load(tmp_path, text)


def test_the_token_may_end_in_a_newline_and_is_never_quoted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWM_REWARD_TOKEN", "s3cret\n")
    assert token_from_environment() == "s3cret"
    monkeypatch.setenv("AWM_REWARD_TOKEN", "  ")
    assert token_from_environment() is None
    for bad in ("s3cr\u00e9t", "s3\ncret"):
        monkeypatch.setenv("AWM_REWARD_TOKEN", bad)
        with pytest.raises(SettingsError, match="no HTTP header can carry") as error:
            token_from_environment()
        assert "s3" not in str(error.value)
