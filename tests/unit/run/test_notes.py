"""What a run can do without may fail, and a NOTE says why."""

import pytest

from vgg_ddp.run.notes import noted, print_note_once


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (OSError(28, "No space left on device"), "[Errno 28] No space left on device"),
        (
            ImportError("\n\nA module of NumPy 1 cannot run in NumPy 2.\nDowngrade it."),
            "ImportError: A module of NumPy 1",
        ),
        (KeyError("loss"), "KeyError: 'loss'"),
        (RuntimeError(), "RuntimeError"),
    ],
)
def test_failure_is_one_line_with_its_reason(error: Exception, reason: str, capsys: pytest.CaptureFixture[str]) -> None:
    with noted("the curves could not be drawn"):
        raise error
    printed = capsys.readouterr()
    assert printed.err.startswith(f"NOTE: the curves could not be drawn: {reason}")
    assert printed.err.count("\n") == 1 and printed.out == ""


@pytest.mark.parametrize("request_to_stop", [KeyboardInterrupt, SystemExit])
def test_request_to_stop_is_not_a_failure(request_to_stop: type[BaseException]) -> None:
    with pytest.raises(request_to_stop), noted("the curves could not be drawn"):
        raise request_to_stop


def test_repeated_failure_is_printed_once(capsys: pytest.CaptureFixture[str]) -> None:
    printed: set[str] = set()
    for failure in ("first", "second", "first", "second"):
        with noted(failure, printed):
            raise ValueError
    assert capsys.readouterr().err == "NOTE: first: ValueError\nNOTE: second: ValueError\n"


def test_note_is_printed_once_per_process(capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(3):
        print_note_once("a damaged file")
    assert capsys.readouterr().err == "NOTE: a damaged file\n"
