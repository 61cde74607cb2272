"""The client against real servers: what it tries again, what it waits for, and what it says when it gives up."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch

from awm.rewards import patience
from awm.rewards.collect import to_pixels
from awm.rewards.errors import RewardError
from awm.rewards.mixture import MixtureReward
from awm.rewards.remote import RemoteReward
from reward_server.service import Service
from reward_server.wire import Limits
from tests.reward_server.serving import Gate, free_port, serve, settings
from tests.rewards.answers import Liar, ask, entry, images


@pytest.fixture(autouse=True)
def quick_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "FIRST_PAUSE_S", 0.05)
    monkeypatch.setattr(patience, "LONGEST_PAUSE_S", 0.2)


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with serve(Service(settings("fake", "geneval"))) as address:
        yield address


@pytest.mark.parametrize("image_format", [None, "png", "webp"])
def test_scores_come_back_in_order_through_many_requests(url: str, image_format: str | None) -> None:
    reward = RemoteReward([url], "fake", max_images=3, image_format=image_format)
    levels = [i / 255 for i in range(0, 200, 8)]
    rewards = ask(reward, images(*levels))
    torch.testing.assert_close(rewards.total, torch.tensor(levels))
    torch.testing.assert_close(rewards.parts["fake.twice"], 2 * torch.tensor(levels))
    assert rewards.valid.all() and rewards.total.dtype == torch.float32


def test_a_dotted_name_selects_a_metric(url: str) -> None:
    rewards = ask(RemoteReward([url], "fake.twice"), images(0.2))
    assert set(rewards.parts) == {"fake", "fake.twice"}
    torch.testing.assert_close(rewards.total, torch.tensor([0.4]))


def test_no_images_no_request() -> None:
    rewards = ask(RemoteReward(["http://127.0.0.1:9"], "fake"), torch.zeros(0, 3, 8, 8))
    assert len(rewards.total) == len(rewards.valid) == 0


def test_an_item_error_is_masked_and_said_once(url: str, caplog: pytest.LogCaptureFixture) -> None:
    reward = RemoteReward([url], "fake.twice")
    with caplog.at_level(logging.WARNING, "awm.rewards"):
        for _ in range(2):
            rewards = ask(reward, images(0.2, 0.2, 0.2), ["", "poison", ""])
    assert rewards.valid.tolist() == [True, False, True]
    assert rewards.total.isnan().tolist() == [False, True, False]
    assert rewards.parts["fake"].isnan().tolist() == [False, True, False]
    (record,) = [r for r in caplog.records if r.name.startswith("awm.rewards")]
    assert "1 of 3 images" in record.getMessage() and "swallowed poison" in record.getMessage()


def test_nothing_but_errors_is_nothing_but_nan(url: str) -> None:
    rewards = ask(RemoteReward([url], "fake.twice"), images(0.2), ["poison"])
    assert rewards.total.isnan().all() and not rewards.valid.any()


def test_temporary_item_errors_are_tried_again(url: str) -> None:
    rewards = ask(RemoteReward([url], "fake"), images(0.2, 0.6), ["flaky", ""])
    torch.testing.assert_close(rewards.total, torch.tensor([0.2, 0.6]))


def test_patience_with_item_errors_ends(url: str) -> None:
    rewards = ask(RemoteReward([url], "fake", max_retries=0), images(0.2), ["flaky"])
    assert not rewards.valid.any()


def test_counts_must_agree(url: str) -> None:
    with pytest.raises(ValueError, match="2 images, 1 texts and 2 metadata"):
        RemoteReward([url], "fake")(images(0.1, 0.2), [""], [{}, {}])


def test_a_programming_error_is_raised_at_once(url: str) -> None:
    started = time.monotonic()
    with pytest.raises(RewardError, match="HTTP 422: this server has no reward 'pickscore'; it has fake, geneval"):
        ask(RemoteReward([url], "pickscore"), images(0.2))
    assert time.monotonic() - started < 60  # it would wait for minutes if this were worth another try


def test_check_accepts_what_is_there(url: str) -> None:
    RemoteReward([url], "fake").check()
    RemoteReward([url], "geneval.strict").check()


def test_check_says_which_scorers_there_are(url: str) -> None:
    with pytest.raises(RewardError, match=r"no scorer 'genevall'; it has fake, geneval. Did you mean 'geneval'\?"):
        RemoteReward([url], "genevall").check()
    with pytest.raises(RewardError, match=r"choose one of geneval, geneval.correct, .* Did you mean 'strict'\?"):
        RemoteReward([url], "geneval.strickt").check()


def test_check_says_how_to_start_a_missing_server() -> None:
    port = free_port()
    with pytest.raises(RewardError) as error:
        RemoteReward([f"http://127.0.0.1:{port}"], "geneval.strict").check()
    assert f"awm-reward-server --scorer geneval --port {port}" in str(error.value)
    assert error.value.name == "geneval.strict" and "Connection refused" in error.value.cause


def test_scoring_gives_up_on_a_missing_server_with_the_same_advice() -> None:
    reward = RemoteReward([f"http://127.0.0.1:{free_port()}"], "fake", server_wait_s=0.3, timeout_s=0.3)
    with pytest.raises(RewardError, match="awm-reward-server --scorer fake"):
        ask(reward, images(0.2))


@pytest.mark.parametrize("bad", ["127.0.0.1:18080", "ftp://host", "http://"])
def test_a_url_that_is_none(bad: str) -> None:
    with pytest.raises(ValueError, match="expected a URL such as"):
        RemoteReward([bad], "fake")


def test_wrong_token_says_what_to_set() -> None:
    with serve(Service(settings("fake")), token="secret") as url:
        ask(RemoteReward([url], "fake", token="secret"), images(0.2))
        for attempt in (
            lambda: RemoteReward([url], "fake", token="x").check(),
            lambda: ask(RemoteReward([url], "fake"), images(0.2)),
        ):
            with pytest.raises(RewardError, match=r"HTTP 401.*AWM_REWARD_TOKEN"):
                attempt()


def test_an_overloaded_server_is_asked_again(tmp_path: Path) -> None:
    gate = Gate(tmp_path)
    options = {"fake": gate.options}
    with serve(Service(settings("fake", options=options, limits=Limits(max_items=1), max_queued=1))) as url:
        blocker = threading.Thread(target=ask, args=(RemoteReward([url], "fake"), images(0.2), ["wait"]))
        blocker.start()
        gate.wait_until_entered()
        threading.Timer(0.5, gate.open).start()
        rewards = ask(RemoteReward([url], "fake"), images(0.6))
        blocker.join()
    torch.testing.assert_close(rewards.total, torch.tensor([0.6]))


def test_overload_without_end_is_an_error(tmp_path: Path) -> None:
    gate = Gate(tmp_path)
    options = {"fake": gate.options}
    with serve(Service(settings("fake", options=options, limits=Limits(max_items=1), max_queued=1))) as url:
        blocker = threading.Thread(target=ask, args=(RemoteReward([url], "fake"), images(0.2), ["wait"]))
        blocker.start()
        gate.wait_until_entered()
        with pytest.raises(RewardError, match="HTTP 503: 1 images are waiting"):
            ask(RemoteReward([url], "fake", server_wait_s=0.5), images(0.6))
        gate.open()
        blocker.join()


def test_a_restarting_server_is_waited_for() -> None:
    port, results = free_port(), []
    reward = RemoteReward([f"http://127.0.0.1:{port}"], "fake")
    with serve(Service(settings("fake")), port=port):
        ask(reward, images(0.2))
    waiting = threading.Thread(target=lambda: results.append(ask(reward, images(0.4))))
    waiting.start()
    time.sleep(0.3)
    assert waiting.is_alive()
    with serve(Service(settings("fake")), port=port):
        waiting.join(60)
    torch.testing.assert_close(results[0].total, torch.tensor([0.4]))


@pytest.mark.parametrize("allowed", [False, True])
def test_a_server_that_comes_back_with_another_version(allowed: bool) -> None:
    port = free_port()
    reward = RemoteReward([f"http://127.0.0.1:{port}"], "fake", allow_changed_scorer=allowed)
    with serve(Service(settings("fake")), port=port):
        reward.check()
    with serve(Service(settings("fake", options={"fake": {"version": "2"}})), port=port):
        if allowed:
            assert ask(reward, images(0.4)).valid.all()
        else:
            for _ in range(2):
                with pytest.raises(RewardError, match=r"versions changed.*reward_server\.allow_changed_scorer=True"):
                    ask(reward, images(0.4))


def test_requests_spread_over_servers_and_survive_one(tmp_path: Path) -> None:
    gates = [Gate(tmp_path / name) for name in "ab"]
    for gate in gates:
        gate.folder.mkdir()
    services = [Service(settings("fake", options={"fake": gate.options})) for gate in gates]
    with ExitStack() as first, ExitStack() as second:
        urls = [first.enter_context(serve(services[0])), second.enter_context(serve(services[1]))]
        reward = RemoteReward(urls, "fake", max_images=1)
        assert ask(reward, images(*[0.2] * 16)).valid.all()
        assert min(sum(gate.batches()) for gate in gates) > 1
        first.close()
        assert ask(reward, images(*[0.2] * 16)).valid.all()


def test_names_of_one_scorer_share_a_request(tmp_path: Path) -> None:
    gate = Gate(tmp_path)
    with serve(Service(settings("fake", options={"fake": gate.options}))) as url:
        pair = {name: (RemoteReward([url], name), weight) for name, weight in [("fake", 1.0), ("fake.twice", 0.5)]}
        rewards = ask(MixtureReward(pair), images(0.2, 0.4))
        assert gate.batches() == [1, 2]
    torch.testing.assert_close(rewards.total, torch.tensor([0.4, 0.8]))


@pytest.mark.parametrize(
    ("status", "results", "message"),
    [
        (200, None, "not a reward server's"),
        (200, [entry(0, 1.0)], "asked for 2 images, got 1"),
        (200, [entry(0, 1.0), entry(0, 1.0)], "asked for 2 images"),
        (200, [entry(0, 1.0), entry(1, float("nan"))], "finite number"),
        (200, [entry(0, 1.0), {"id": 1, "rewards": {}}], "lacks the reward"),
    ],
)
def test_a_wrong_answer_is_an_error_and_not_tried_again(status: int, results: Any, message: str) -> None:
    handler = type("Prepared", (Liar,), {"results": results, "status": status})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with pytest.raises(RewardError, match=message):
            ask(RemoteReward([f"http://127.0.0.1:{server.server_port}"], "fake"), images(0.1, 0.2))
        server.shutdown()


def test_a_500_of_the_server_itself_is_final() -> None:
    handler = type("Prepared", (Liar,), {"status": 500, "error": "internal"})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        reward = RemoteReward([f"http://127.0.0.1:{server.server_port}"], "fake")
        with pytest.raises(RewardError, match="HTTP 500: a defect"):
            ask(reward, images(0.1))
        server.shutdown()


@pytest.mark.parametrize(("max_retries", "succeeds"), [(3, True), (2, False)])
def test_a_500_of_a_proxy_is_tried_again(max_retries: int, succeeds: bool) -> None:
    handler = type("Prepared", (Liar,), {"results": [entry(0, 0.5)], "failures": 3})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        reward = RemoteReward([f"http://127.0.0.1:{server.server_port}"], "fake", max_retries=max_retries)
        if succeeds:
            assert ask(reward, images(0.1)).total.tolist() == [0.5]
        else:
            with pytest.raises(RewardError, match="HTTP 500"):
                ask(reward, images(0.1))
        server.shutdown()


def test_results_are_put_in_order_by_id() -> None:
    handler = type("Prepared", (Liar,), {"results": [entry(1, 0.5), entry(0, 0.25)]})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        rewards = ask(RemoteReward([f"http://127.0.0.1:{server.server_port}"], "fake"), images(0.1, 0.2))
        server.shutdown()
    assert rewards.total.tolist() == [0.25, 0.5]


def test_a_score_too_large_for_float32_is_masked_and_said(caplog: pytest.LogCaptureFixture) -> None:
    handler = type("Prepared", (Liar,), {"results": [entry(0, 1e39), entry(1, 0.25)]})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server, caplog.at_level(logging.WARNING, "awm.rewards"):
        threading.Thread(target=server.serve_forever, daemon=True).start()
        rewards = ask(RemoteReward([f"http://127.0.0.1:{server.server_port}"], "fake"), images(0.1, 0.2))
        server.shutdown()
    assert rewards.valid.tolist() == [False, True] and rewards.total.isnan().tolist() == [True, False]
    assert "no finite float32" in caplog.text


def test_quantise_rounds_once_and_refuses_nonsense() -> None:
    assert to_pixels(images(-1.0, 0.5 / 255, 0.49 / 255, 0.999, 2.0))[:, 0, 0, 0].tolist() == [0, 0, 0, 255, 255]
    assert to_pixels(images(1.51 / 255)).ravel()[0] == 2
    with pytest.raises(ValueError, match="NaN"):
        to_pixels(images(float("nan")))
    with pytest.raises(ValueError, match=r"expected \[B, 3, H, W\]"):
        to_pixels(torch.zeros(2, 1, 8, 8))
