"""Training from Python: Ray's result and callbacks, and `vgg_ddp.train` in scripts, tasks, and initialized clusters."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd
import pytest
import ray
from ray.cluster_utils import Cluster
from ray.exceptions import RayActorError
from ray.train import Result, TrainingFailedError, UserCallback

from support.command import PATIENCE, ROOT, free_port, wait_until
from vgg_ddp import TrainConfig, UsageError, train
from vgg_ddp.run import checkpoint
from vgg_ddp.run.files import read_metrics
from vgg_ddp.run.storage import Folder

Fit = Callable[..., tuple[Result, Folder]]
HANDLED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
QUICK = {"batch_size": 24, "recipe": "classic", "precision": "fp32"}


def make_callback(log: Path) -> UserCallback:
    """A callback that writes each report's epochs to a file."""

    # Ray pickles a nested class by value, so the controller does not import the tests.
    class Epochs(UserCallback):
        def after_report(self, run_context: object, metrics: list[dict[str, float]], checkpoint: object) -> None:  # noqa: ARG002
            with log.open("a") as file:
                file.write(f"{[row['epoch'] for row in metrics]}\n")

    return Epochs()


def test_result_has_the_metrics_and_the_checkpoint_of_the_run_folder(fit: Fit, tmp_path: Path) -> None:
    callback = make_callback(tmp_path / "log")
    fit(2, epochs=1, run_name="reported", callbacks=[callback])
    result, folder = fit(2, epochs=3, run_name="reported", callbacks=[callback])
    rows = read_metrics(folder)
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    assert result.metrics == rows[-1]
    # Ray reports only the epochs after the resume; the folder has all of them.
    pd.testing.assert_frame_equal(result.metrics_dataframe, pd.DataFrame(rows))
    assert result.path == str(folder)
    with result.checkpoint.as_directory() as checkpoint_folder:
        name = Path(checkpoint_folder).name
    assert checkpoint.read(folder, name)["step"] == rows[-1]["step"]
    assert (tmp_path / "log").read_text().splitlines() == ["[1, 1]", "[2, 2]", "[3, 3]"]


@pytest.fixture
def config(tiny_data: Path, tmp_path: Path) -> dict[str, object]:
    return QUICK | {"data": str(tiny_data), "storage_path": str(tmp_path / "runs")}


@pytest.mark.usefixtures("ray_cluster")
def test_initialized_cluster_is_used_and_stays_usable(config: dict[str, object], tmp_path: Path) -> None:
    handlers, environment = [signal.getsignal(number) for number in HANDLED], dict(os.environ)
    node = ray.get_runtime_context().get_node_id()
    result = train(TrainConfig(num_workers=2, epochs=2, **config), [make_callback(tmp_path / "log")])
    assert (result.ended, result.folder) == ("finished", str(tmp_path / "runs" / result.name))
    assert result.rows == read_metrics(Folder.at(result.folder))
    assert result.model is not None and Path(result.model).is_file()
    assert (tmp_path / "log").read_text().splitlines() == ["[1, 1]", "[2, 2]"]
    assert [node["NodeID"] for node in ray.nodes()] == [node]
    assert ray.get(ray.remote(lambda: 7).remote()) == 7
    assert ([signal.getsignal(number) for number in HANDLED], dict(os.environ)) == (handlers, environment)
    with pytest.raises(UsageError, match="--address auto: Ray is initialized in this process already"):
        train(TrainConfig(address="auto", **config))


@pytest.mark.usefixtures("ray_cluster")
def test_ray_task_can_train(config: dict[str, object]) -> None:
    def train_in_task() -> Result:
        from vgg_ddp import TrainConfig, train

        return train(TrainConfig(num_workers=1, epochs=1, **config))

    result = ray.get(ray.remote(num_cpus=0)(train_in_task).remote())
    assert (result.ended, len(result.rows)) == ("finished", 1)
    assert Path(result.model).is_file()


@pytest.fixture
def second_cluster() -> Iterator[None]:
    """Another Ray cluster on this machine, without a dashboard."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    yield
    cluster.shutdown()


@pytest.mark.usefixtures("ray_cluster", "second_cluster")
def test_cpus_of_a_killed_run_become_available(config: dict[str, object], tmp_path: Path) -> None:
    class Trial:
        def train(self) -> None:
            from vgg_ddp import TrainConfig, train

            train(TrainConfig(num_workers=1, epochs=1000, run_name="killed", **config))

    wait_until(lambda: ray.available_resources()["CPU"] == ray.cluster_resources()["CPU"])
    trial = ray.remote(num_cpus=0)(Trial).remote()
    ended = trial.train.remote()
    wait_until(lambda: any(tmp_path.glob("runs/killed/metrics.csv")))
    assert ray.available_resources()["CPU"] == ray.cluster_resources()["CPU"] - 1
    ray.kill(trial)
    with pytest.raises(RayActorError):
        ray.get(ended)
    wait_until(lambda: ray.available_resources()["CPU"] == ray.cluster_resources()["CPU"], seconds=90)


@pytest.mark.usefixtures("ray_cluster")
def test_ctrl_c_saves_and_raises_keyboard_interrupt(config: dict[str, object], tmp_path: Path) -> None:
    def interrupt_after_the_first_epoch() -> None:
        wait_until(lambda: any(tmp_path.glob("runs/endless/metrics.csv")))
        os.kill(os.getpid(), signal.SIGINT)

    # The processes of pytest-xdist ignore Ctrl-C.
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    threading.Thread(target=interrupt_after_the_first_epoch, daemon=True).start()
    try:
        with pytest.raises(KeyboardInterrupt):
            train(TrainConfig(num_workers=1, epochs=1000, run_name="endless", **config))
    finally:
        signal.signal(signal.SIGINT, previous)
    assert ray.get(ray.remote(lambda: 7).remote()) == 7
    folder = Folder.at(str(tmp_path / "runs" / "endless"))
    newest = checkpoint.newest_complete(folder)
    assert newest is not None and checkpoint.read(folder, newest)["step"] >= 10


@pytest.mark.usefixtures("ray_cluster")
def test_failing_workers_raise_an_exception(config: dict[str, object], tmp_path: Path) -> None:
    # The workers cannot read it as a checkpoint.
    broken = tmp_path / "runs" / "broken" / "checkpoint_00000001_abcdef"
    broken.mkdir(parents=True)
    (broken / "manifest.json").mkdir()
    with pytest.raises(TrainingFailedError):
        train(TrainConfig(num_workers=1, epochs=1, run_name="broken", max_failures=0, **config))


SCRIPT = """
import atexit, os, signal, sys
from ray.train import UserCallback
from vgg_ddp import TrainConfig, train

class Listening(UserCallback):
    def after_report(self, run_context, metrics, checkpoint):
        import psutil
        for connection in psutil.net_connections("tcp"):
            if connection.status == psutil.CONN_LISTEN and connection.pid:
                owner = psutil.Process(connection.pid)
                if not connection.laddr.ip.endswith(("127.0.0.1", "::1")) and sys.argv[1] in owner.environ().values():
                    print("OPEN", owner.cmdline(), connection.laddr, flush=True)

handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
atexit.register(lambda: print("ended as usual"))
environment = dict(os.environ)
for num_workers in (1, 0):
    settings = dict(batch_size=24, recipe="classic", precision="fp32", data=sys.argv[2], epochs=1)
    result = train(TrainConfig(num_workers=num_workers, **settings), [Listening()])
    assert result.ended == "finished", result
import ray
assert not ray.is_initialized()
assert handlers == [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
assert environment == dict(os.environ)
"""


def test_script_trains_twice_on_its_own_cluster_and_ends_as_usual(tiny_data: Path, tmp_path: Path) -> None:
    mark = f"mark-{free_port()}"
    environment = os.environ | {"PYTHONPATH": str(ROOT / "ray_app"), "VGG_TEST_MARK": mark}
    command = [sys.executable, "-c", SCRIPT, mark, str(tiny_data)]
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=PATIENCE)
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.count("epoch 1/1  loss ") == 2
    assert "OPEN" not in result.stdout
    assert result.stdout.endswith("ended as usual\n")
