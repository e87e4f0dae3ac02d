"""How the driver handles signals while it waits for its workers."""

import os
import signal
import sys
import threading
import time

import pytest

from vgg_ddp.driver import signals
from vgg_ddp.driver.signals import InterruptedRunError, call_interruptibly, interrupt_on_sigterm


@pytest.fixture(autouse=True)
def handlers() -> object:
    """Restore this process's handlers afterwards."""
    previous = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in previous.items():
        signal.signal(number, handler)


def send_soon(number: signal.Signals) -> None:
    threading.Timer(0.3, os.kill, (os.getpid(), number)).start()


def test_signal_handlers_are_restored_after_the_call() -> None:
    with interrupt_on_sigterm():
        pass
    previous = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    assert call_interruptibly(lambda: 7, pytest.fail) == 7
    with pytest.raises(ZeroDivisionError):
        call_interruptibly(lambda: 1 / 0, pytest.fail)
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == previous


def test_ctrl_c_ends_the_wait_immediately() -> None:
    send_soon(signal.SIGINT)
    started = time.monotonic()
    with pytest.raises(InterruptedRunError, match="SIGINT") as error:
        call_interruptibly(lambda: time.sleep(20), pytest.fail)
    assert error.value.exit_code == 130
    assert time.monotonic() - started < 10


def test_sigterm_asks_the_workers_to_stop_and_waits_for_them() -> None:
    asked = threading.Event()
    send_soon(signal.SIGTERM)
    assert call_interruptibly(lambda: asked.wait(20), asked.set)


def test_wait_ends_in_time_if_the_cluster_does_not_respond(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signals, "SECONDS_TO_SAVE", 1.0)
    send_soon(signal.SIGTERM)
    started = time.monotonic()
    with pytest.raises(InterruptedRunError, match="SIGTERM") as error:
        call_interruptibly(lambda: time.sleep(20), lambda: time.sleep(20))
    assert error.value.exit_code == 143
    assert time.monotonic() - started < 10


def test_sigterm_raises_during_ray_init() -> None:
    with pytest.raises(InterruptedRunError, match="SIGTERM"), interrupt_on_sigterm():
        # Like Ray's handler.
        sys.exit(signal.SIGTERM)
    with pytest.raises(SystemExit, match="1"), interrupt_on_sigterm():
        sys.exit(1)
    with interrupt_on_sigterm():
        pass
    with pytest.raises(InterruptedRunError, match="SIGTERM"):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(1)
