"""The model servers of AWS's inference images, each in a simulated container, started as in its image."""

import shutil
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from sagemaker_entry.client.endpoint import ENVIRONMENT
from support.command import PATIENCE, wait_until
from support.container import SYSTEM_PATH, Container, Network, images_environment, make_container

MMS = "from sagemaker_inference import model_server; model_server.start_model_server()"
# The commands of https://github.com/aws/deep-learning-containers/blob/main/scripts/docker/ray/sagemaker_entrypoint.sh.
# The image's adapter, which forwards /invocations to / of port 8000 and reads /ping from /-/healthz, is not simulated.
RAY_SERVE = """
ray start --head --port=6379 --include-dashboard=False --num-gpus=0
serve start --http-host=0.0.0.0 --http-port=8000
exec serve run $SM_RAYSERVE_APP
"""


class Response(NamedTuple):
    status: int
    body: str


class ModelServer(NamedTuple):
    """A server in a container, and where it answers."""

    host: Container
    port: int
    ping: str
    invocations: str

    def call(self, path: str, body: bytes | None = None, **headers: str) -> Response:
        """GET, or POST with a body, a path of the server."""
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        request = urllib.request.Request(f"http://{self.host.address}:{self.port}{path}", data=body, headers=names)
        try:
            with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
                return Response(answer.status, answer.read().decode())
        except urllib.error.HTTPError as error:
            return Response(error.code, error.read().decode())

    def invoke(self, body: bytes, content_type: str, accept: str = "application/json") -> Response:
        return self.call(self.invocations, body, Content_Type=content_type, Accept=accept)

    def is_ready(self) -> bool:
        try:
            return self.call(self.ping).status == 200
        except OSError:
            return False


def missing_for(name: str) -> str | None:
    """What this machine lacks to run a server, or None."""
    python, missing = images_environment()
    if name == "Ray Serve":
        return None
    if name == "TorchServe" and not missing and not (python.parents[1] / "torchserve").exists():
        missing = f"needs {python.parents[1] / 'torchserve'}, which .ci/run creates"
    return missing or (None if shutil.which("java") else "needs Java 11 or later")


@contextmanager
def running(name: str, archive: Path, net: Network, folder: Path) -> Iterator[ModelServer]:
    """Serve an unpacked model archive with the server of this name."""
    python, _ = images_environment()
    torchserve = python.parents[1] / "torchserve"
    toolkits = {"SAGEMAKER_MODEL_SERVER_WORKERS": "1", "LOG_LOCATION": "/tmp/logs", "METRICS_LOCATION": "/tmp/logs"}
    commands = {
        "multi-model-server": [str(python), "-c", MMS],
        "TorchServe": [str(torchserve / "bin" / "serve")],
        "Ray Serve": ["bash", "-ec", RAY_SERVE],
    }
    environments = {
        "multi-model-server": toolkits | {"PATH": f"{python.parent}:{SYSTEM_PATH}"},
        "TorchServe": toolkits
        | {"PATH": f"{torchserve / 'bin'}:{python.parent}:{SYSTEM_PATH}", "PYTHONPATH": str(torchserve)},
        "Ray Serve": {
            "PATH": f"{Path(sys.executable).parent}:{SYSTEM_PATH}",
            "PYTHONPATH": "/opt/ml/model:/opt/ml/model/code",
        },
    }
    host = make_container("serve", folder / "host", net)
    (host.root / "hosts").write_text(f"127.0.0.1 localhost\n{host.address} serve\n")
    shutil.copytree(archive, host.ml / "model", dirs_exist_ok=True)
    server = ModelServer(host, 8080, "/ping", "/invocations")
    if name == "Ray Serve":
        server = ModelServer(host, 8000, "/-/healthz", "/")
    host.connect(net)
    try:
        host.start(commands[name], ENVIRONMENT | environments[name], shm="64m")
        wait_until(lambda: host.exited() or server.is_ready())
        assert not host.exited(), host.log
        yield server
    finally:
        host.remove()
