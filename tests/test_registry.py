"""Names mean one thing, for good."""

from __future__ import annotations

import pytest

from micro_musicgen.errors import MicroMusicGenError
from micro_musicgen.registry import Registry


def test_what_was_entered_is_found_by_name() -> None:
    shapes: Registry[type] = Registry("shape")

    @shapes.register("square")
    class Square:
        pass

    assert shapes.get("square") is Square
    assert "square" in shapes and "circle" not in shapes
    shapes.register("circle")(int)
    assert list(shapes) == ["circle", "square"]


def test_a_taken_name_is_kept() -> None:
    shapes: Registry[type] = Registry("shape")
    shapes.register("square")(int)
    shapes.register("square")(int)  # a module that is imported twice
    with pytest.raises(ValueError, match="shape 'square' is registered twice"):
        shapes.register("square")(str)
    assert shapes.get("square") is int


def test_an_unknown_name_lists_the_known_ones() -> None:
    shapes: Registry[type] = Registry("shape")
    with pytest.raises(MicroMusicGenError, match="unknown shape 'x'; known: none"):
        shapes.get("x")
    shapes.register("square")(int)
    shapes.register("circle")(str)
    with pytest.raises(MicroMusicGenError, match="unknown shape 'x'; known: circle, square"):
        shapes.get("x")
