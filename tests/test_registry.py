"""What looking a plug-in up by name promises."""

from __future__ import annotations

import pytest

from awm.registry import Registry, nearest


def test_a_name_gives_what_its_path_points_to_and_listing_imports_nothing() -> None:
    registry = Registry("thing", {"root": "math:sqrt", "gone": "no_such_module:x"})
    assert registry.load("root")(9) == 3
    assert list(registry) == ["root", "gone"] and "gone" in registry and "other" not in registry


def test_an_unknown_name_lists_the_known_and_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"unknown thing 'rot'; known: power, root\. Did you mean 'root'\?"):
        Registry("thing", {"root": "math:sqrt", "power": "math:pow"}).load("rot")
    assert nearest("xyz", ["root"]) == ""


def test_a_taken_name_is_not_replaced() -> None:
    registry = Registry("thing", {"root": "math:sqrt"})
    registry.add("power", "math:pow")
    registry.add("power", "math:pow")
    assert registry.load("power")(2, 3) == 8
    with pytest.raises(ValueError, match="thing 'root' is already math:sqrt; choose another name"):
        registry.add("root", "math:cbrt")
