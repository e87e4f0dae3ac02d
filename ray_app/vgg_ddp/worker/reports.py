"""What ranks report about themselves while they do not move, and which of them hang according to that."""

import time
from dataclasses import dataclass

# A rank whose report stays the same for this time does not answer.
SECONDS_TO_ANSWER = 10.0
# What a rank writes instead of a report: its training loop has ended, or its monitor ends its wait because these ranks
# hang.
ENDED, JUDGED = "ended", "hung: "


@dataclass(frozen=True)
class Report:
    """Where a rank was when it last reported.

    Attributes:
        position: how many times it had come to a point where all ranks come together.
        idle_seconds: time since it had last moved.
        text: as in the store; differs from that of the previous report.
        changed_at: when this rank first read it.
        is_answer: whether it was written after this rank had started to read.
    """

    position: int
    idle_seconds: float
    text: bytes = b""
    changed_at: float = 0.0
    is_answer: bool = True

    @classmethod
    def read(cls, text: bytes, previous: "Report | None", now: float) -> "Report":
        """Parse what a rank has written; empty if that is nothing so far."""
        if previous and text == previous.text:
            return previous
        position, idle_seconds, _ = text.split() or (b"0", b"0", b"")
        return cls(int(position), float(idle_seconds), text, now, is_answer=previous is not None)


def find_hung(reports: dict[int, Report], timeout_seconds: float, must: bool) -> list[int] | None:
    """The ranks that hang, in order; empty if some rank hangs, but it is unknown which; None if none hangs so far.

    Ranks that do not answer hang, otherwise those that are furthest behind. If all are in the same place, they may only
    be slow, so they have twice the time.

    Args:
        reports: of all ranks that still train, including this one.
        timeout_seconds: how long a rank may stay where it is.
        must: a collective has timed out, so some rank hangs, no matter when the ranks have moved.
    """
    now = time.monotonic()
    if waited_for := [rank for rank, report in reports.items() if not report.is_answer]:
        silent = [rank for rank in waited_for if now - reports[rank].changed_at >= SECONDS_TO_ANSWER]
        return sorted(silent) or None
    if silent := [rank for rank, report in reports.items() if now - report.changed_at >= SECONDS_TO_ANSWER]:
        return sorted(silent)
    idle_seconds = min(report.idle_seconds for report in reports.values())
    if idle_seconds < timeout_seconds and not must:
        return None
    last = min(report.position for report in reports.values())
    behind = sorted(rank for rank, report in reports.items() if report.position == last)
    if len(behind) < len(reports):
        return behind
    return [] if must or idle_seconds >= 2 * timeout_seconds else None
