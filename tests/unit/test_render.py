"""What render.py puts in, and what it refuses."""

import pytest

from render import RenderError, fill, installed_versions


def test_every_blank_is_filled() -> None:
    assert (
        fill("a: <One>, b: [<Two>, <One>], c: 1 < 2", {"One": "1", "Two": "2", "Three": "3"})
        == "a: 1, b: [2, 1], c: 1 < 2"
    )


def test_blank_without_a_value_is_named() -> None:
    with pytest.raises(RenderError, match="no value for Three, Two: "):
        fill("<One> <Two> <Three>", {"One": "1"})


def test_package_that_is_not_installed_is_named() -> None:
    with pytest.raises(RenderError, match="asks for no-such-package>=1, nothing is installed"):
        installed_versions("# comment\n\nno-such-package>=1\n")


def test_installed_version_that_the_file_does_not_allow_is_named() -> None:
    with pytest.raises(RenderError, match=r"asks for pytest<1, \d.* is installed"):
        installed_versions("pytest<1\n")
