"""What a GenEval detector is: boxes, classes and confidences first, colours only for the objects asked about."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from reward_server.scorers.geneval.rules import Detection

RGBImage = NDArray[np.uint8]
"""[H, W, 3]."""


class Detector(Protocol):
    """Finds objects in images."""

    classes: Sequence[str]
    """Every class name it can report, in its own order."""

    def detect(self, images: Sequence[RGBImage]) -> list[list[Detection]]:
        """Objects of each image, in any order.

        The rules own the thresholds: only objects that cannot score above the lowest may be left out.
        """

    def colors(self, queries: Sequence[tuple[RGBImage, Detection]]) -> list[str]:
        """GenEval colour of each object.

        One call serves a whole batch, so that a detector with a separate colour classifier runs it once.
        """

    def fingerprint(self) -> Mapping[str, str]:
        """What its scores depend on: model ids, weight hashes, version of the preprocessing."""
