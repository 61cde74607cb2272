"""The console command as a process: it announces itself, refuses danger, and leaves nothing behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from reward_server import process
from reward_server.cli import _parser, _settings, main
from reward_server.service import Service
from tests.reward_server.serving import FAKES, serve, settings, wait_for

SHIPPED = Path(__file__).parents[2] / "reward_server" / "server.yaml"
COMMAND = [sys.executable, "-m", "reward_server.cli", "--port", "0"]
PATIENCE_S = 90.0  # loading Python on a busy machine


@pytest.fixture
def no_token(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("AWM_REWARD_TOKEN", raising=False)
    yield


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_end_it_cleanly(number: signal.Signals, tmp_path: Path) -> None:
    url_file = tmp_path / "new folder" / "url"
    with subprocess.Popen([*COMMAND, "--url-file", str(url_file)], stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        line = server.stdout.readline()
        assert line.startswith("listening on http://127.0.0.1:")
        wait_for(url_file.exists, PATIENCE_S)
        url = url_file.read_text().strip()
        assert line == f"listening on {url}\n"
        assert httpx.get(url + "/readyz", timeout=PATIENCE_S).json() == {"ready": True}
        server.send_signal(number)
        assert server.wait(PATIENCE_S) == 0
        assert not url_file.exists()
    with pytest.raises(httpx.ConnectError):
        httpx.get(url + "/livez")


def test_it_does_not_outlive_a_killed_parent(tmp_path: Path) -> None:
    url_file = tmp_path / "url"
    command = [*COMMAND, "--exit-with-parent", "--url-file", str(url_file)]
    launcher = (
        f"import subprocess; print(subprocess.Popen({command!r}, stdout=subprocess.DEVNULL).pid, flush=True); input()"
    )
    with subprocess.Popen([sys.executable, "-c", launcher], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        server = int(parent.stdout.readline())
        wait_for(url_file.exists, PATIENCE_S)
        parent.kill()
    wait_for(lambda: not psutil.pid_exists(server) or psutil.Process(server).status() == psutil.STATUS_ZOMBIE)


@pytest.mark.usefixtures("no_token")
@pytest.mark.parametrize("host", ["0.0.0.0", "::", "some.host"])
def test_a_public_address_needs_a_token(host: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(["--host", host])
    assert exit_.value.code == 2
    assert f"refusing to listen on {host} without a token" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--scorer", "genevall"], "geneval"),
        (["--detector", "eyes"], "shapes"),
        (["--port", "70000"], "0 to 65535"),
        (["--max-queued", "10"], "raise it to 256"),
        (["--config", "nowhere.yaml"], "cannot read nowhere.yaml: No such file"),
        (["--config", "nowhere.yaml", "--scorer", "geneval"], "names the scorers and their options"),
        (["--only", "geneval"], "--only chooses among the scorers of a --config"),
        (["--config", str(SHIPPED), "--only", "vlm"], "has the scorers geneval, ocr, pickscore; add vlm there"),
        (["--option", "geneval.detector"], "expected SCORER.KEY=VALUE"),
        (["--option", "ocr.engine=rapidocr"], "with SCORER among geneval"),
        (["--device", "gpu0"], "expected a list of cpu or cuda:N"),
    ],
)
def test_wrong_arguments_say_what_is_valid(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(arguments)
    assert exit_.value.code == 2
    assert message in capsys.readouterr().err


def test_only_some_scorers_of_a_file() -> None:
    options = _parser().parse_args(["--config", str(SHIPPED), "--only", "pickscore", "--only", "geneval"])
    settings, host, port = _settings(options)
    assert list(settings.scorers) == ["pickscore", "geneval"] and (host, port) == ("127.0.0.1", 18080)


def test_a_taken_port_is_an_error() -> None:
    with process.bind("127.0.0.1", 0) as taken, pytest.raises(SystemExit, match="choose another --port, or 0"):
        main(["--port", str(taken.getsockname()[1])])


def test_a_scorer_that_cannot_load_ends_the_server(tmp_path: Path) -> None:
    url_file = tmp_path / "url"
    command = [*COMMAND, "--url-file", str(url_file), "--option", "geneval.detector=eyes"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert ended.returncode == 1
    assert not url_file.exists()
    assert "cannot start: scorer geneval: worker 0 did not start: ValueError: unknown detector 'eyes'" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_yaml_file_and_the_check_of_what_it_started(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A user's own scorer, from a file named relative to the YAML."""
    (tmp_path / "mine.py").write_text(FAKES.read_text())
    config, url_file = tmp_path / "server.yaml", tmp_path / "url"
    config.write_text(
        json.dumps(
            {
                "port": 0,
                "scorers": {
                    "mine": {"scorer": "mine.py:Fake", "options": {"version": "7"}, "workers_per_device": 2},
                    "geneval": {},
                },
            }
        )
    )
    command = [sys.executable, "-m", "reward_server.cli", "--config", str(config), "--url-file", str(url_file)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as server:
        wait_for(url_file.exists, PATIENCE_S)
        main(["check", url_file.read_text().strip()])
        server.terminate()
        assert server.wait(PATIENCE_S) == 0
    table = capsys.readouterr().out.splitlines()
    assert table[0].split()[:2] == ["reward", "state"]
    mine, geneval = (line.split() for line in table[1:])
    assert mine[:3] == ["mine", "ok", "0.502"] and mine[4] == "2"
    assert geneval[:3] == ["geneval", "ok", "0"]


def test_check_fails_for_a_reward_that_fails(capsys: pytest.CaptureFixture[str]) -> None:
    with serve(Service(settings("fake", options={"fake": {"class": "FailsLater"}}))) as url:
        with pytest.raises(SystemExit) as exit_:
            main(["check", url])
        assert exit_.value.code == 1
    assert "8 of 8 failed: RuntimeError: too large for me" in capsys.readouterr().out


@pytest.mark.usefixtures("no_token")
def test_check_of_what_is_no_server_and_of_one_with_a_token() -> None:
    with pytest.raises(SystemExit, match="does not answer"):
        main(["check", "http://127.0.0.1:9"])
    with serve(Service(settings("fake")), token="secret") as url, pytest.raises(SystemExit, match="asks for a token"):
        main(["check", url])


def test_conversions_say_what_is_wrong_with_the_file(tmp_path: Path) -> None:
    (tmp_path / "model.pt").write_bytes(b"junk")
    for command in ("convert-mask2former", "convert-open-clip"):
        with pytest.raises(SystemExit, match="was not converted"):
            main([command, str(tmp_path / "model.pt"), str(tmp_path / "out")])
        assert not (tmp_path / "out").exists()


def test_help_is_complete(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    text = capsys.readouterr().out
    assert all(
        word in text
        for word in ("--scorer", "--config", "--url-file", "--exit-with-parent", "AWM_REWARD_TOKEN", "check URL")
    )


@pytest.fixture(autouse=True)
def signal_handlers() -> Iterator[None]:
    """Give pytest its handlers back: ``main`` installs its own."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_urls_of_both_address_families() -> None:
    with process.bind("127.0.0.1", 0) as listener:
        assert process.url_of(listener) == f"http://127.0.0.1:{listener.getsockname()[1]}"
    assert [process.is_loopback(host) for host in ("127.0.0.1", "::1", "localhost", "0.0.0.0", "10.0.0.1")] == [
        *[True] * 3,
        *[False] * 2,
    ]


def test_files_appear_complete(tmp_path: Path) -> None:
    process.write_atomically(tmp_path / "a" / "url", "x\n")
    assert os.listdir(tmp_path / "a") == ["url"]
