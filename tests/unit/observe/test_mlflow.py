"""The record of a run in MLflow, compared with the run folder."""

import math
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from screenshots import mlflow_server
from support.choices import write_choices
from support.command import free_port
from vgg_ddp.config import TrainConfig
from vgg_ddp.flags import UsageError
from vgg_ddp.observe.mlflow import POLL_SECONDS, recorded, require_mlflow
from vgg_ddp.run.curves import write_curves
from vgg_ddp.run.files import Row, write_metrics
from vgg_ddp.run.runs import Run
from vgg_ddp.run.storage import Folder

MakeRows = Callable[[int], list[Row]]


@pytest.fixture
def a_run(run: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.chdir(tmp_path)
    return Run(TrainConfig(epochs=3, mlflow="local"), "run", run, exists=False)


def history(uri: str) -> dict[str, dict[int, list[float]]]:
    """Values of each metric by step, of the only run in a store; check that it is the only one."""
    from mlflow.tracking import MlflowClient

    client = MlflowClient(uri)
    (experiment,) = [found for found in client.search_experiments() if found.name == "vgg11-ddp"]
    (record,) = client.search_runs([experiment.experiment_id])
    values: dict[str, dict[int, list[float]]] = {}
    for name in record.data.metrics:
        for metric in client.get_metric_history(record.info.run_id, name):
            values.setdefault(name, {}).setdefault(metric.step, []).append(metric.value)
    return values


def by_epoch(rows: list[Row]) -> dict[str, dict[int, list[float]]]:
    """What the store must hold: every number that is known."""
    values: dict[str, dict[int, list[float]]] = {}
    for row in rows:
        for name, value in row.items():
            if not math.isnan(value):
                values.setdefault(name, {})[int(row["epoch"])] = [value]
    return values


def assert_holds_the_run(server: str, location: str, run: Folder, make_rows: MakeRows, model_folder: Path) -> None:
    """Record a run at a location, and read it from the server there."""
    from mlflow.tracking import MlflowClient

    with recorded(Run(TrainConfig(epochs=2, mlflow=location), "run", run, exists=False)):
        rows = make_rows(2)
        write_metrics(run, rows)
        shutil.copy(model_folder / "model.safetensors", run.path)
    assert history(server) == by_epoch(rows)
    client = MlflowClient(server)
    experiment = client.get_experiment_by_name("vgg11-ddp")
    assert experiment
    (record,) = client.search_runs([experiment.experiment_id])
    assert record.info.status == "FINISHED"
    assert record.data.params["mlflow"] == location
    (model,) = client.search_logged_models([experiment.experiment_id])
    assert model.source_run_id == record.info.run_id


@pytest.mark.slow
def test_server_matches_the_run_folder(
    run: Folder, make_rows: MakeRows, model_folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with mlflow_server(tmp_path, "--artifacts-destination", str(tmp_path / "artifacts")) as server:
        assert_holds_the_run(server, server, run, make_rows, model_folder)
    assert capfd.readouterr() == ("", "")


@pytest.mark.slow
def test_sagemaker_server_matches_the_run_folder(
    run: Folder,
    make_rows: MakeRows,
    model_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    # Like SageMaker's, this server leaves the files to the client.
    options = ("--no-serve-artifacts", "--default-artifact-root", str(tmp_path / "artifacts"))
    with mlflow_server(tmp_path, *options) as server:
        # The plugin signs its requests for AWS and sends them here.
        monkeypatch.setenv("SAGEMAKER_MLFLOW_CUSTOM_ENDPOINT", server)
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "id")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        arn = "arn:aws:sagemaker:us-west-2:123456789012:mlflow-tracking-server/mine"
        assert_holds_the_run(server, arn, run, make_rows, model_folder)
    assert capfd.readouterr() == ("", "")


@pytest.mark.slow
def test_store_matches_the_run_folder(
    a_run: Run,
    make_rows: MakeRows,
    model_folder: Path,
    tmp_path: Path,
    random_pixels: npt.NDArray[np.uint8],
    expected_probabilities: npt.NDArray[np.float64],
    capfd: pytest.CaptureFixture[str],
) -> None:
    import mlflow

    write_choices(a_run.folder, replace(a_run.config, batch_size=24), device_name="a CPU", precision="bf16")
    with recorded(a_run):
        write_metrics(a_run.folder, make_rows(1))
    with recorded(replace(a_run, exists=True)):
        # The second command continues the record of the first.
        rows = make_rows(3)
        write_metrics(a_run.folder, rows)
        write_curves(a_run.folder, rows, "run")
        shutil.copy(model_folder / "model.safetensors", a_run.folder.path)
    assert history(f"sqlite:///{tmp_path}/mlflow.db") == by_epoch(rows)
    # MLflow prints a lot.
    assert capfd.readouterr() == ("", "")
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/mlflow.db")
    (record,) = mlflow.search_runs(experiment_names=["vgg11-ddp"], output_format="list")
    assert record.info.status == "FINISHED"
    settings = a_run.config.to_dict()
    assert record.data.params == {name: str(value) for name, value in settings.items()}
    assert record.data.tags["chosen.precision"] == "bf16"
    files = {artifact.path for artifact in mlflow.MlflowClient().list_artifacts(record.info.run_id)}
    assert files >= {"metrics.csv", "curves.png", "chosen.json"}
    model = mlflow.pyfunc.load_model(f"runs:/{record.info.run_id}/model")
    assert model.metadata.signature is not None
    probabilities = model.predict(random_pixels)
    np.testing.assert_allclose(probabilities, expected_probabilities, atol=1e-5)


@pytest.mark.slow
def test_test_of_an_earlier_epoch_is_sent_at_the_end(a_run: Run, make_rows: MakeRows, tmp_path: Path) -> None:
    untested = {"test_loss": math.nan, "test_accuracy": math.nan, "validation_loss": 1.5, "validation_accuracy": 0.5}
    rows = [row | untested for row in make_rows(2)]
    # MLflow caches stores by URI.
    store = f"sqlite:///{tmp_path}/mlflow.db"
    with recorded(replace(a_run, config=replace(a_run.config, mlflow=store))):
        write_metrics(a_run.folder, rows)
        time.sleep(POLL_SECONDS + 1)
        rows[0] |= {"test_loss": 1.25, "test_accuracy": 0.625}
        write_metrics(a_run.folder, rows)
    assert history(store) == by_epoch(rows)


@pytest.mark.slow
def test_new_run_in_the_folder_of_a_deleted_one_gets_its_own_record(
    a_run: Run, make_rows: MakeRows, tmp_path: Path
) -> None:
    from mlflow.tracking import MlflowClient

    # MLflow caches stores by URI.
    store = f"sqlite:///{tmp_path}/mlflow.db"
    for lr in (None, 0.5):
        with recorded(replace(a_run, config=replace(a_run.config, mlflow=store, lr=lr))):
            write_metrics(a_run.folder, make_rows(1))
    client = MlflowClient(store)
    experiment = client.get_experiment_by_name("vgg11-ddp")
    assert experiment
    records = client.search_runs([experiment.experiment_id])
    assert sorted(record.data.params["lr"] for record in records) == ["0.5", "None"]
    assert all("test_accuracy" in record.data.metrics for record in records)


def test_unreachable_server_is_reported_and_does_not_stop_the_run(
    a_run: Run, make_rows: MakeRows, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    uri = f"http://127.0.0.1:{free_port()}"
    started = time.monotonic()
    with recorded(Run(TrainConfig(mlflow=uri), "run", a_run.folder, exists=False)):
        write_metrics(a_run.folder, make_rows(1))
    assert time.monotonic() - started < 60
    error = capsys.readouterr().err
    assert error.startswith(f"NOTE: MLflow at {uri} cannot be used (") and error.count("\n") == 1


def test_run_without_the_flag_does_not_import_mlflow(run: Folder) -> None:
    before = "mlflow" in sys.modules
    with recorded(Run(TrainConfig(), "run", run, exists=False)):
        assert ("mlflow" in sys.modules) == before
    assert not run.exists()


def test_password_in_a_uri_is_refused_and_not_shown() -> None:
    with pytest.raises(UsageError, match="MLFLOW_TRACKING_PASSWORD") as error:
        require_mlflow("https://me:hunter2@example.org")
    assert "hunter2" not in str(error.value)
    require_mlflow("https://example.org")
    require_mlflow(None)
