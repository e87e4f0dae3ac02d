"""Record a run in MLflow: settings, metrics, curves, and the model, from a thread of the driver."""

import importlib.util
import logging
import math
import os
import re
import sqlite3
import tempfile
import threading
import warnings
from collections.abc import Collection, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from vgg_ddp.flags import UsageError
from vgg_ddp.run.chosen import CHOSEN_FILE, read_chosen
from vgg_ddp.run.files import (
    CONFIG_FILE,
    CURVES_FILE,
    METRICS_FILE,
    MODEL_FILE,
    TEST_COLUMNS,
    Row,
    has_validation,
    read_metrics,
)
from vgg_ddp.run.notes import print_note, reason
from vgg_ddp.run.runs import Run
from vgg_ddp.run.summary import kept_row

if TYPE_CHECKING:
    from mlflow.entities import Metric
    from mlflow.tracking import MlflowClient


SQLITE = "sqlite:///"
LOCAL_STORE = f"{SQLITE}mlflow.db"
EXPERIMENT = "vgg11-ddp"
# Identifies the record of a run when it is resumed.
FOLDER_TAG = "run_folder"
POLL_SECONDS = 5.0
# Time limit for sending the rest after training.
SECONDS_TO_FINISH = 120.0
# How long another process may keep an SQLite file locked.
SECONDS_FOR_LOCK = 20.0
ARTIFACTS = (CONFIG_FILE, CHOSEN_FILE, METRICS_FILE, CURVES_FILE)
SETTINGS = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}


def require_mlflow(uri: str | None) -> None:
    """Check that a run can be recorded, if --mlflow is given.

    Raises:
        UsageError: if MLflow is not installed, or the URI contains a password, which would be stored with the run.
    """
    if uri and re.search(r"//[^/]*@", uri):
        raise UsageError("--mlflow: set user and password in MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD.")
    if uri and not all(importlib.util.find_spec(package) for package in ("mlflow", "botocore")):
        raise UsageError(f"--mlflow {uri}: MLflow or boto3 is not installed: pip install -r requirements.txt.")


@contextmanager
def recorded(run: Run) -> Iterator[None]:
    """Record the run in MLflow within this context, if --mlflow is given."""
    if not run.config.mlflow:
        yield
        return
    recorder = Recorder(run, LOCAL_STORE if run.config.mlflow == "local" else run.config.mlflow)
    recorder.start()
    try:
        yield
    finally:
        recorder.finish()


class Recorder:
    """Sends new results from a run's folder to an MLflow store.

    The first error of the store is reported and ends the recording.
    """

    def __init__(self, run: Run, uri: str) -> None:
        self._run = run
        self._uri = uri
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._record, name="mlflow", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def finish(self) -> None:
        """Send the rest; give up after two minutes."""
        self._is_over.set()
        self._thread.join(SECONDS_TO_FINISH)
        if self._thread.is_alive():
            self._report(f"did not finish within {SECONDS_TO_FINISH:.0f} s")

    def _report(self, what: str) -> None:
        print_note(f"MLflow at {self._uri} {what}; the run itself is not affected.")

    def _record(self) -> None:
        try:
            self._send()
        except (Exception, SystemExit) as error:
            # All exceptions: besides its own, MLflow lets through those of HTTP, JSON, databases, AWS, and its imports.
            self._report(f"cannot be used ({reason(error)})")

    def _send(self) -> None:
        for name, value in SETTINGS.items():
            os.environ.setdefault(name, value)
        _probe(self._uri)
        import mlflow
        from mlflow.tracking import MlflowClient

        # Hide tracebacks of errors that `_report` prints, and table-migration logs.
        logging.getLogger("mlflow").setLevel(logging.CRITICAL)
        logging.getLogger("alembic").setLevel(logging.WARNING)
        # The plugin for SageMaker's servers reads only this setting.
        mlflow.set_tracking_uri(self._uri)
        client = MlflowClient(self._uri)
        run_id, last_epoch = self._open(client)
        while not self._is_over.wait(POLL_SECONDS):
            last_epoch = self._send_rows(client, run_id, last_epoch)
        self._send_rows(client, run_id, last_epoch)
        self._send_results(client, run_id)

    def _open(self, client: "MlflowClient") -> tuple[str, float]:
        """The ID of this run's record, and the last epoch in it."""
        from mlflow.entities import Param, RunTag

        experiment = client.get_experiment_by_name(EXPERIMENT)
        experiment_id = experiment.experiment_id if experiment else client.create_experiment(EXPERIMENT)
        folder = str(self._run.folder)
        # A new run may reuse the folder of a deleted one.
        if self._run.exists and (found := client.search_runs([experiment_id], f"tags.{FOLDER_TAG} = '{folder}'")):
            run_id: str = found[0].info.run_id
            client.update_run(run_id, "RUNNING")
            history = client.get_metric_history(run_id, "loss")
            return run_id, max((metric.step for metric in history), default=0)
        record = client.create_run(experiment_id, run_name=self._run.name, tags={FOLDER_TAG: folder})
        settings = self._run.config.to_dict()
        params = [Param(name, str(value)) for name, value in settings.items()]
        client.log_batch(record.info.run_id, params=params, tags=[RunTag("framework", "ray train, torch")])
        return record.info.run_id, 0

    def _send_rows(self, client: "MlflowClient", run_id: str, last_epoch: float) -> float:
        """Send the epochs after the last one in the store; return the new last one."""
        from mlflow.entities import RunTag

        rows = read_metrics(self._run.folder)
        # With a validation split, an epoch is tested after it was sent: see `_send_results`.
        late = TEST_COLUMNS if has_validation(rows) else ()
        for row in rows:
            # A restart may repeat epochs, with the same numbers.
            if row["epoch"] > last_epoch:
                metrics = _metrics(row, row.keys() - {*late})
                # Tags, because a resume may choose differently and params cannot change.
                tags = [RunTag(f"chosen.{name}", value) for name, value in read_chosen(self._run.folder).items()]
                client.log_batch(run_id, metrics=metrics, tags=tags)
                last_epoch = row["epoch"]
        return last_epoch

    def _send_results(self, client: "MlflowClient", run_id: str) -> None:
        folder = self._run.folder
        rows = read_metrics(folder)
        if has_validation(rows):
            client.log_batch(run_id, metrics=_metrics(kept_row(rows), TEST_COLUMNS))
        with tempfile.TemporaryDirectory() as temporary:
            for name in ARTIFACTS:
                if folder.exists(name):
                    Path(temporary, name).write_bytes(folder.read(name))
                    client.log_artifact(run_id, str(Path(temporary, name)))
            if not self._run.is_finished():
                client.set_terminated(run_id, "KILLED")
                return
            model = Path(temporary, MODEL_FILE)
            model.write_bytes(folder.read(MODEL_FILE))
            _send_model(run_id, model, int(self._run.config.image_size))
        client.set_terminated(run_id, "FINISHED")


def _metrics(row: Row, names: Collection[str]) -> "list[Metric]":
    """These metrics of an epoch, except for those that are nan."""
    from mlflow.entities import Metric

    step, milliseconds = int(row["epoch"]), round(row["time"] * 1000)
    known = {name: value for name, value in row.items() if name in names and not math.isnan(value)}
    return [Metric(name, value, milliseconds, step) for name, value in known.items()]


def _probe(uri: str) -> None:
    """Check that a store that is an SQLite file can be written: MLflow itself would try for two minutes.

    Raises:
        sqlite3.Error: if it cannot be.
    """
    if uri.startswith(SQLITE):
        with closing(sqlite3.connect(uri.removeprefix(SQLITE), timeout=SECONDS_FOR_LOCK)) as store:
            store.execute("BEGIN IMMEDIATE")


def _send_model(run_id: str, model: Path, image_size: int) -> None:
    """Store the model; `mlflow.pyfunc.load_model` then predicts class probabilities of uint8 images."""
    import mlflow
    import numpy as np
    from mlflow.models import ModelSignature
    from mlflow.types import Schema, TensorSpec

    from vgg_ddp.weights.mlflow_model import ServedModel

    images = TensorSpec(np.dtype(np.uint8), (-1, image_size, image_size, 3))
    probabilities = TensorSpec(np.dtype(np.float32), (-1, -1))
    with warnings.catch_warnings(), mlflow.start_run(run_id=run_id, log_system_metrics=False):
        # MLflow warns about the missing input example.
        warnings.simplefilter("ignore", UserWarning)
        mlflow.pyfunc.log_model(
            name="model",
            python_model=ServedModel(),
            artifacts={"model": str(model)},
            code_paths=[str(Path(__file__).resolve().parents[1])],
            signature=ModelSignature(Schema([images]), Schema([probabilities])),
            pip_requirements=["torch", "numpy", "pyarrow", "safetensors"],
        )
