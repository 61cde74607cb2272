"""Which weight sets are known to hold, bit for bit, what *current* holds."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor


class EqualSets:
    """Knowledge that begins with a copy and ends when either side changes.

    A wrong yes would let a loss compare the policy with itself and nobody would see it. So there are two ways to learn
    that the weights moved: being told, and the version counters of the parameters, which operations in place advance
    (not all: fused optimizers do not, so that they must be told of). Both are the same on all ranks.

    Args:
        parameters: of *current*.
    """

    def __init__(self, parameters: Sequence[Tensor]) -> None:
        self._parameters = parameters
        self._known: dict[str, int] = {}

    def copied(self, name: str) -> None:
        """Now ``name`` equals current."""
        self._known[name] = self._versions()

    def changed(self, name: str) -> None:
        """Now ``name`` may differ from current."""
        self._known.pop(name, None)

    def moved(self) -> None:
        """Current was changed: every other set may differ from it."""
        self._known.clear()

    def __contains__(self, name: str) -> bool:
        return self._known.get(name) == self._versions()

    def _versions(self) -> int:
        return sum(parameter._version for parameter in self._parameters)
