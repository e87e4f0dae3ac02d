"""Classify many images through Ray Data: find them, start Ray, classify, write the output."""

import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from vgg_ddp.data.columns import ColumnNames
from vgg_ddp.driver import ray_environment
from vgg_ddp.flags import UsageError
from vgg_ddp.inference.image_set import ImageSet, find_images
from vgg_ddp.inference.output import Output
from vgg_ddp.machine.environment import check_ray_settings
from vgg_ddp.weights.model_bytes import read_description, read_model

if TYPE_CHECKING:
    import pyarrow as pa

SECONDS_BETWEEN_LINES = 10.0
FINISHED, FAILED = 0, 1


@dataclass(frozen=True)
class BatchJob:
    """What the flags of predict.py with the same names say."""

    model: str
    images: str
    output: str
    image_column: str | None
    device: Literal["auto", "cpu", "gpu"]
    address: str | None
    num_workers: int | None
    tta: bool


def classify_images(job: BatchJob) -> int:
    """Classify the images, write the output, and return the exit code.

    Raises:
        UsageError: if the input is invalid.
    """
    check_ray_settings(starts_cluster=True)
    ray_environment.resolve(job.address)
    model = read_model(job.model)
    description = read_description(model, job.model)
    output = Output.at(job.output)
    images = find_images(job.images, ColumnNames(job.image_column), description["image_size"])
    output.require_writable()
    for line in (f"Images:    {images.count:,} {images.name}", *(f"NOTE: {note}" for note in images.notes)):
        print(line, flush=True)
    # As for training: tasks may decode images for GPUs.
    address = ray_environment.prepare(job.address, streamed=True)
    from vgg_ddp.driver.signals import InterruptedRunError, signal_of

    progress = Progress(images)
    try:
        return _classify_on_ray(job, address, model, description, progress, output)
    except (InterruptedRunError, KeyboardInterrupt) as error:
        return stop(progress, signal_of(error))


def stop(progress: "Progress", signal_number: int) -> int:
    """Print that a signal stopped the job, and return the exit code."""
    written = "the output is complete" if progress.is_written else "nothing was written"
    print(f"\nStopped by {signal.Signals(signal_number).name}: {written}.", flush=True)
    return 128 + signal_number


def _classify_on_ray(
    job: BatchJob, address: str, model: bytes, description: dict[str, Any], progress: "Progress", output: Output
) -> int:
    import ray
    from ray.exceptions import RayError

    from vgg_ddp.driver import cluster
    from vgg_ddp.driver.signals import interrupt_on_signals
    from vgg_ddp.inference.pipeline import choose_workers, classify

    try:
        with interrupt_on_signals():
            dashboard_url = cluster.connect(address)
        if dashboard_url:
            print(f"Dashboard: http://{dashboard_url} (its token: ray get-auth-token)")
        own_cluster = address == ray_environment.LOCAL
        workers = choose_workers(job.device, job.num_workers, len(progress.images.chunks), own_cluster)
        print(f"Workers:   {workers.count} on {'GPU' if workers.use_gpu else 'CPU'}, starting", flush=True)
        tables = classify(progress.images, description["image_size"], model, job.model, job.tta, workers)
        output.write(progress.follow(tables), description["class_names"])
        progress.is_written = True
        print(f"Written:   {output.location}: {progress.summary()}", flush=True)
        return FINISHED
    except RayError as error:
        print(f"error: classifying failed, and nothing was written: {error}", file=sys.stderr)
        return FAILED
    finally:
        if address != ray_environment.INITIALIZED:
            ray.shutdown()


class Progress:
    """Counts the rows of the output, and prints a line every ten seconds.

    Attributes:
        images: what to classify.
        is_written: whether the output is complete.
    """

    def __init__(self, images: ImageSet) -> None:
        self.images = images
        self.is_written = False
        self._done, self._errors = 0, 0
        # Without the images of the first table, for which the actors started.
        self._counted_from, self._first = 0.0, 0

    def follow(self, tables: "Iterator[pa.Table]") -> "Iterator[pa.Table]":
        """Pass the tables on, and count their rows.

        Raises:
            UsageError: if none of the images could be read, or their number has changed.
        """
        example, printed = "", time.monotonic()
        for table in tables:
            if not self._done:
                self._counted_from, self._first = time.monotonic(), len(table)
            self._done += len(table)
            failed = table.filter(table["error"].is_valid())
            if len(failed) and not self._errors:
                example = f"{failed['path'][0]}: {failed['error'][0]}"
            self._errors += len(failed)
            if time.monotonic() - printed > SECONDS_BETWEEN_LINES:
                printed = time.monotonic()
                print(f"Progress:  {self._done:,} of {self.images.count:,}{self._rate()}", flush=True)
            yield table
        if self._done != self.images.count:
            raise UsageError(f"the images changed: there were {self.images.count:,}, but {self._done:,} were read.")
        if self._errors == self.images.count:
            raise UsageError(f"none of the {self.images.count:,} {self.images.name} can be read: {example}.")

    def summary(self) -> str:
        """How many images were classified, how many could not be read, and images per second."""
        unreadable = f" ({self._errors:,} unreadable, see column error)" if self._errors else ""
        return f"{self._done - self._errors:,} images classified{unreadable}{self._rate()}"

    def _rate(self) -> str:
        seconds = time.monotonic() - self._counted_from
        return f", {(self._done - self._first) / seconds:,.0f} images/s" if self._done > self._first else ""
