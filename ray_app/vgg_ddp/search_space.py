"""The search space of a sweep: NAME=LOW:HIGH or NAME=A,B,C for each flag of main.py that is tuned."""

import dataclasses
import difflib
import itertools
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

from vgg_ddp.config import RECIPE_FIELDS, TrainConfig
from vgg_ddp.flags import UsageError, flag, parse_value, refuse_password, setting

# The settings that change what is learned. The others identify the run, its data, the cluster, or the storage. With
# --epochs, trials would differ in how far they are, not in how good they are; with --seed, in their validation images.
TUNABLE = (
    *("batch_size", "recipe", "init_from", *RECIPE_FIELDS, "image_size", "half_size_epochs"),
    *("precision", "gradients", "fast_convolutions"),
)
# By how many of the training images trials are compared, unless the user says otherwise.
VALIDATION_FRACTION = 0.1
EXAMPLE = "lr=0.02:0.2 or batch-size=128,256"
# A range that spans at least this factor is searched on a logarithmic scale.
LOGARITHMIC_FACTOR = 10
# More combinations of choices and ends of ranges than this are not checked in advance.
MAX_CHECKED = 2_000
# Draws per point that is wanted, in a space with few different points.
MAX_DRAWS = 50
# Significant digits of random values.
DIGITS = 4

Point = dict[str, Any]
"""A value for each tuned setting."""


@dataclasses.dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, both included; integers if both are."""

    name: str
    low: float
    high: float

    @property
    def is_integer(self) -> bool:
        return isinstance(self.low, int)

    @property
    def is_logarithmic(self) -> bool:
        # 10 * 0.07 is above 0.7 in floating point.
        return self.low > 0 and self.high / self.low > LOGARITHMIC_FACTOR - 1e-9

    @property
    def ends(self) -> tuple[float, ...]:
        return (self.low, self.high)

    def draw(self, generator: random.Random) -> float:
        """A random value."""
        # Each integer gets the same share of the range.
        low, high = self.low, self.high + self.is_integer
        if self.is_logarithmic:
            value = math.exp(generator.uniform(math.log(low), math.log(high)))
        else:
            value = generator.uniform(low, high)
        return self.rounded(math.floor(value) if self.is_integer else value)

    def rounded(self, value: float) -> float:
        """The value with few digits, so that it can be read and typed."""
        return min(max(value if self.is_integer else float(f"{value:.{DIGITS}g}"), self.low), self.high)

    def __str__(self) -> str:
        """How a person reads the range."""
        scale = ", logarithmic" if self.is_logarithmic else ""
        return f"{_argument(self.name)} {self.low:g} to {self.high:g}{scale}"


@dataclasses.dataclass(frozen=True)
class Choice:
    """One of several values."""

    name: str
    values: tuple[Any, ...]

    @property
    def ends(self) -> tuple[Any, ...]:
        return self.values

    def draw(self, generator: random.Random) -> Any:
        """A random value."""
        return generator.choice(self.values)

    def rounded(self, value: Any) -> Any:
        """The value itself."""
        return value

    def __str__(self) -> str:
        """How a person reads the choice."""
        return f"{_argument(self.name)} {' or '.join(map(format_value, self.values))}"


Parameter = Range | Choice


def parse_space(texts: Sequence[str], config: TrainConfig) -> tuple[Parameter, ...]:
    """Parse a search space, and check its values together with the other settings of each trial.

    Raises:
        UsageError: if it is invalid, or `TrainConfig` would refuse a value.
    """
    space = tuple(map(parse_parameter, texts))
    names = [parameter.name for parameter in space]
    for name in names:
        if names.count(name) > 1:
            raise UsageError(f"{_argument(name)} is given twice in the search space.")
        if getattr(config, name) != getattr(TrainConfig, name):
            given = setting(name, getattr(config, name))
            raise UsageError(f"{given}: {_argument(name)} is also in the search space; remove one of them.")
    workers = config.num_workers or 1
    for parameter in space:
        if parameter.name == "batch_size" and isinstance(parameter, Range) and workers > 1:
            raise UsageError(
                f"batch-size={parameter.low}:{parameter.high}: most of these do not split evenly over {workers} "
                "workers; give choices, as in batch-size=128,256,512."
            )
    for point in itertools.islice(corners(space), MAX_CHECKED):
        configure(config, point)
    return space


def parse_parameter(text: str) -> Parameter:
    """Parse NAME=LOW:HIGH or NAME=A,B,C. Integers stay integers.

    Raises:
        UsageError: if the text has another form, or the flag cannot be tuned or has another type.
    """
    given, equals, values = text.partition("=")
    name = name_of(text)
    refuse_password(_argument(name), values)
    kinds = get_type_hints(TrainConfig)
    if not equals or not given:
        raise UsageError(f"{text}: expected NAME=LOW:HIGH or NAME=A,B,C, as in {EXAMPLE}.")
    if name not in kinds:
        similar = difflib.get_close_matches(_argument(name), map(_argument, TUNABLE), n=1)
        hint = f"Did you mean {similar[0]}?" if similar else f"These can be tuned: {_tunable_names()}."
        raise UsageError(f"{text}: unknown flag {flag(name)}. {hint}")
    if name not in TUNABLE:
        raise UsageError(f"{text}: {flag(name)} cannot be tuned. These can: {_tunable_names()}.")
    if "," in values:
        return _parse_choice(text, name, values.split(","))
    if ":" in values:
        return _parse_range(text, name, kinds[name], values.split(":"))
    raise UsageError(f"{text}: expected LOW:HIGH or several choices; for a single value, use {flag(name)}.")


def name_of(text: str) -> str:
    """The setting that NAME=LOW:HIGH or NAME=A,B,C tunes."""
    return text.partition("=")[0].removeprefix("--").replace("-", "_")


def format_value(value: object) -> str:
    """A value as it is written in a search space."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def read_value(name: str, text: str) -> Any:
    """The value that `format_value` has written for a setting.

    Raises:
        UsageError: if the text is no value of it.
    """
    kind = get_type_hints(TrainConfig)[name]
    if kind is not bool:
        return parse_value(name, kind, text)
    if text not in ("true", "false"):
        raise UsageError(f"{flag(name)} {text}: expected true or false.")
    return text == "true"


def _read_values(text: str, name: str, values: Sequence[str]) -> tuple[Any, ...]:
    """The values of an argument. Errors name the argument as it was given."""
    if "None" in values:
        raise UsageError(f"{text}: None cannot be tuned; expected values.")
    try:
        return tuple(read_value(name, value) for value in values)
    except UsageError as error:
        expected = str(error).rpartition(": ")[2]
        raise UsageError(f"{text}: {expected}") from None


def _parse_choice(text: str, name: str, values: Sequence[str]) -> Choice:
    choices = () if "" in values else _read_values(text, name, values)
    if len(set(choices)) < len(values):
        raise UsageError(f"{text}: expected different values with commas between them.")
    return Choice(name, choices)


def _parse_range(text: str, name: str, kind: Any, ends: Sequence[str]) -> Range:
    kind = get_args(kind)[0] if get_origin(kind) is UnionType else kind
    if kind not in (int, float):
        raise UsageError(f"{text}: {flag(name)} is not a number; expected choices, as in NAME=A,B,C.")
    if len(ends) != 2 or "" in ends:
        raise UsageError(f"{text}: expected LOW:HIGH, as in {EXAMPLE}.")
    low, high = _read_values(text, name, ends)
    # Comparisons with nan are false, so this also rejects nan.
    if not low < high < math.inf:
        raise UsageError(f"{text}: expected LOW:HIGH with LOW below HIGH.")
    return Range(name, low, high)


def corners(space: Sequence[Parameter]) -> Iterator[Point]:
    """All combinations of choices and ends of ranges; for a space of choices, its grid."""
    names = [parameter.name for parameter in space]
    for values in itertools.product(*(parameter.ends for parameter in space)):
        yield dict(zip(names, values, strict=True))


def draw_points(space: Sequence[Parameter], count: int, seed: int) -> list[Point]:
    """Random points, all different: fewer than `count` if the space has fewer. More points start with the same ones."""
    generator = random.Random(seed)
    points: list[Point] = []
    for _ in range(MAX_DRAWS * count):
        point = {parameter.name: parameter.draw(generator) for parameter in space}
        if point not in points:
            points.append(point)
        if len(points) == count:
            break
    return points


def configure(config: TrainConfig, point: Mapping[str, Any]) -> TrainConfig:
    """The settings with the values of a point.

    Raises:
        UsageError: if they do not fit together.
    """
    try:
        return dataclasses.replace(config, **point)
    except UsageError as error:
        raise UsageError(f"search space: {error}") from error


def _argument(name: str) -> str:
    return name.replace("_", "-")


def _tunable_names() -> str:
    return ", ".join(map(_argument, TUNABLE))
