"""Pauses grow, end with the time that is left, and end at once when somebody says stop."""

from __future__ import annotations

import threading
import time

from awm.rewards.patience import Patience


def test_patience_waits_longer_each_time_until_time_is_up() -> None:
    patience = Patience(time.monotonic() + 1.2, retries=3)
    started = time.monotonic()
    assert patience.pause() and patience.pause()
    assert 0.375 <= time.monotonic() - started < 1.2
    assert not patience.pause(at_least_s=1.2)
    assert patience.pauses == 2


def test_a_stop_ends_a_pause_and_every_later_one_at_once() -> None:
    stop = threading.Event()
    patience = Patience(time.monotonic() + 1000, retries=3, stops=(threading.Event(), stop))
    threading.Timer(0.2, stop.set).start()
    started = time.monotonic()
    assert not patience.pause(at_least_s=500)
    assert not patience.pause(at_least_s=100)
    assert time.monotonic() - started < 30


def test_pauses_are_paid_for_from_what_is_left_of_the_waiting() -> None:
    patience = Patience(time.monotonic() + 1000, retries=3, wait_s=0.3)
    assert patience.pause() and patience.pauses == 1  # 0.125 to 0.25 s
    assert 0.05 <= patience.wait_s <= 0.175
    assert not patience.pause() and patience.lasts()  # 0.25 s at least


def test_no_waiting_at_all() -> None:
    patience = Patience(time.monotonic() + 1000, retries=3, wait_s=0.0)
    assert patience.lasts() and not patience.pause()


def test_nothing_lasts_beyond_the_deadline() -> None:
    assert not Patience(time.monotonic(), retries=3).lasts()
