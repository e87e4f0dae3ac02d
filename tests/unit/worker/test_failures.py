"""Which failure is shown when several workers fail."""

import pytest

from vgg_ddp.worker.failures import FailureReporter, describe, first_cause

GONE = RuntimeError("[gloo/transport/tcp/pair.cc:544] Connection closed by peer [10.0.0.2]:31337")


def test_cause_is_shown_instead_of_its_consequences() -> None:
    cause, gave_up = ValueError("no such file"), RuntimeError("Application timeout caused pair closure")
    assert first_cause({0: GONE, 1: gave_up, 2: cause}) == (2, cause)


def test_lowest_rank_is_shown_if_the_cause_is_unclear() -> None:
    first, second = ValueError("a"), ValueError("b")
    assert first_cause({3: second, 1: first}) == (1, first)
    assert first_cause({5: GONE, 4: GONE}) == (4, GONE)


def test_description_has_rank_number_of_failures_and_traceback() -> None:
    try:
        raise ValueError("no such file")
    except ValueError as error:
        text = describe({0: GONE, 2: error})
    assert text.startswith("worker 2 (and 1 more) failed:\n")
    assert "test_failures.py" in text
    assert text.endswith("ValueError: no such file\n")


def test_each_failure_is_printed_with_the_number_of_restarts(capsys: pytest.CaptureFixture[str]) -> None:
    reporter = FailureReporter(max_failures=1)
    for _ in range(2):
        reporter.after_exception(None, {0: ValueError("no such file")})
    printed = capsys.readouterr().err
    assert printed.count("ValueError: no such file") == 2
    assert printed.index("restart 1 of at most 1") < printed.index("no restarts left (--max-failures 1)")
