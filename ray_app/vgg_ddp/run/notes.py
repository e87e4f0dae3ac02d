"""Continue without the optional parts of a run: print a NOTE that says what failed and why."""

import functools
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def noted(failure: str, printed: set[str] | None = None) -> Iterator[None]:
    """Survive any failure within this context, and print it: "NOTE: the curves could not be drawn: no space left".

    For everything that only shows or repeats results. Never for weights, checkpoints, or settings. With `printed`, a
    set that the caller keeps, each failure is printed only once.
    """
    try:
        yield
    except Exception as error:
        # Every exception, because other libraries do this work and raise any: ImportError from a broken installation,
        # TypeError from a version they do not fit, RuntimeError from a server's answer. None may cost a trained model.
        if printed is None or failure not in printed:
            print_note(f"{failure}: {reason(error)}")
        if printed is not None:
            printed.add(failure)


def reason(error: BaseException) -> str:
    """An exception as one line; its type is omitted if the text says everything."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    name = type(error).__name__
    if not lines:
        return name
    return lines[0] if isinstance(error, OSError) else f"{name}: {lines[0]}"


def print_note(text: str) -> None:
    """Print a NOTE on stderr."""
    # A single write, because several threads print.
    print(f"NOTE: {text}\n", end="", file=sys.stderr, flush=True)


@functools.cache
def print_note_once(text: str) -> None:
    """Print a NOTE on stderr, once per process."""
    print_note(text)
