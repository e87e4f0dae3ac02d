"""kuberay.yaml against the schema of KubeRay's RayJob, and the commands that run before Kubernetes ends a pod.

data/kuberay-1.5.1-rayjob-v1.json.gz is the schema of version v1 in helm-chart/kuberay-operator/crds/ray.io_rayjobs.yaml
of https://github.com/ray-project/kuberay at tag v1.5.1 (Apache License 2.0), as JSON.
"""

import gzip
import json
import os
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from packaging.requirements import Requirement

from support.command import ROOT
from support.launcher import RAY
from vgg_ddp.config import TrainConfig
from vgg_ddp.driver.signals import SECONDS_TO_SAVE
from vgg_ddp.flags import parse_flags

JOB = yaml.safe_load((ROOT / "cluster" / "kuberay.yaml").read_text())
CLUSTER = JOB["spec"]["rayClusterSpec"]
HEAD, (WORKERS,) = CLUSTER["headGroupSpec"], CLUSTER["workerGroupSpecs"]
SCHEMA = ROOT / "tests" / "data" / "kuberay-1.5.1-rayjob-v1.json.gz"
FLAGS = JOB["spec"]["entrypoint"].split()[2:]


def strict(schema: Any) -> Any:
    """The schema without unknown fields, which Kubernetes drops and kubectl refuses."""
    if isinstance(schema, list):
        return [strict(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    made = {key: strict(part) for key, part in schema.items()}
    is_object = isinstance(schema.get("properties"), dict) and schema.get("type") == "object"
    if is_object and not schema.get("x-kubernetes-preserve-unknown-fields"):
        made.setdefault("additionalProperties", False)
    return made


@pytest.fixture(scope="module")
def validator() -> jsonschema.Draft202012Validator:
    schema = strict(json.loads(gzip.decompress(SCHEMA.read_bytes())))
    # The metadata of every object is checked elsewhere, and the CRDs only say that there is one.
    schema["properties"]["metadata"] = {"type": "object"}
    return jsonschema.Draft202012Validator(schema)


def test_job_matches_the_schema_of_kuberay(validator: jsonschema.Draft202012Validator) -> None:
    assert [error.message for error in validator.iter_errors(JOB)] == []


def test_schema_rejects_a_misspelled_field_and_a_wrong_type(validator: jsonschema.Draft202012Validator) -> None:
    misspelled = json.loads(json.dumps(JOB).replace("terminationGracePeriodSeconds", "terminationGracePeriod"))
    assert "terminationGracePeriod" in str([error.message for error in validator.iter_errors(misspelled)])
    wrong = {**JOB, "spec": {**JOB["spec"], "backoffLimit": "3"}}
    assert "'3' is not of type 'integer'" in [error.message for error in validator.iter_errors(wrong)]


def test_job_runs_the_same_command_with_a_token_on_the_same_ray_version() -> None:
    assert (JOB["apiVersion"], JOB["kind"]) == ("ray.io/v1", "RayJob")
    assert re.match(r"python \S*ray_app/main\.py ", JOB["spec"]["entrypoint"])
    assert CLUSTER["authOptions"] == {"mode": "token"}
    (pin,) = [line for line in (ROOT / "requirements-train.txt").read_text().splitlines() if line.startswith("ray[")]
    assert Requirement(pin).specifier.contains(CLUSTER["rayVersion"])
    assert HEAD["rayStartParams"] == {"num-cpus": "0"}
    assert WORKERS["minReplicas"] <= WORKERS["replicas"] <= WORKERS["maxReplicas"]
    for group in (HEAD, WORKERS):
        (container,) = group["template"]["spec"]["containers"]
        # Ray uses a container's limits as the node's resources.
        assert container["resources"]["requests"] == container["resources"]["limits"]


def test_retried_job_resumes_its_run() -> None:
    config = parse_flags(TrainConfig, FLAGS, "main.py")
    assert config.run_name
    assert config.num_workers == WORKERS["replicas"]
    assert JOB["spec"]["backoffLimit"] > 0


def test_gpu_workers_tolerate_the_taint_of_gpu_nodes_and_the_head_does_not() -> None:
    taint = {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}
    assert WORKERS["template"]["spec"]["tolerations"] == [taint]
    assert "tolerations" not in HEAD["template"]["spec"]


def test_image_has_the_ray_version_of_the_job_and_the_versions_of_the_lock() -> None:
    image = (ROOT / "cluster" / "Dockerfile").read_text()
    assert re.search(rf"^FROM rayproject/ray:{re.escape(CLUSTER['rayVersion'])}-py31[123]-gpu$", image, re.MULTILINE)
    assert "--requirement requirements-train.txt --constraint constraints.txt" in image
    copied = {name for line in re.findall(r"^COPY (.*) \S+$", image, re.MULTILINE) for name in line.split()}
    assert copied == {"requirements-train.txt", "constraints.txt", "ray_app"}
    allowed = (ROOT / "cluster" / "Dockerfile.dockerignore").read_text().splitlines()
    assert {line[1:] for line in allowed if line.startswith("!")} == copied


def hook(group: dict[str, Any]) -> list[str]:
    (container,) = group["template"]["spec"]["containers"]
    command: list[str] = container["lifecycle"]["preStop"]["exec"]["command"]
    return command


@pytest.mark.parametrize("group", [HEAD, WORKERS], ids=["head", "worker"])
def test_pod_has_time_to_save_and_to_stop(group: dict[str, Any]) -> None:
    (wait,) = re.findall(r"sleep (\d+)", hook(group)[-1])
    assert SECONDS_TO_SAVE < int(wait) < group["template"]["spec"]["terminationGracePeriodSeconds"] - 15


def test_stopped_job_has_time_to_save_before_ray_kills_it() -> None:
    (container,) = HEAD["template"]["spec"]["containers"]
    (wait,) = [entry["value"] for entry in container["env"] if entry["name"] == "RAY_JOB_STOP_WAIT_TIME_S"]
    assert int(wait) > SECONDS_TO_SAVE


@pytest.fixture
def running() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(["sleep", "60"]) as process:
        yield process
        process.kill()


def run_hook(group: dict[str, Any], processes: dict[int, bytes], folder: Path) -> list[str]:
    """Run a hook where these processes seem to run; return the calls of ray and sleep."""
    for pid, command_line in processes.items():
        (folder / "proc" / str(pid)).mkdir(parents=True)
        (folder / "proc" / str(pid) / "cmdline").write_bytes(command_line)
    for name in ("ray", "sleep"):
        (folder / name).write_text(f'#!/bin/sh\necho {name} "$@" >> {folder}/calls\n')
        (folder / name).chmod(0o755)
    # As Kubernetes does: without a shell.
    command = [part.replace("/proc/", f"{folder}/proc/") for part in hook(group)]
    subprocess.run(command, env={"PATH": f"{folder}:{os.environ['PATH']}"}, timeout=30)
    calls = folder / "calls"
    return calls.read_text().splitlines() if calls.exists() else []


DRIVER = b"python\0/home/ray/ray_app/main.py\0--num-workers\0002\0"
SHELL = b"/bin/sh\0-c\0python /home/ray/ray_app/main.py\0"


def test_head_first_stops_the_driver_and_waits_for_it(running: subprocess.Popen[bytes], tmp_path: Path) -> None:
    # Process IDs end at 4,194,304; the shell that started the driver must not get the signal.
    assert run_hook(HEAD, {running.pid: DRIVER, 5_000_000: SHELL}, tmp_path) == ["sleep 30"]
    assert running.wait(10) == -signal.SIGTERM


def test_head_without_a_driver_ends_at_once(tmp_path: Path) -> None:
    assert run_hook(HEAD, {5_000_000: SHELL, 5_000_001: b"gcs_server\0"}, tmp_path) == []


def test_worker_that_trains_first_drains_its_node(tmp_path: Path) -> None:
    drain, wait = run_hook(WORKERS, {7: b"ray::RayTrainWorker", 8: b"raylet\0"}, tmp_path)
    assert drain == (
        "ray drain-node --reason DRAIN_NODE_REASON_PREEMPTION --reason-message Kubernetes ends this pod "
        "--deadline-remaining-seconds 60"
    )
    assert wait == "sleep 60"


def test_worker_without_training_ends_at_once(tmp_path: Path) -> None:
    assert run_hook(WORKERS, {7: b"ray::IDLE", 8: b"raylet\0"}, tmp_path) == []


def test_ray_still_has_the_command_that_drains_a_node() -> None:
    arguments = hook(WORKERS)[-1].split("ray drain-node ")[1]
    result = subprocess.run([RAY, "drain-node", "--help"], capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
    assert all(name in result.stdout for name in re.findall(r"--[\w-]+|DRAIN_\w+", arguments))
