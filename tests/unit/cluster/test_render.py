"""How render.py fills in a template."""

import pytest

from render import RenderError, fill


def test_every_placeholder_is_filled_in() -> None:
    assert (
        fill("a: <One>, b: [<Two>, <One>], c: 1 < 2", {"One": "1", "Two": "2", "Three": "3"})
        == "a: 1, b: [2, 1], c: 1 < 2"
    )


def test_error_names_the_placeholders_without_a_value() -> None:
    with pytest.raises(RenderError, match="no value for Three, Two: "):
        fill("<One> <Two> <Three>", {"One": "1"})
