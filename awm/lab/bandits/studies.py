"""The bandit problems that are run, and which weightings compete on each."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from awm.lab.bandits.landscape import BROAD, ESCAPE, ESCAPE_WIDER, SHARP
from awm.lab.bandits.learning import Arm, Loop
from awm.weightings import Weighting

WEIGHTINGS = {
    "Linear": Weighting("linear"),
    "Square": Weighting("square"),
    "Exp": Weighting("exp"),
    "Lin. Neg. -0.5": Weighting("linear", floor=-0.5),
    "Lin. Neg. -1": Weighting("linear", floor=-1.0),
    "Lin. Neg. -2": Weighting("linear", floor=-2.0),
    "Sqr. Neg. -0.5": Weighting("square", floor=-0.5),
}


@dataclass(frozen=True, slots=True)
class Study:
    """Weightings on one problem.

    Attributes:
        title: one line above the table.
        loop: the problem.
        arms: the weightings, the first being the one the others are compared with.
        success: a run succeeds if its final regret is below.
        reach: regret that counts as having been at the global optimum at some time.
    """

    title: str
    loop: Loop
    arms: tuple[Arm, ...]
    success: float = 0.12
    reach: float = 0.15


def arms(*names: str, kl: float = 1.0, temperature: float | None = None) -> tuple[Arm, ...]:
    """Arms of ``WEIGHTINGS`` by name, all with the same KL target or, if given, the same temperature."""
    return tuple(Arm(name, WEIGHTINGS[name], temperature, kl) for name in names)


_ESCAPE = Loop(ESCAPE, mean=-0.4, std=0.45, updates=40, iterations=60)
_BROAD = Loop(BROAD, mean=0.0, std=0.3, updates=20, iterations=100)
_SHARP = replace(_BROAD, landscape=SHARP)
# At temperature 0.5 few weights are below 0: there Lin. Neg. is all but Linear.
_SHAPES = ("Linear", "Square", "Exp")
_SIGNED = (*_SHAPES, "Lin. Neg. -0.5")

STUDIES = {
    "escape": Study(
        "Figure 2: start on the lower optimum, KL 1",
        _ESCAPE,
        arms("Linear", "Square", "Exp", "Lin. Neg. -0.5", "Lin. Neg. -2", "Sqr. Neg. -0.5"),
    ),
    "broad-temperature": Study("Figure 3, broad optima, temperature 0.5", _BROAD, arms(*_SHAPES, temperature=0.5)),
    "broad-kl": Study("Figure 3, broad optima, KL 1.5", _BROAD, arms(*_SIGNED, kl=1.5)),
    "sharp-temperature": Study("Figure 3, sharp optima, temperature 0.5", _SHARP, arms(*_SHAPES, temperature=0.5)),
    "sharp-kl": Study("Figure 3, sharp optima, KL 1.5", _SHARP, arms(*_SIGNED, kl=1.5)),
    "narrow": Study(
        "No sample near the global optimum: initial std 0.2, KL 1",
        replace(_ESCAPE, std=0.2),
        arms("Linear", "Exp", "Lin. Neg. -0.5", "Lin. Neg. -2"),
    ),
    "unstable": Study(
        "The same, unstable: no bound, larger steps, action noise",
        Loop(
            ESCAPE_WIDER,
            mean=-0.4,
            std=0.2,
            updates=10,
            iterations=200,
            num_groups=4,
            learning_rate=3e-3,
            bound=None,
            action_noise=0.1,
            anchor=1.0,
            error_clip=math.inf,
        ),
        arms("Linear", "Lin. Neg. -0.5", "Lin. Neg. -1"),
    ),
}
