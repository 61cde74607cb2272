"""A building block replaced for the length of a block of code."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Inside the block ``owner.name`` (of a module or class) is ``value``.

    Raises:
        KeyError: there is nothing of that name to replace: what the benchmark relies on has moved.
    """
    before = vars(owner)[name]
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)
