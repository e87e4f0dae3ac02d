"""How the driver handles signals while it waits for its workers."""

import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from vgg_ddp.config import TrainConfig
from vgg_ddp.driver import cluster, launch, on_cluster, ray_environment, signals
from vgg_ddp.driver.attempt import Attempt
from vgg_ddp.driver.signals import InterruptedRunError, call_interruptibly, interrupt_on_signals
from vgg_ddp.job import Outcome
from vgg_ddp.result import RunResult
from vgg_ddp.run.files import MODEL_FILE, Row, write_config, write_metrics
from vgg_ddp.run.runs import Run
from vgg_ddp.run.storage import Folder

HANDLED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@pytest.fixture(autouse=True)
def handlers() -> object:
    """Restore this process's handlers afterwards."""
    previous = {number: signal.getsignal(number) for number in HANDLED}
    yield
    for number, handler in previous.items():
        signal.signal(number, handler)


def send_soon(number: signal.Signals) -> None:
    threading.Timer(0.3, os.kill, (os.getpid(), number)).start()


def test_signal_handlers_are_restored_after_the_call() -> None:
    with interrupt_on_signals():
        pass
    previous = [signal.getsignal(number) for number in HANDLED]
    assert call_interruptibly(lambda: 7, pytest.fail) == 7
    with pytest.raises(ZeroDivisionError):
        call_interruptibly(lambda: 1 / 0, pytest.fail)
    assert [signal.getsignal(number) for number in HANDLED] == previous


def test_ctrl_c_ends_the_wait_immediately() -> None:
    send_soon(signal.SIGINT)
    started = time.monotonic()
    with pytest.raises(InterruptedRunError, match="SIGINT") as error:
        call_interruptibly(lambda: time.sleep(20), pytest.fail)
    assert error.value.signal_number == signal.SIGINT
    assert time.monotonic() - started < 10


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_signal_asks_the_workers_to_stop_and_waits_for_them(number: signal.Signals) -> None:
    asked: queue.Queue[int] = queue.Queue()
    send_soon(number)
    assert call_interruptibly(lambda: asked.get(timeout=20), asked.put) == number


def test_ignored_sighup_stays_ignored() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with interrupt_on_signals():
        pass
    send_soon(signal.SIGHUP)
    assert call_interruptibly(lambda: time.sleep(1) or 7, pytest.fail) == 7
    assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN


def test_child_processes_do_not_get_the_sighup_of_a_closing_terminal() -> None:
    program = "import signal; print(signal.SIGHUP in signal.pthread_sigmask(signal.SIG_BLOCK, set()))"
    with interrupt_on_signals():
        child = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert child.stdout == "True\n"
    with pytest.raises(InterruptedRunError, match="SIGHUP") as error:
        os.kill(os.getpid(), signal.SIGHUP)
        time.sleep(1)
    assert error.value.signal_number == signal.SIGHUP


def test_wait_ends_in_time_if_the_cluster_does_not_respond(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signals, "SECONDS_TO_SAVE", 1.0)
    send_soon(signal.SIGTERM)
    started = time.monotonic()
    with pytest.raises(InterruptedRunError, match="SIGTERM") as error:
        call_interruptibly(lambda: time.sleep(20), lambda _: time.sleep(20))
    assert error.value.signal_number == signal.SIGTERM
    assert time.monotonic() - started < 10


def test_other_threads_leave_the_handlers_alone() -> None:
    def use_all() -> int:
        with interrupt_on_signals():
            return call_interruptibly(lambda: 7, pytest.fail)

    previous = [signal.getsignal(number) for number in HANDLED]
    with ThreadPoolExecutor(1) as threads:
        assert threads.submit(use_all).result(20) == 7
    assert [signal.getsignal(number) for number in HANDLED] == previous


def test_ctrl_c_asks_the_workers_of_a_shared_cluster_to_stop() -> None:
    asked: queue.Queue[int] = queue.Queue()
    send_soon(signal.SIGINT)
    assert call_interruptibly(lambda: asked.get(timeout=20), asked.put, is_shared=True) == signal.SIGINT


def test_sigterm_raises_during_ray_init() -> None:
    with pytest.raises(InterruptedRunError, match="SIGTERM"), interrupt_on_signals():
        # Like Ray's handler.
        sys.exit(signal.SIGTERM)
    with pytest.raises(SystemExit, match="1"), interrupt_on_signals():
        sys.exit(1)
    with interrupt_on_signals():
        pass
    with pytest.raises(InterruptedRunError, match="SIGTERM"):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(1)


@pytest.fixture
def attempt(run: Folder) -> Attempt:
    config = TrainConfig(epochs=2, storage_path=str(Path(run.path).parent))
    loading: Future[Any] = Future()
    loading.set_result(SimpleNamespace(dataset=SimpleNamespace(num_train=100, num_validation=0)))
    return Attempt(Run(config, "run", run, exists=True), loading, {}, (), show_bar=False)


def press_ctrl_c(*_: object) -> None:
    raise KeyboardInterrupt


def stopped_while_connecting(attempt: Attempt, monkeypatch: pytest.MonkeyPatch) -> RunResult:
    monkeypatch.setattr(cluster, "connect", press_ctrl_c)
    return on_cluster.train_on_cluster(attempt, ray_environment.INITIALIZED)


def stopped_while_drawing(attempt: Attempt, monkeypatch: pytest.MonkeyPatch) -> RunResult:
    monkeypatch.setattr("vgg_ddp.driver.local.choose_device", lambda _: False)
    monkeypatch.setattr("vgg_ddp.driver.local.train_locally", lambda *_: Outcome("finished"))
    monkeypatch.setattr(launch, "announce", lambda *_: None)
    monkeypatch.setattr(launch, "conclude", press_ctrl_c)
    return launch._train_in_this_process(attempt)


@pytest.mark.parametrize(
    ("epochs", "advice"),
    [
        (None, "Training had not started: there is nothing to resume."),
        (1, "Resume from the newest checkpoint with: "),
        (2, "All epochs are done. Complete the run folder with: "),
    ],
)
def test_ctrl_c_outside_of_training_says_how_to_resume(
    epochs: int | None,
    advice: str,
    attempt: Attempt,
    make_rows: Callable[[int], list[Row]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = attempt.run
    if epochs is not None:
        write_config(run.folder, run.config.to_dict())
        write_metrics(run.folder, make_rows(epochs))
    if epochs == run.config.epochs:
        run.folder.write(MODEL_FILE, b"")
    command = run.resume_command() if epochs else ""
    for stop in (stopped_while_connecting, stopped_while_drawing):
        result = stop(attempt, monkeypatch)
        assert (result.ended, result.signal_number) == ("stopped", signal.SIGINT)
        assert capsys.readouterr().out == f"\nStopped by SIGINT.\n{advice}{command}\n"
