"""Which of several workers' failures is shown."""

import pytest

from vgg_ddp.failures import FailureReporter, describe, first_cause

GONE = RuntimeError("[gloo/transport/tcp/pair.cc:544] Connection closed by peer [10.0.0.2]:31337")


def test_cause_is_preferred_to_its_consequences() -> None:
    cause, gave_up = ValueError("no such file"), RuntimeError("Application timeout caused pair closure")
    assert first_cause({0: GONE, 1: gave_up, 2: cause}) == (2, cause)


def test_lowest_rank_is_shown_where_all_are_alike() -> None:
    first, second = ValueError("a"), ValueError("b")
    assert first_cause({3: second, 1: first}) == (1, first)
    assert first_cause({5: GONE, 4: GONE}) == (4, GONE)


def test_description_holds_rank_count_and_traceback() -> None:
    try:
        raise ValueError("no such file")
    except ValueError as error:
        text = describe({0: GONE, 2: error})
    assert text.startswith("worker 2 (and 1 more) failed:\n")
    assert "test_failures.py" in text
    assert text.endswith("ValueError: no such file\n")


def test_each_failure_is_told_with_what_follows(capsys: pytest.CaptureFixture[str]) -> None:
    reporter = FailureReporter(max_failures=1)
    for _ in range(2):
        reporter.after_exception(None, {0: ValueError("no such file")})
    told = capsys.readouterr().err
    assert told.count("ValueError: no such file") == 2
    assert told.index("restart 1 of at most 1") < told.index("no restart after 1")
