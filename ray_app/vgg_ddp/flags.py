"""Turn a dataclass into command-line flags, and report invalid input as a one-line error."""

import argparse
import dataclasses
import difflib
import functools
import re
import shutil
import sys
from collections.abc import Sequence
from types import UnionType
from typing import Any, Literal, NoReturn, TypeVar, get_args, get_origin, get_type_hints

T = TypeVar("T")
BAD_INPUT = 2
MAX_HELP_WIDTH = 110
# Of flags: with 0.6, difflib's default, --num-samples would be taken for --num-workers.
LIKENESS = 0.65


class UsageError(ValueError):
    """Invalid input: printed as one line on stderr, with exit code 2."""


def print_usage_error(error: UsageError) -> None:
    """Print one line on stderr."""
    # A single write, because each of torchrun's processes prints it.
    sys.stderr.write(f"error: {error}\n")


def quit_with_usage_error(error: UsageError) -> NoReturn:
    """Print one line on stderr and exit with code 2."""
    print_usage_error(error)
    sys.exit(BAD_INPUT)


def flag(name: str) -> str:
    """The command-line flag of a field: batch_size -> --batch-size."""
    return "--" + name.replace("_", "-")


def setting(name: str, value: object) -> str:
    """A flag with its value, as on the command line: --batch-size 64, --profile or --no-profile."""
    if isinstance(value, bool):
        return flag(name if value else f"no_{name}")
    return f"{flag(name)} {value}"


def refuse_password(argument: str, location: str | None) -> None:
    """Refuse an argument whose URI that contains a password or secret key, because URIs are printed and stored.

    Raises:
        UsageError: if it contains one; the message does not repeat the URI.
    """
    if location and re.search(r"//[^/@]*:[^/@]*@", location):
        raise UsageError(f"{argument}: the URI contains a password or key; set it in the environment instead.")


def parse_flags(config_class: type[T], arguments: Sequence[str], program: str, default: T | None = None) -> T:
    """Build a dataclass from command-line arguments; flags that are not given keep the values of `default`.

    A field's type is bool, int, float, str, a Literal of strings, one of these or None, or a tuple of strings. Its help
    text is the string below it. Flags may be written with hyphens or underscores. Two optional class variables:
    `POSITIONAL` names the fields that are positional arguments instead of flags, and `GROUPS` maps the first field of
    each group of flags to the group's heading in --help.

    Raises:
        UsageError: for an unknown flag or an invalid value.
        SystemExit: with code 0 after --help.
    """
    types = get_type_hints(config_class)
    parser = _build_parser(config_class, types, program)
    hyphenated = [re.sub(r"^--[^=]+", lambda name: name[0].replace("_", "-"), argument) for argument in arguments]
    given, unknown = parser.parse_known_intermixed_args(hyphenated)
    if unknown:
        raise UsageError(_describe_unknown(unknown[0], config_class))
    values = {name: parse_value(name, types[name], value) for name, value in vars(given).items()}
    if default is None:
        return config_class(**values)
    return dataclasses.replace(default, **values)  # type: ignore[type-var]


def arguments_of(config: Any) -> list[str]:
    """The command-line arguments that give a dataclass of flags its values: those that differ from their defaults."""
    arguments = []
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if value != field.default:
            arguments += setting(field.name, value).split(" ", 1)
    return arguments


@functools.cache
def field_help(config_class: type) -> dict[str, str]:
    """The help text of each field of a dataclass: the string below it."""
    # Imported here, because most processes that read a config never parse flags.
    import ast
    import inspect
    import itertools

    texts = {}
    for base in filter(dataclasses.is_dataclass, reversed(config_class.__mro__)):
        [definition] = ast.parse(inspect.getsource(base)).body
        assert isinstance(definition, ast.ClassDef)
        for statement, below in itertools.pairwise(definition.body):
            match statement, below:
                case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                    texts[name] = " ".join(text.split())
    return texts


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message.removeprefix('argument ')}. See --help.")


def _build_parser(config_class: type, types: dict[str, Any], program: str) -> _Parser:
    """A parser that returns only the arguments that are given, as strings or bools."""
    positional = getattr(config_class, "POSITIONAL", ())
    width = min(shutil.get_terminal_size().columns, MAX_HELP_WIDTH)
    parser = _Parser(
        prog=program,
        usage=" ".join([program, *(_usage(name, config_class, types) for name in positional), "[flags]"]),
        description=config_class.__doc__,
        formatter_class=functools.partial(argparse.HelpFormatter, width=width, max_help_position=30),
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    texts, groups = field_help(config_class), getattr(config_class, "GROUPS", {})
    group: Any = parser
    for field in dataclasses.fields(config_class):
        if field.name in groups:
            group = parser.add_argument_group(groups[field.name])
        kind = types[field.name]
        options: dict[str, Any] = {"help": texts[field.name].replace("%", "%%") + _describe_default(field.default)}
        if kind in (bool, bool | None):
            options["action"] = argparse.BooleanOptionalAction
        else:
            options["metavar"] = field.name.upper() if field.name in positional else _metavar(kind)
        if get_origin(kind) is tuple:
            # A flag without values may come from an empty shell variable.
            options["nargs"] = "+"
            if field.name in positional and field.default is not dataclasses.MISSING:
                # Without a default, argparse requires at least one value.
                options |= {"nargs": "*", "default": field.default}
        group.add_argument(field.name if field.name in positional else flag(field.name), **options)
    return parser


def _usage(name: str, config_class: type, types: dict[str, Any]) -> str:
    """A positional argument as the usage line shows it."""
    text = name.upper() + (" ..." if get_origin(types[name]) is tuple else "")
    return f"[{text}]" if hasattr(config_class, name) else text


def _describe_default(default: object) -> str:
    """The suffix of a help text with the default; empty for "off" and "unset", which the text itself explains."""
    if default is dataclasses.MISSING or default is None or default is False or default in ("", ()):
        return ""
    return f" (default: {'on' if default is True else f'{default:g}' if isinstance(default, float) else default})"


def _metavar(kind: Any) -> str:
    """The placeholder for a value in --help."""
    if get_origin(kind) is Literal:
        return "{" + ",".join(get_args(kind)) + "}"
    if get_origin(kind) in (UnionType, tuple):
        kind = get_args(kind)[0]
    return {int: "N", float: "X"}.get(kind, "TEXT")


def _describe_unknown(argument: str, config_class: type) -> str:
    """An error message for an argument that is not a known flag or was not expected."""
    name = argument.partition("=")[0]
    if not name.startswith("-"):
        return f"unexpected argument {argument}. See --help."
    positional = getattr(config_class, "POSITIONAL", ())
    if name in map(flag, positional):
        return f"{name} is a positional argument: give its value without {name}."
    flags = [flag(field.name) for field in dataclasses.fields(config_class) if field.name not in positional]
    similar = difflib.get_close_matches(name, flags, n=1, cutoff=LIKENESS)
    return f"unknown flag {name}. " + (f"Did you mean {similar[0]}?" if similar else "See --help.")


def parse_value(name: str, kind: Any, value: Any) -> Any:
    """Convert the string of an argument to the type of its field.

    Raises:
        UsageError: if it cannot be converted.
    """
    if get_origin(kind) is UnionType:
        if value == "None":
            return None
        kind = get_args(kind)[0]
    if get_origin(kind) is tuple:
        return tuple(value)
    if get_origin(kind) is Literal and value not in get_args(kind):
        raise UsageError(f"{flag(name)} {value}: expected one of {', '.join(get_args(kind))}.")
    if kind not in (int, float):
        return value
    try:
        return kind(value)
    except ValueError:
        expected = "an integer" if kind is int else "a number"
        raise UsageError(f"{flag(name)} {value}: expected {expected}.") from None
