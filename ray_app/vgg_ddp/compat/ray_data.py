"""Changes to Ray Data for which Ray has no public API. Tested with Ray 2.60.0."""

import logging
import time
from importlib import import_module
from typing import Any

from vgg_ddp.compat.fallback import log_fallback

COORDINATOR = "ray.data._internal.cluster_autoscaler.default_autoscaling_coordinator"
EXECUTION_CALLBACK = "ray.data._internal.execution.execution_callback"
# The logger of Ray Data's warning that progress bars are off. If it has another name, the warning is shown.
PROGRESS_LOGGER = "ray.data._internal.progress"

QUICK_STEP_SECONDS, FREE_STEPS = 0.01, 5
FIRST_PAUSE_SECONDS, MAX_DOUBLINGS = 0.001, 5


def start_coordinator() -> None:
    """Start the actor from which Ray Train's controller requests resources.

    Otherwise, the controller would start it and wait for it. Starting both at the same time saves 3 s on two cores. Ray
    has no public API for this. Without it, the run just starts later.
    """
    try:
        import_module(COORDINATOR).get_or_create_autoscaling_coordinator()
    except (ImportError, AttributeError, TypeError):
        log_fallback(f"{COORDINATOR}.get_or_create_autoscaling_coordinator", "runs start some seconds later")


def set_up_context(verbose: bool) -> Any:
    """Make Ray Data keep the order of rows, poll with `IdleBackoff`, and, unless `verbose`, print nothing.

    Returns:
        The `ray.data.DataContext` of this process.
    """
    # Imported here, because runs that do not stream need only `start_coordinator`, as early as possible.
    from ray.data import DataContext

    context = DataContext.get_current()
    context.execution_options.preserve_order = True
    add_idle_backoff(context)
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    if not verbose:
        # Otherwise, Ray Data logs each execution.
        logging.getLogger("ray.data").setLevel(logging.WARNING)
        silence_progress_warning()
    return context


def add_idle_backoff(context: Any) -> None:
    """Add `IdleBackoff` to the executions of a `ray.data.DataContext`."""
    try:
        callback = import_module(EXECUTION_CALLBACK).ExecutionCallback
        classes = context.custom_execution_callback_classes
    except (ImportError, AttributeError):
        log_fallback(f"{EXECUTION_CALLBACK}.ExecutionCallback", "streaming takes up to a core more per worker")
        return
    if not any(issubclass(kind, IdleBackoff) for kind in classes):
        context.custom_execution_callback_classes = [*classes, type("IdleBackoffCallback", (IdleBackoff, callback), {})]


class IdleBackoff:
    """Backs off Ray Data's executor, a thread of each worker, when it polls its tasks without progress.

    Ray 2.60 polls without a pause while decoded images wait to be consumed, which takes up to a core per worker. A step
    with work to do waits for tasks, so it is not quick. Each pause is twice as long as the previous one, up to 32 ms.
    Ray has no setting for the polling interval, and no public hook for the executor's steps.
    """

    def __init__(self) -> None:
        self._quick_steps = 0
        self._stepped_at = 0.0

    def on_execution_step(self, executor: object) -> None:  # noqa: ARG002 - Ray's signature
        quick = time.monotonic() - self._stepped_at < QUICK_STEP_SECONDS
        self._quick_steps = self._quick_steps + 1 if quick else 0
        doublings = self._quick_steps - FREE_STEPS
        if doublings >= 0:
            time.sleep(FIRST_PAUSE_SECONDS * 2 ** min(doublings, MAX_DOUBLINGS))
        self._stepped_at = time.monotonic()


def silence_progress_warning() -> None:
    """Hide Ray Data's warning that progress bars are off, for which it has no setting."""
    logging.getLogger(PROGRESS_LOGGER).setLevel(logging.ERROR)
