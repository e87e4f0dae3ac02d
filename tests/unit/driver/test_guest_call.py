import os
import signal

import pytest

from vgg_ddp.api import call_as_guest


def test_process_of_a_guest_is_as_before() -> None:
    def main() -> int:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        os.environ["RAY_TRAIN_LEFT_BEHIND"] = "1"
        return 0

    before = signal.getsignal(signal.SIGTERM)
    call_as_guest(main)
    assert signal.getsignal(signal.SIGTERM) == before
    assert "RAY_TRAIN_LEFT_BEHIND" not in os.environ


def test_failure_of_a_guest_is_an_exception() -> None:
    with pytest.raises(RuntimeError, match=r"main\.py failed with exit code 2"):
        call_as_guest(lambda: 2)


def test_signal_that_stopped_a_guest_is_raised_again() -> None:
    received: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: received.append(number))
    try:
        with pytest.raises(RuntimeError):
            call_as_guest(lambda: 128 + signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert received == [signal.SIGTERM]
