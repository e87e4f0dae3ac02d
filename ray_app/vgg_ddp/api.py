"""Train from Python: in a script, in a notebook, or in a Ray task."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from vgg_ddp.compat.ray_constants import restored_network_setting
from vgg_ddp.config import TrainConfig
from vgg_ddp.flags import UsageError, arguments_of
from vgg_ddp.result import RunResult

if TYPE_CHECKING:
    from ray.train import UserCallback

# Added to a signal's number in an exit code.
SIGNALLED = 128
HANDLED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def train(config: TrainConfig, callbacks: "Sequence[UserCallback]" = ()) -> RunResult:
    """Train as `python ray_app/main.py` does, and print the same lines.

    If Ray is initialized, training uses that cluster and leaves it running; otherwise, it uses `config.address` or
    starts a cluster that ends with the run. When this function returns, signal handlers and environment variables are
    as before. A signal that stops the run is raised again then: Ctrl-C becomes a KeyboardInterrupt.

    With `TrainConfig(resume=NAME)`, fields that differ from their defaults count as given, as flags do.

    Args:
        config: the settings; see `TrainConfig`.
        callbacks: Ray Train callbacks. `after_report` is called after each epoch with its metrics on every worker.

    Raises:
        UsageError: if the settings, the data, or the environment are invalid.
        ray.train.TrainingFailedError: if the workers failed more often than `config.max_failures`.
    """
    # Imports what is slow.
    from vgg_ddp.driver.launch import launch

    with _restored_process():
        result = launch(config, arguments_of(config), time.time(), callbacks, show_bar=False)
    if result.ended == "refused":
        raise UsageError(result.message)
    if result.error:
        raise result.error
    if result.signal_number is not None:
        signal.raise_signal(result.signal_number)
    return result


def call_as_guest(main: Callable[[], int]) -> None:
    """Call the `main` of a script in the process of another program, and return if it succeeds.

    The process stays as it was, as after `train`: it is not ended, and keeps its Ray cluster.

    Raises:
        UsageError: if the settings, the data, or the environment are invalid.
        RuntimeError: if the script failed; it has printed why. Not a SystemExit, which may end the other program, or be
            taken for success.
    """
    with _restored_process():
        exit_code = main()
    if exit_code > SIGNALLED:
        signal.raise_signal(exit_code - SIGNALLED)
    if exit_code:
        raise RuntimeError(f"main.py failed with exit code {exit_code}; its output says why")


@contextmanager
def _restored_process() -> Iterator[None]:
    with _restored_handlers(), _restored_environment(), restored_network_setting():
        yield


@contextmanager
def _restored_handlers() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        # Only the main thread can set handlers.
        yield
        return
    handlers = {number: signal.getsignal(number) for number in HANDLED}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


@contextmanager
def _restored_environment() -> Iterator[None]:
    before = dict(os.environ)
    try:
        yield
    finally:
        for name in set(os.environ) - set(before):
            del os.environ[name]
        for name, value in before.items():
            if os.environ.get(name) != value:
                os.environ[name] = value
