"""The driver: check everything that can be checked early, start the workers, report the outcome."""

import sys
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import ExitStack, nullcontext, suppress
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

from vgg_ddp.config import TrainConfig
from vgg_ddp.data.columns import ColumnNames
from vgg_ddp.data.dataset import Dataset
from vgg_ddp.data.layout import MissingFolderError
from vgg_ddp.data.source import Source, find_source
from vgg_ddp.data.streamed_dataset import StreamedDataset
from vgg_ddp.driver import ray_environment
from vgg_ddp.driver.inputs import choose_ingest, load
from vgg_ddp.flags import BAD_INPUT, UsageError
from vgg_ddp.job import Inputs
from vgg_ddp.machine import torchrun
from vgg_ddp.machine.environment import check_ray_settings
from vgg_ddp.observe.mlflow import recorded, require_mlflow
from vgg_ddp.observe.terminal import Follower
from vgg_ddp.run.curves import write_curves
from vgg_ddp.run.files import CURVES_FILE, METRICS_FILE, Row, read_metrics
from vgg_ddp.run.notes import noted
from vgg_ddp.run.runs import Run, lock_file, locked, open_run, require_writable
from vgg_ddp.run.summary import format_summary

if TYPE_CHECKING:
    from vgg_ddp.driver.cluster import Placement
    from vgg_ddp.driver.signals import InterruptedRunError
    from vgg_ddp.job import Outcome


T = TypeVar("T")
FINISHED, FAILED, INTERRUPTED = 0, 1, 130


def launch(config: TrainConfig, arguments: Sequence[str], started_at: float) -> int:
    """Train as the flags specify and return the exit code.

    `started_at` is when the command started, in seconds since 1970.

    Raises:
        UsageError: if the input is invalid.
    """
    torchrun.check_numbers()
    run = open_run(config, arguments)
    if run.config.num_workers and torchrun.is_launcher():
        raise UsageError(f"--num-workers {run.config.num_workers}: torchrun has started the workers; omit this flag.")
    torchrun.check_variables(run.config.num_workers)
    check_ray_settings(starts_cluster=run.config.num_workers != 0)
    if run.config.device == "cpu":
        run = replace(run, config=run.config.with_workers(run.config.workers_on_cpus))
    if run.exists and run.is_finished():
        print(f"Run {run.name} is already finished: there is nothing to train.")
        _print_summary(read_metrics(run.folder))
        print(f"  run folder         {run.folder}")
        print("Use a higher --epochs to train it further, or another --run-name for a new run.")
        return FINISHED
    phases = {"command": started_at, "flags read": time.time()}
    source = _find_data(run)
    if run.config.data == "auto":
        # Decided now, so that a resume uses the same data.
        run = replace(run, config=replace(run.config, data="cifar10" if source.kind == "cifar10" else "sample"))
    ingest = choose_ingest(run.config, source)
    run = replace(run, config=replace(run.config, ingest=ingest))
    require_mlflow(run.config.mlflow)
    require_writable(run)
    with locked(run):
        # Decoding takes about as long as starting Ray and importing torch, so they run at the same time.
        loading = _in_background(lambda: load(run, source))
        if run.config.num_workers == 0:
            return _train_in_this_process(run, loading, phases)
        address = ray_environment.prepare(run.config.address, ingest == "stream", run.config.min_workers is not None)
        return _train_on_ray(run, address, loading, phases)


def _find_data(run: Run) -> Source:
    """The source of a run's images.

    Raises:
        UsageError: if there is none.
    """
    config = run.config
    try:
        return find_source(config.data, config.data_dir, ColumnNames(config.image_column, config.label_column))
    except MissingFolderError as error:
        if run.recorded_images() is None:
            raise
        raise UsageError(f"{error} If the data was moved, add --data with its new location.") from error


def _in_background(call: Callable[[], T]) -> "Future[T]":
    """Call a function in a daemon thread, so that the process can exit before it returns."""
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(call())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future


def _train_in_this_process(run: Run, loading: "Future[Inputs]", phases: dict[str, float]) -> int:
    from vgg_ddp.driver.local import choose_device, train_locally

    use_gpu = choose_device(run.config)
    inputs = loading.result()
    run = with_batch_size(run, inputs.dataset, torchrun.world_size())
    if torchrun.is_rank_zero():
        _announce(run, inputs.dataset)
    phases["images decoded"] = time.time()
    with recorded(run) if torchrun.is_rank_zero() else nullcontext():
        try:
            outcome = train_locally(run, inputs, use_gpu, phases)
        except KeyboardInterrupt:
            # Only rank 0 reliably knows the name of the run.
            if torchrun.is_rank_zero():
                print(f"\nStopped by SIGINT.\n{_how_to_resume(run)}", flush=True)
            return INTERRUPTED
        return _conclude(run, outcome) if torchrun.is_rank_zero() else _exit_code(outcome)


def _train_on_ray(run: Run, address: str, loading: "Future[Inputs]", phases: dict[str, float]) -> int:
    from vgg_ddp.driver.signals import InterruptedRunError

    try:
        # Finishing the MLflow record may take a while: the cluster is released first.
        with ExitStack() as afterwards:
            return _train_on_cluster(run, address, loading, phases, afterwards)
    except InterruptedRunError as error:
        return _interrupted(run, error)


def _train_on_cluster(
    run: Run, address: str, loading: "Future[Inputs]", phases: dict[str, float], afterwards: ExitStack
) -> int:
    import ray

    from vgg_ddp.compat.ray_data import start_coordinator
    from vgg_ddp.driver import cluster
    from vgg_ddp.driver.signals import InterruptedRunError, interrupt_on_signals

    try:
        with interrupt_on_signals():
            connection = cluster.connect(address, run.config.verbose)
        phases["Ray started"] = time.time()
        start_coordinator()
        placement = cluster.place_workers(run.config, own_cluster=address == ray_environment.LOCAL)
        inputs = loading.result()
        phases["images decoded"] = time.time()
        run = replace(run, config=run.config.with_workers(placement.num_workers))
        run = with_batch_size(run, inputs.dataset, placement.num_workers)
        afterwards.enter_context(recorded(run))
        _announce(run, inputs.dataset)
        kind = "GPU" if placement.use_gpu else "CPU"
        if connection.dashboard_url:
            print(f"Dashboard: http://{connection.dashboard_url} (its token: ray get-auth-token)")
        print(f"Workers:   {placement.num_workers} on {kind}, starting", flush=True)
        with Follower(run, phases["command"]):
            outcome = _fit(run, inputs, placement, address == ray_environment.LOCAL, phases)
        return _conclude(run, outcome)
    except InterruptedRunError as error:
        return _interrupted(run, error)
    finally:
        ray.shutdown()


def _interrupted(run: Run, error: "InterruptedRunError") -> int:
    print(f"\nStopped by {error}.\n{_how_to_resume(run)}", flush=True)
    return error.exit_code


def with_batch_size(run: Run, dataset: Dataset | StreamedDataset, num_workers: int) -> Run:
    """The same run with its global batch set.

    Raises:
        UsageError: if a batch needs more images than the training split has.
    """
    config = run.config.with_batch_size(dataset.num_train, num_workers)
    if run.config.batch_size is None and config.global_batch > dataset.num_train:
        raise UsageError(
            f"{num_workers} worker(s) need a batch of {config.global_batch} images, but there are only "
            f"{dataset.num_train} training images: use fewer --num-workers."
        )
    if config.global_batch > dataset.num_train:
        raise UsageError(
            f"--batch-size {config.batch_size}: there are only {dataset.num_train} training images: use at most "
            "that many."
        )
    return replace(run, config=config)


def _announce(run: Run, dataset: Dataset | StreamedDataset) -> None:
    """Print the data and the run folder."""
    images = f"{dataset.num_train:,} training and {dataset.num_test:,} {dataset.test_name or 'test'} images"
    if dataset.test_name is None:
        images = f"{dataset.num_train:,} training images (the test images have no labels: no test accuracy)"
    print(
        f"Data:      {dataset.name}: {images}, {len(dataset.class_names)} classes"
        + ", decoded during training" * (run.config.ingest == "stream")
    )
    print(f"Run:       {'resuming ' if run.exists else ''}{run.folder}", flush=True)


def _fit(
    run: Run, inputs: Inputs, placement: "Placement", own_cluster: bool, phases: dict[str, float]
) -> "Outcome | None":
    """Train under Ray Train; None if the workers failed, after printing their first exception."""
    import ray
    from ray.train import TrainingFailedError

    from vgg_ddp.driver.signals import StopFlag, call_interruptibly
    from vgg_ddp.driver.trainer import build_trainer
    from vgg_ddp.job import Job
    from vgg_ddp.worker.failures import describe

    stop_flag = StopFlag(f"stop-{run.name}-{uuid.uuid4().hex[:8]}")
    job = Job(
        run.config,
        ray.put(inputs),
        run.folder,
        placement.use_gpu,
        is_local=False,
        lock_file=lock_file(run),
        phases=phases,
        stop_requested=stop_flag.is_raised,
    )
    trainer = build_trainer(job, run.folder, placement.resources_per_worker, own_cluster)
    try:
        outcome: Outcome = call_interruptibly(trainer.fit, stop_flag.raise_flag).return_value
    except TrainingFailedError as error:
        failures = getattr(error, "worker_failures", None)
        print(describe(failures) if failures else str(error), file=sys.stderr)
        return None
    return replace(outcome, signal_number=stop_flag.signal_number)


def _conclude(run: Run, outcome: "Outcome | None") -> int:
    """Plot the curves, print the outcome, and return the exit code."""
    rows, has_curves = _draw_curves(run, outcome)
    if outcome is None:
        print("error: training failed; the first failure is shown above.", file=sys.stderr)
    elif outcome.kind == "refused":
        raise UsageError(outcome.message)
    elif outcome.kind in ("diverged", "unsaved"):
        print(f"error: {outcome.message}.", file=sys.stderr)
    elif outcome.kind == "finished":
        print(f"\nFinished {run.name}")
        _print_summary(rows)
        print(f"  run folder         {run.folder}")
        if has_curves:
            print(f"  curves             {run.folder / CURVES_FILE}")
    else:
        print(f"\nStopped after step {outcome.step}.")
    if outcome is None or outcome.kind in ("stopped", "unsaved"):
        print(_how_to_resume(run), flush=True)
    return _exit_code(outcome)


def _draw_curves(run: Run, outcome: "Outcome | None") -> tuple[list[Row], bool]:
    """The run's metrics, as far as they can be read, and whether their curves are drawn."""
    rows: list[Row] = []
    with noted(f"{run.folder / METRICS_FILE} cannot be read"):
        rows = read_metrics(run.folder)
    if rows and not (outcome and outcome.kind == "unsaved"):
        with noted("the curves could not be drawn"):
            write_curves(run.folder, rows, run.name)
            return rows, True
    return rows, False


def _print_summary(rows: list[Row]) -> None:
    if rows:
        with noted("the summary could not be printed"):
            print(format_summary(rows))


def _how_to_resume(run: Run) -> str:
    # If the storage fails now, assume that the run was already stored.
    with suppress(OSError):
        if not run.was_started():
            return "Training had not started: there is nothing to resume."
    return f"Resume from the newest checkpoint with: {run.resume_command()}"


def _exit_code(outcome: "Outcome | None") -> int:
    if outcome and outcome.kind == "stopped":
        # As shells report it.
        return 128 + outcome.signal_number
    return {"finished": FINISHED, "refused": BAD_INPUT}.get(outcome.kind if outcome else "", FAILED)
