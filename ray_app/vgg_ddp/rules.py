"""The values that single settings may have; config.py applies these rules, and those between several settings."""

import re
from collections.abc import Callable
from typing import Any

INFINITY = float("inf")
Rule = tuple[Callable[[Any], bool], str]
"""Whether a value is valid, and what is expected. Comparisons with nan are false, so the rules reject nan."""

AT_LEAST_ONE: Rule = (lambda value: value >= 1, "a positive number")
AT_LEAST_ZERO: Rule = (lambda value: value >= 0, "0 or more")
BELOW_ONE: Rule = (lambda value: 0 <= value < 1, "a number from 0 to 1, excluding 1")
FOLDER_NAME: Rule = (
    lambda value: bool(re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", value)),
    "letters, digits, '.', '_' and '-', since it names a folder",
)

RULES: dict[str, Rule] = {
    "epochs": AT_LEAST_ONE,
    "batch_size": AT_LEAST_ONE,
    "max_failures": AT_LEAST_ZERO,
    "half_size_epochs": AT_LEAST_ZERO,
    "num_workers": AT_LEAST_ZERO,
    "seed": (lambda value: 0 <= value < 2**63, "an integer from 0 to 2**63 - 1"),
    "weight_decay": (lambda value: 0 <= value < INFINITY, "0 or more"),
    "lr": (lambda value: 0 < value < INFINITY, "a positive number"),
    "checkpoint_every_seconds": (lambda value: value > 0, "a positive number of seconds"),
    "collective_timeout_seconds": (lambda value: 1 <= value < INFINITY, "1 second or more"),
    "momentum": BELOW_ONE,
    "label_smoothing": BELOW_ONE,
    "validation_fraction": BELOW_ONE,
    "augment_shift": AT_LEAST_ZERO,
    "cutout": AT_LEAST_ZERO,
    "image_size": (lambda value: value >= 32, "at least 32 pixels, since VGG11 halves images five times"),
    "image_column": (bool, "the name of a column"),
    "label_column": (bool, "the name of a column"),
    "run_name": FOLDER_NAME,
    "resume": FOLDER_NAME,
}
