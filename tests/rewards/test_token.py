"""A token is sent as it is meant, or refused at once; nothing ever repeats it."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable

import pytest
from ml_collections import ConfigDict

from awm.building import build_reward
from awm.interfaces import Reward
from awm.rewards.errors import RewardError
from awm.rewards.remote import RemoteReward
from awm.rewards.token import clean_token
from reward_server.service import Service
from tests.reward_server.serving import serve, settings
from tests.rewards.answers import ask, images

SECRET = "hunter2hunter2"


def test_white_space_around_a_token_is_dropped() -> None:
    assert clean_token(f" {SECRET}\r\n") == SECRET
    assert clean_token("\n") == clean_token("") == ""


@pytest.mark.parametrize(
    "bad", [f"{SECRET}\nX-Header: 1", f"{SECRET}é", f"\x00{SECRET}", f"“{SECRET}”", f"{SECRET}\t1"]
)
def test_a_token_that_cannot_be_sent_is_refused_at_construction(
    bad: str, make_config: Callable[..., ConfigDict], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWM_REWARD_TOKEN", bad) if "\x00" not in bad else None
    config = make_config(reward_server__token=bad if "\x00" in bad else "")
    with config.unlocked():
        config.reward_fn = ConfigDict({"geneval": 1.0})
    makes: list[Callable[[], Reward]] = [
        lambda: RemoteReward(["http://127.0.0.1:9"], "fake", token=bad),
        lambda: build_reward(config),
    ]
    for make in makes:
        with pytest.raises(ValueError, match="AWM_REWARD_TOKEN") as error:
            make()
        shown = "".join(traceback.format_exception_only(error.value)) + repr(error.value)
        assert SECRET not in shown and error.value.__context__ is None


def test_a_token_from_a_file_with_a_line_end_works_and_is_never_said(caplog: pytest.LogCaptureFixture) -> None:
    with serve(Service(settings("fake")), token=SECRET) as url, caplog.at_level(logging.DEBUG):
        assert ask(RemoteReward([url], "fake", token=f"{SECRET}\n"), images(0.2)).valid.all()
        with pytest.raises(RewardError, match="HTTP 401") as refused:
            ask(RemoteReward([url], "fake", token=f"{SECRET}x"), images(0.2))
    gone = RemoteReward([url], "fake", token=SECRET, server_wait_s=0.0)
    with pytest.raises(RewardError, match="no answer") as unreachable:
        ask(gone, images(0.2))
    for error in (refused, unreachable):
        assert SECRET not in "".join(traceback.format_exception(error.value))
    assert caplog.records and not any(SECRET in record.getMessage() for record in caplog.records)
