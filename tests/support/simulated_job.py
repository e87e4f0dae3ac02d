"""SageMaker's side of a training job: prepares the hosts, and starts the job's entry point on each.

A job that moto's server accepted starts as SageMaker would start it: with its ContainerEntrypoint, with the SDK's
scripts and the source code downloaded from the channels' S3 URIs, and with /opt/ml prepared for each host. Simulated
are S3 (moto), the images (the containers see this machine's files), and GPUs.
"""

import json
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from support.container import SYSTEM_PATH, Container, Network, make_container
from support.s3_server import CREDENTIALS, client


class SimulatedJob:
    """The containers of one training job."""

    def __init__(self, request: dict[str, Any], folder: Path, net: Network, endpoint: str, shm: str = "64m") -> None:
        self.request = request
        self.folder = folder
        self.net = net
        self.endpoint = endpoint
        self.shm = shm
        self.groups = self._groups()
        names = sorted(name for members in self.groups.values() for name in members)
        self.hosts = [make_container(name, folder / name, net) for name in names]

    def _groups(self) -> dict[str, list[str]]:
        """Host names by instance group. The last group gets the first numbers, so the coordinator is not algo-1."""
        resources = self.request["ResourceConfig"]
        groups = resources.get("InstanceGroups") or [
            {"InstanceGroupName": "homogeneousCluster", "InstanceCount": resources["InstanceCount"]}
        ]
        named: dict[str, list[str]] = {}
        number = 1
        for group in reversed(groups):
            count = group["InstanceCount"]
            named[group["InstanceGroupName"]] = [f"algo-{number + i}" for i in range(count)]
            number += count
        return named

    def prepare(self) -> None:
        """Prepare /opt/ml and the network of each host."""
        names = [host.name for host in self.hosts]
        hosts_file = "127.0.0.1 localhost\n" + "".join(f"{host.address} {host.name}\n" for host in self.hosts)
        channels = self.request["InputDataConfig"]
        for host in self.hosts:
            (host.root / "hosts").write_text(hosts_file)
            group = next(group for group, members in self.groups.items() if host.name in members)
            described = [
                {"instance_group_name": name, "instance_type": self._instance_type(name), "hosts": members}
                for name, members in self.groups.items()
            ]
            resources = {
                "current_host": host.name,
                "current_instance_type": self._instance_type(group),
                "current_group_name": group,
                "hosts": names,
                "instance_groups": described,
                "network_interface_name": "eth0",
            }
            config = {
                "resourceconfig": resources,
                "hyperparameters": self.request["HyperParameters"],
                "inputdataconfig": {channel["ChannelName"]: {"TrainingInputMode": "File"} for channel in channels},
            }
            for file, content in config.items():
                (host.ml / "input" / "config" / f"{file}.json").write_text(json.dumps(content))
            for channel in channels:
                uri = channel["DataSource"]["S3DataSource"]["S3Uri"]
                download(self.endpoint, uri, host.ml / "input" / "data" / channel["ChannelName"])
            host.connect(self.net)

    def _instance_type(self, group: str) -> str:
        resources = self.request["ResourceConfig"]
        types = {g["InstanceGroupName"]: g["InstanceType"] for g in resources.get("InstanceGroups") or []}
        return str(types.get(group) or resources["InstanceType"])

    def start(self, hosts: Sequence[Container] | None = None, path: str = "", **environment: str) -> None:
        """Start the hosts with the job's entry point or, if it has none, the image's: `train`."""
        algorithm = self.request["AlgorithmSpecification"]
        command = [*algorithm.get("ContainerEntrypoint", ["train"]), *algorithm.get("ContainerArguments", [])]
        for host in self.hosts if hosts is None else hosts:
            given = {
                "PATH": f"{path}{Path(sys.executable).parent}:{SYSTEM_PATH}",
                "TRAINING_JOB_NAME": self.request["TrainingJobName"],
                "AWS_REGION": CREDENTIALS["AWS_DEFAULT_REGION"],
                "AWS_ENDPOINT_URL": self.endpoint,
                "CURRENT_HOST": host.name,
                # Do not check the packages that Ray needs: this takes pip seconds in each container.
                "PIP_NO_DEPS": "1",
                **self.request.get("Environment", {}),
            }
            host.start(command, CREDENTIALS | given | environment, self.shm)

    def stop(self) -> None:
        """Send SIGTERM to every container, as SageMaker does when it stops a job or a spot instance is interrupted."""
        for host in self.hosts:
            host.send_signal(signal.SIGTERM)

    def wait(self, seconds: float) -> dict[str, int]:
        """Wait for all started hosts, and return their exit codes by name."""
        deadline = time.monotonic() + seconds
        return {host.name: host.wait(max(0.1, deadline - time.monotonic())) for host in self.hosts if host.process}

    def clean_up(self) -> None:
        for host in self.hosts:
            host.remove()

    def logs(self) -> str:
        """The output of all hosts, to show when an assertion fails."""
        return "\n".join(f"=== {host.name}\n{host.log[-6000:]}" for host in self.hosts if host.process)


def download(endpoint: str, uri: str, target: Path) -> None:
    """Download all objects under an S3 URI, as SageMaker does for a channel."""
    target.mkdir(parents=True, exist_ok=True)
    for name, content in read_objects(endpoint, uri).items():
        file = target / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)


@cache
def read_objects(endpoint: str, uri: str) -> dict[str, bytes]:
    """All objects under an S3 URI; read once for all hosts, since moto takes 1.5 s for the code of a job."""
    bucket, _, prefix = uri.removeprefix("s3://").partition("/")
    pages = client(endpoint).get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
    keys = [item["Key"] for page in pages for item in page.get("Contents", [])]
    s3 = client(endpoint)
    return {os.path.relpath(key, prefix): s3.get_object(Bucket=bucket, Key=key)["Body"].read() for key in keys}


@contextmanager
def simulated(job: SimulatedJob) -> Iterator[SimulatedJob]:
    """Prepare a job's hosts, and remove them afterwards."""
    try:
        job.prepare()
        yield job
    finally:
        job.clean_up()
