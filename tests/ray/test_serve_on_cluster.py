"""serve.py and cluster/serve.yaml on a Ray cluster that is already running."""

import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from ray.cluster_utils import Cluster
from ray.serve.schema import ServeDeploySchema

from support.command import PATIENCE, ROOT, free_port, started, wait_until
from support.random_model import random_images, write_random_model
from support.serving import SERVE, classify, npy, png, probabilities
from vgg_ddp.weights.model_file import load_classifier

pytestmark = pytest.mark.e2e
CONFIG: dict[str, Any] = yaml.safe_load((ROOT / "cluster" / "serve.yaml").read_text())


@pytest.fixture(scope="module")
def dashboard_port() -> int:
    return free_port()


@pytest.fixture(scope="module")
def cluster(private_home: Path, dashboard_port: int) -> Iterator[Cluster]:  # noqa: ARG001 - Ray must start in it
    cluster = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 2, "include_dashboard": True, "dashboard_port": dashboard_port},
    )
    yield cluster
    cluster.shutdown()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_model(tmp_path_factory.mktemp("run"), random_images(20))


def is_refused(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port)).close()
    except OSError:
        return True
    return False


def test_command_serves_on_a_running_cluster_and_ends_only_its_application(
    cluster: Cluster, model: Path, tmp_path: Path
) -> None:
    port, images = free_port(), random_images(3)
    command = [sys.executable, SERVE, model, "--address", cluster.address, "--port", port]
    log = tmp_path / "log"
    with started(tmp_path, list(map(str, command)), log) as process:
        wait_until(lambda: "Try it" in log.read_text() or process.poll() is not None)
        assert process.poll() is None, log.read_text()
        expected = load_classifier(str(model)).probabilities(images)
        np.testing.assert_allclose(probabilities(classify(port, npy(images), "application/x-npy")), expected, atol=1e-4)
        second = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=PATIENCE)
        assert second.returncode == 2
        assert second.stderr == (
            "error: this cluster already serves vgg-ddp: stop that with serve shutdown, or use serve deploy.\n"
        )
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
    assert log.read_text().splitlines()[4:] == ["SIGINT: finishing the requests in flight, then stopping"]
    assert is_refused(port)


def test_port_in_use_on_the_head_node_is_refused(cluster: Cluster, model: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        command = [sys.executable, SERVE, model, "--address", cluster.address, "--port", port]
        result = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=PATIENCE)
    assert result.returncode == 2
    expected = f"error: --host 127.0.0.1 --port {port}: cannot listen there (Address already in use).\n"
    assert result.stderr == expected


def test_config_file_is_valid_and_serves_with_its_options(
    cluster: Cluster,  # noqa: ARG001 - needs the cluster
    dashboard_port: int,
    model: Path,
    tmp_path: Path,
) -> None:
    ServeDeploySchema.model_validate(CONFIG)
    code = shutil.make_archive(str(tmp_path / "code"), "zip", ROOT, "ray_app/vgg_ddp")
    port, config = free_port(), tmp_path / "serve.yaml"
    application = CONFIG["applications"][0]
    application["args"]["model"] = str(model)
    application["runtime_env"]["working_dir"] = f"file://{code}"
    # Both replicas together accept and queue fewer requests than the clients send.
    application["deployments"][0] |= {"max_ongoing_requests": 1, "max_queued_requests": 1}
    config.write_text(yaml.safe_dump(CONFIG | {"http_options": CONFIG["http_options"] | {"port": port}}))
    serve = [str(Path(sys.executable).with_name("serve"))]
    environment = os.environ | {"RAY_DASHBOARD_ADDRESS": f"http://127.0.0.1:{dashboard_port}"}
    result = subprocess.run(
        [*serve, "deploy", str(config)], env=environment, capture_output=True, text=True, timeout=PATIENCE
    )
    assert result.returncode == 0, result.stdout + result.stderr
    images = random_images(1000)
    expected = load_classifier(str(model)).probabilities(images[:1])
    wait_until(lambda: not is_refused(port) and classify(port, png(images[0])).status == 200)
    np.testing.assert_allclose(probabilities(classify(port, png(images[0]))), expected, atol=1e-4)
    body = npy(images)
    with ThreadPoolExecutor(8) as clients:
        responses = list(clients.map(lambda _: classify(port, body, "application/x-npy"), range(8)))
    assert {response.status for response in responses} == {200, 503}
    assert all(len(probabilities(response)) == 1000 for response in responses if response.status == 200)
