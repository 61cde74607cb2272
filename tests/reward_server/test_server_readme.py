"""The reward of one's own that reward_server/README.md shows, as it stands there, run by a real server."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from reward_server.check import main as check
from reward_server.settings import ScorerSettings, Settings, load_settings
from tests.reward_server.serving import wait_for

README = (Path(__file__).parents[2] / "reward_server" / "README.md").read_text()


def block(start: str) -> str:
    """The code block that begins with ``start``."""
    (found,) = [code for code in re.findall(r"```\w+\n(.*?)```", README, re.DOTALL) if code.startswith(start)]
    return str(found)


def test_the_example_runs_as_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "brightness.py").write_text(block("# brightness.py"))
    (tmp_path / "server.yaml").write_text(block("scorers:\n  brightness"))
    url_file = tmp_path / "url"
    command = [sys.executable, "-m", "reward_server.cli", "--config", str(tmp_path / "server.yaml"), "--port", "0"]
    with subprocess.Popen([*command, "--url-file", str(url_file)], stdout=subprocess.DEVNULL) as server:
        wait_for(url_file.exists)
        check([url_file.read_text().strip()])
        server.terminate()
    assert re.search(r"brightness\s+ok\s+0\.502", capsys.readouterr().out)


def test_the_yaml_shows_every_key_and_its_default(tmp_path: Path) -> None:
    text = block("host: 127.0.0.1").replace("/envs/detector/bin/python", sys.executable)
    (tmp_path / "server.yaml").write_text(text)
    given = load_settings(tmp_path / "server.yaml")
    settings = Settings(**{key: value for key, value in given.items() if key not in ("host", "port")})
    assert given["host"] == "127.0.0.1" and given["port"] == 18080
    scorer, default = settings.scorers["geneval"], ScorerSettings("geneval")
    assert settings == Settings({"geneval": scorer})
    for key in ("workers_per_device", "batch_images", "batch_wait_s", "timeout_s", "start_timeout_s"):
        assert getattr(scorer, key) == getattr(default, key), key
    assert all(f"\n    {key}:" in text for key in ScorerSettings.__dataclass_fields__)
