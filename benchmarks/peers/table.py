"""The table of the comparison: medians of each program's runs, and where this program is not ahead."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Measured:
    """One run of a program."""

    images_per_second: float
    first_step_seconds: float
    peak_memory_mib: float
    test_accuracy: float
    memory_by_process: dict[str, int]


# Each column: its field, its heading, the format of a cell, and whether more is better.
COLUMNS = (
    ("images_per_second", "images/s", "{:.0f}", True),
    ("first_step_seconds", "first step", "{:.1f} s", False),
    ("peak_memory_mib", "memory", "{:,.0f} MiB", False),
    ("test_accuracy", "accuracy", "{:.1%}", True),
)


def median(runs: Sequence[Measured], field: str) -> float:
    """The median of a field over the runs of a program."""
    return statistics.median(getattr(run, field) for run in runs)


def cells(runs: Sequence[Measured]) -> list[str]:
    """The cells of the measured columns, as text."""
    return [text.format(median(runs, field)) for field, _, text, _ in COLUMNS]


def table(results: Mapping[str, Sequence[Measured]], lines: Mapping[str, int]) -> str:
    """A table in Markdown: a row for each program, with its lines of code."""
    rows = [["program", *(heading for _, heading, _, _ in COLUMNS), "lines"], ["---"] * (len(COLUMNS) + 2)]
    rows += [[name, *cells(runs), str(lines[name])] for name, runs in results.items()]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def where_behind(ours: Sequence[Measured], peer: Sequence[Measured]) -> list[str]:
    """The headings of the columns in which this program is not ahead of a peer."""
    return [
        heading
        for field, heading, _, more_is_better in COLUMNS
        if (median(ours, field) - median(peer, field)) * (1 if more_is_better else -1) <= 0
    ]
