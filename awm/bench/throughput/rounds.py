"""Trainers take turns, an epoch at a time, so that a machine's good and bad minutes fall on all of them alike."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial

from awm.bench.throughput.case import Case, Epoch

MAX_MESSAGE = 400
OUT_OF_TIME = "no time was left for it; give more --minutes, or fewer --variants"


@dataclass
class Outcome:
    """What became of a case.

    Attributes:
        warmup_s: seconds of building and of the epochs that do not count, compilation included.
        epochs: those that count; entry r is from round r.
        error: why it ended early, or "".
        skipped: why it was never begun, or "".
    """

    warmup_s: float = 0.0
    epochs: list[Epoch] = field(default_factory=list)
    error: str = ""
    skipped: str = ""


def run_rounds(
    cases: Mapping[str, Case],
    *,
    rounds: int,
    warmup: int,
    go_on: Callable[[], bool] = lambda: True,
    say: Callable[[str], None] = lambda text: None,
    after_round: Callable[[Mapping[str, Outcome]], None] = lambda outcomes: None,
    alone: bool = True,
) -> dict[str, Outcome]:
    """Warm every case up, then measure ``rounds`` epochs of each, one round after the other.

    A case that fails is over and the others go on; every round has another order.

    Args:
        cases: name -> case, not built yet.
        rounds: epochs that count.
        warmup: epochs of each case before, at least one.
        go_on: whether there is time for another case or round; the first ones are always made.
        say: told what happens.
        after_round: gets what there is by then.
        alone: False if other ranks wait for this one: a failure then ends everything.
    """
    outcomes = {name: Outcome() for name in cases}

    def attempt(name: str, work: Callable[[], None]) -> None:
        try:
            work()
            return
        except Exception as error:  # out of memory, a refused option, a kernel that is missing
            if not alone:
                raise
            message = f"{type(error).__name__}: {error}"[:MAX_MESSAGE]
        outcomes[name].error = message
        cases[name].close()  # only now: the error holds on to the frames it went through, and their tensors
        say(f"{name}: {message}")

    for number, (name, case) in enumerate(cases.items()):
        if number and not go_on():
            outcomes[name].skipped = OUT_OF_TIME
            say(f"{name}: {OUT_OF_TIME}")
            continue
        begun = time.perf_counter()
        attempt(name, partial(_warm_up, case, warmup))
        outcomes[name].warmup_s = time.perf_counter() - begun
        if not outcomes[name].error:
            say(f"{name}: warm after {outcomes[name].warmup_s:.1f} s")
    for number in range(rounds):
        if number and not go_on():
            say(f"no time for round {number + 1} of {rounds}")
            break
        for name in _shuffled(list(cases), number):
            if not outcomes[name].error and not outcomes[name].skipped:
                attempt(name, partial(_measure, cases[name], outcomes[name]))
        done = {name: outcome.epochs[-1] for name, outcome in outcomes.items() if len(outcome.epochs) > number}
        speeds = ", ".join(f"{name} {epoch.metrics['images_per_s']:.2f}" for name, epoch in done.items())
        say(f"round {number + 1} of {rounds}, images/s: {speeds}")
        after_round(outcomes)
    return outcomes


def _measure(case: Case, outcome: Outcome) -> None:
    outcome.epochs.append(case.epoch())


def _warm_up(case: Case, epochs: int) -> None:
    case.build()
    for _ in range(epochs):
        case.epoch()


def _shuffled(names: list[str], number: int) -> list[str]:
    """The names in the order of round ``number``, the same on every rank.

    By lot, not in turn: whoever always follows the same one pays for what that one left in caches and memory.
    """
    random.Random(number).shuffle(names)
    return names
