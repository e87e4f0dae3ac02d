"""From dataclasses to command-line flags, and from wrong input to one clear line."""

import contextlib
import io
import re
import sys
from collections.abc import Sequence
from typing import NoReturn, TypeVar

T = TypeVar("T")
BAD_INPUT = 2


class UsageError(ValueError):
    """Input that the user can correct: shown as one line on stderr, with exit code 2."""


def print_usage_error(error: UsageError | str) -> None:
    """Print one line on stderr."""
    # In one piece, since each of torchrun's processes says it.
    sys.stderr.write(f"error: {error}\n")


def quit_with_usage_error(error: UsageError | str) -> NoReturn:
    """Print one line on stderr and exit with code 2."""
    print_usage_error(error)
    sys.exit(BAD_INPUT)


def flag(name: str) -> str:
    """The command-line flag of a field: batch_size -> --batch-size."""
    return "--" + name.replace("_", "-")


def refuse_password(name: str, location: str | None) -> None:
    """Refuse a URI with a password or secret key in it, without showing it: URIs are printed and stored.

    Raises:
        UsageError: if there is one.
    """
    if location and re.search(r"//[^/@]*:[^/@]*@", location):
        raise UsageError(f"{flag(name)}: the URI holds a password or key; give it in the environment instead.")


def parse_flags(config_class: type[T], arguments: Sequence[str], program: str, default: T | None = None) -> T:
    """Build a dataclass from command-line arguments; flags that are not given take the values of `default`.

    Hyphens and underscores both work in flags.

    Raises:
        UsageError: for an unknown flag or a value that cannot be used.
        SystemExit: with code 0 after --help.
    """
    import tyro

    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            return tyro.cli(
                config_class,
                args=arguments,
                prog=program,
                default=tyro.MISSING_NONPROP if default is None else default,
            )
    except SystemExit as exit_request:
        if not exit_request.code:
            raise
        raise UsageError(_one_line(complaint.getvalue())) from None


def _one_line(boxed: str) -> str:
    """Make one line of the first section of the box that tyro draws around a complaint."""
    words: list[str] = []
    for line in re.sub(r"\x1b\[[0-9;]*m", "", boxed).splitlines():
        text = line.strip(" │")
        if text and not text.strip("─"):
            break
        if not text.startswith(("╭", "╰")):
            words += text.split()
    sentence = " ".join(words)
    # What a config's own check says is complete: it names the flag and what is expected.
    own_check = re.fullmatch(r"Error parsing \w+: (--.*|expected.*)", sentence)
    return own_check.group(1) if own_check else f"{sentence.rstrip('.')}. See --help."
