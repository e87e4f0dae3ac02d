"""Runs on a cluster that nodes leave and join: several raylets on one machine, as in Ray's own tests."""

import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from ray.cluster_utils import Cluster

from support.command import CLUSTER_SETTINGS, PATIENCE, free_port, main_command, started, wait_until

pytestmark = pytest.mark.e2e

DRAIN_SECONDS = 10


@pytest.fixture
def cluster(
    private_home: Path,  # noqa: ARG001 - Ray must start in the private home
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Cluster]:
    monkeypatch.delenv("TORCH_PROCESS_GROUP_SHUTDOWN_TIMEOUT_S", raising=False)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "dashboard_port": free_port()})
    yield cluster
    cluster.shutdown()


def drain(cluster: Cluster, node_id: str) -> None:
    """Tell Ray that a node will be reclaimed, as the agent on a spot instance does."""
    ray_command = Path(sys.executable).with_name("ray")
    reason = ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "reclaimed"]
    deadline = ["--deadline-remaining-seconds", str(DRAIN_SECONDS)]
    command = [str(ray_command), "drain-node", "--address", cluster.address, "--node-id", node_id, *reason, *deadline]
    result = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    assert result.returncode == 0, result.stdout + result.stderr


def checkpoint_steps(run: Path) -> set[int]:
    return {int(path.parent.name.split("_")[1]) for path in run.glob("checkpoint_*/manifest.json")}


def resumed_steps(log: Path) -> list[int]:
    return [int(step) for step in re.findall(r"Resumed at step (\d+)", log.read_text())]


def own_workers() -> list[psutil.Process]:
    """The training workers on this test's nodes, which this process has started."""
    workers = psutil.process_iter(["cmdline"])
    workers = (process for process in workers if "ray::RayTrainWorker" in "".join(process.info["cmdline"] or ()))
    return [process for process in workers if psutil.Process() in process.parents()]


def test_run_resumes_after_a_node_drains_and_after_a_worker_freezes(cluster: Cluster, tmp_path: Path) -> None:
    _, leaving = (cluster.add_node(num_cpus=1) for _ in range(2))
    # 2,500 steps take less time than the interval between checkpoints, so the only one comes from the preemption.
    flags = ["--address", cluster.address, "--num-workers", 2, "--data", "sample", "--batch-size", 2, "--epochs", 1]
    flags += ["--recipe", "classic", "--precision", "fp32", "--max-failures", 1]
    flags += ["--run-name", "run", "--storage-path", tmp_path, "--collective-timeout-seconds", 10]
    log, run = tmp_path / "log", tmp_path / "run"
    with started(tmp_path, main_command(*flags), log, **CLUSTER_SETTINGS) as process:
        wait_until(lambda: (run / "startup.json").exists() or process.poll() is not None)
        assert process.poll() is None, log.read_text()
        drain(cluster, leaving.node_id)
        wait_until(lambda: bool(checkpoint_steps(run)), seconds=DRAIN_SECONDS)
        (saved,) = checkpoint_steps(run)
        cluster.add_node(num_cpus=1)
        time.sleep(DRAIN_SECONDS)
        cluster.remove_node(leaving, allow_graceful=False)
        wait_until(lambda: bool(resumed_steps(log)) or process.poll() is not None)
        # A preemption does not count as a failure.
        assert "restart 1" not in log.read_text()
        own_workers()[0].suspend()
        wait_until(lambda: len(resumed_steps(log)) == 2 or process.poll() is not None)
        process.terminate()
        assert process.wait(PATIENCE) == 143, log.read_text()
    assert resumed_steps(log) == [saved, saved] and saved > 0, log.read_text()
    # Ray's own default is 30 seconds.
    assert "shutdown timed out after 5 seconds" in log.read_text()
    assert "restart 1 of at most 1" in log.read_text()
    assert "DeprecationWarning" not in log.read_text()


def test_elastic_run_shrinks_when_a_node_dies_and_grows_when_one_joins(cluster: Cluster, tmp_path: Path) -> None:
    _, dying = (cluster.add_node(num_cpus=1) for _ in range(2))
    flags = ["--address", cluster.address, "--min-workers", 1, "--num-workers", 2, "--data", "sample"]
    flags += ["--recipe", "classic", "--batch-size", 2, "--epochs", 1]
    flags += ["--precision", "fp32", "--checkpoint-every-seconds", 1]
    flags += ["--max-failures", 2, "--run-name", "run", "--storage-path", tmp_path]
    log, run = tmp_path / "log", tmp_path / "run"

    def worker_counts() -> list[int]:
        return [int(count) for count in re.findall(r"Resumed at step \d+ from \S+, (\d+) worker", log.read_text())]

    with started(tmp_path, main_command(*flags), log, **CLUSTER_SETTINGS) as process:
        wait_until(lambda: bool(checkpoint_steps(run)) or process.poll() is not None)
        assert process.poll() is None, log.read_text()
        cluster.remove_node(dying, allow_graceful=False)
        wait_until(lambda: worker_counts() == [1] or process.poll() is not None)
        cluster.add_node(num_cpus=1)
        wait_until(lambda: worker_counts() == [1, 2] or process.poll() is not None)
        process.terminate()
        assert process.wait(PATIENCE) == 143, log.read_text()
