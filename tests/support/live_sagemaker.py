"""moto's SageMaker, with jobs and endpoints that run: in the containers of simulated_job.py and model_servers.py.

A job's log goes to CloudWatch, its checkpoints and its model go to S3, and calls to an endpoint go to its server.
"""

import io
import shutil
import signal
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from moto.sagemaker.models import sagemaker_backends

from support.command import PATIENCE, count_checkpoints, free_port
from support.container import Container, Network
from support.fake_sagemaker import ACCOUNT, LOG_GROUP, read_body
from support.model_servers import ModelServer, running
from support.s3_server import BUCKET, CREDENTIALS, client, serving
from support.simulated_job import SimulatedJob, simulated

REGION = CREDENTIALS["AWS_DEFAULT_REGION"]
POLL_SECONDS = 0.2
KILLED = 128 + signal.SIGKILL


class LiveSageMaker:
    """A running service.

    Attributes:
        endpoint: its URL.
        jobs: the containers of the jobs with one host, in the order of submission.
    """

    def __init__(self, endpoint: str, net: Network, folder: Path) -> None:
        self.endpoint = endpoint
        self.jobs: dict[str, Container] = {}
        # By URI, since SageMaker copies them from S3 to the next job.
        self._synced: dict[str, list[Path]] = {}
        self._net = net
        self._folder = folder
        self._threads: list[threading.Thread] = []
        self._servers: dict[str, tuple[ModelServer, ExitStack]] = {}

    def wrap(self, application: Callable[..., Any]) -> Callable[..., Any]:
        """Let jobs and endpoints run that an application accepts."""

        def answer(environ: dict[str, Any], start_response: Any) -> Any:
            call = environ.get("HTTP_X_AMZ_TARGET", "").rpartition(".")[2]
            _, first, name, *_ = [*environ["PATH_INFO"].split("/"), "", ""]
            if first == "endpoints":
                body = environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"]))
                response = self._servers[name][0].invoke(body, environ["CONTENT_TYPE"])
                start_response(f"{response.status} Answer", [("Content-Type", "application/json")])
                return [response.body.encode()]
            request = read_body(environ) if call in ("CreateTrainingJob", "CreateEndpoint", "DeleteEndpoint") else {}
            content = list(application(environ, start_response))
            if call == "CreateTrainingJob":
                self._start_job(request)
            elif call == "CreateEndpoint":
                self._start_server(request)
            elif call == "DeleteEndpoint":
                self._servers.pop(request["EndpointName"])[1].close()
            return content

        return answer

    def wait(self) -> None:
        """Wait for all jobs, and end all servers."""
        for thread in self._threads:
            thread.join(PATIENCE)
        for _, server in self._servers.values():
            server.close()

    def _start_job(self, request: dict[str, Any]) -> None:
        self._set_status(request, "InProgress", "Starting")
        thread = threading.Thread(target=self._run_job, args=(request,), daemon=True)
        self._threads.append(thread)
        thread.start()

    def _set_status(self, request: dict[str, Any], status: str, secondary: str, reason: str | None = None) -> None:
        job = sagemaker_backends[ACCOUNT][REGION].training_jobs[request["TrainingJobName"]]
        job.failure_reason = reason
        job.training_job_status, job.secondary_status = status, secondary

    def _run_job(self, request: dict[str, Any]) -> None:
        name, checkpoints = request["TrainingJobName"], request["CheckpointConfig"]["S3Uri"]
        with simulated(SimulatedJob(request, self._folder / name, self._net, self.endpoint)) as job:
            (host,) = job.hosts
            for earlier in self._synced.get(checkpoints, []):
                shutil.copytree(earlier, host.ml / "checkpoints", dirs_exist_ok=True)
            job.start()
            is_first = not self.jobs
            self.jobs[name] = host
            self._set_status(request, "InProgress", "Training")
            log = _Log(self.endpoint, f"{name}/{host.name}-1")
            while not host.exited():
                time.sleep(POLL_SECONDS)
                log.send(host.log)
                if is_first and any(map(count_checkpoints, (host.ml / "checkpoints").iterdir())):
                    # A broken machine.
                    host.send_signal(signal.SIGKILL)
                    host.wait(PATIENCE)
            log.send(f"{host.log}\n")
            self._upload(host.ml / "checkpoints", checkpoints)
            self._synced.setdefault(checkpoints, []).append(host.ml / "checkpoints")
            code = KILLED if is_first else host.wait(PATIENCE)
        if code:
            self._set_status(request, "Failed", "Failed", f"AlgorithmError: {host.failure or ''}, exit code: {code}")
            return
        archive = io.BytesIO()
        with tarfile.open(fileobj=archive, mode="w:gz") as file:
            file.add(host.ml / "model", arcname=".")
        bucket, _, prefix = request["OutputDataConfig"]["S3OutputPath"].removeprefix("s3://").partition("/")
        key = f"{prefix}/{name}/output/model.tar.gz"
        client(self.endpoint).put_object(Bucket=bucket, Key=key, Body=archive.getvalue())
        self._set_status(request, "Completed", "Completed")

    def _upload(self, folder: Path, uri: str) -> None:
        bucket, _, prefix = uri.removeprefix("s3://").partition("/")
        for file in folder.rglob("*"):
            if file.is_file():
                client(self.endpoint).upload_file(str(file), bucket, f"{prefix}/{file.relative_to(folder)}")

    def _start_server(self, request: dict[str, Any]) -> None:
        """Start the endpoint's server, and wait until it answers."""
        api = client(self.endpoint, "sagemaker")
        config = api.describe_endpoint_config(EndpointConfigName=request["EndpointConfigName"])
        model = api.describe_model(ModelName=config["ProductionVariants"][0]["ModelName"])
        bucket, _, key = model["PrimaryContainer"]["ModelDataUrl"].removeprefix("s3://").partition("/")
        folder = self._folder / request["EndpointName"]
        content = client(self.endpoint).get_object(Bucket=bucket, Key=key)["Body"].read()
        with tarfile.open(fileobj=io.BytesIO(content)) as file:
            file.extractall(folder / "model", filter="data")
        stack = ExitStack()
        server = stack.enter_context(running("Ray Serve", folder / "model", self._net, folder))
        self._servers[request["EndpointName"]] = (server, stack)


class _Log:
    """A log stream, which gets the lines of a growing text."""

    def __init__(self, endpoint: str, name: str) -> None:
        self._logs = client(endpoint, "logs")
        self._place = {"logGroupName": LOG_GROUP, "logStreamName": name}
        self._sent = 0
        self._logs.create_log_stream(**self._place)

    def send(self, text: str) -> None:
        """Send the complete lines that are new."""
        end = text.rfind("\n") + 1
        lines = [line for line in text[self._sent : end].splitlines() if line]
        self._sent = max(end, self._sent)
        if lines:
            now = int(time.time() * 1000)
            self._logs.put_log_events(**self._place, logEvents=[{"timestamp": now, "message": line} for line in lines])


@contextmanager
def live_sagemaker(net: Network, folder: Path) -> Iterator[LiveSageMaker]:
    """Run a service; at the end, wait for its jobs."""
    port = free_port()
    live = LiveSageMaker(f"http://127.0.0.1:{port}", net, folder)
    application = live.wrap(DomainDispatcherApplication(create_backend_app))
    with serving(application, "127.0.0.1", port):
        client(live.endpoint).create_bucket(Bucket=BUCKET)
        client(live.endpoint, "logs").create_log_group(logGroupName=LOG_GROUP)
        try:
            yield live
        finally:
            live.wait()
