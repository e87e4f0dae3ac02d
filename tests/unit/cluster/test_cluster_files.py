"""The cluster files for EC2, for machines you reach by SSH, and for Kubernetes."""

import gzip
import json
import os
import re
import subprocess
from pathlib import Path

import jsonschema
import moto
import pytest
import ray
import yaml

from support.cluster_files import AWS, CLUSTER, RESOURCES, TEMPLATES, with_efa
from vgg_ddp.driver.signals import SECONDS_TO_SAVE

SCHEMA = json.loads((Path(ray.__file__).parent / "autoscaler" / "ray-schema.json").read_text())


def test_aws_yaml_matches_the_schema_of_rays_launcher() -> None:
    jsonschema.validate(AWS, SCHEMA)


def test_every_node_uses_a_launch_template_of_the_stack() -> None:
    config = with_efa()
    jsonschema.validate(config, SCHEMA)
    names = {
        name: kind["node_config"]["LaunchTemplate"]["LaunchTemplateName"]
        for name, kind in config["available_node_types"].items()
    }
    stack = config["cluster_name"]
    assert names == {
        "head": f"{stack}-head",
        "g6_spot": f"{stack}-worker",
        "g5_spot": f"{stack}-worker",
        "efa_spot": f"{stack}-efa",
    }
    made = {RESOURCES[name]["Properties"]["LaunchTemplateName"]["Sub"] for name in TEMPLATES}
    assert {name.replace("${AWS::StackName}", stack) for name in made} == set(names.values())
    # A stack's update makes a new version of a template, but does not make it the default.
    assert all(
        kind["node_config"]["LaunchTemplate"]["Version"] == "$Latest"
        for kind in config["available_node_types"].values()
    )


def test_head_is_on_demand_and_runs_no_tasks_and_up_to_four_workers_are_spot_instances() -> None:
    types = AWS["available_node_types"]
    assert AWS["head_node_type"] == "head"
    assert types["head"]["resources"] == {"CPU": 0}
    markets = {
        name: RESOURCES[name]["Properties"]["LaunchTemplateData"].get("InstanceMarketOptions", {}).get("MarketType")
        for name in TEMPLATES
    }
    assert markets == {"HeadTemplate": None, "WorkerTemplate": "spot", "EfaTemplate": "spot"}
    assert {name: (kind.get("min_workers", 0), kind["max_workers"]) for name, kind in types.items()} == {
        "head": (0, 0),
        "g6_spot": (0, 4),
        "g5_spot": (0, 0),
    }


def test_instance_whose_setup_does_not_end_shuts_down() -> None:
    scripts = {name: kind["node_config"].get("UserData") for name, kind in with_efa()["available_node_types"].items()}
    # The user runs the head until `ray down`.
    assert scripts.pop("head") is None
    assert set(scripts.values()) == {"#!/bin/sh\nshutdown --no-wall -h +60\n"}


def test_worker_resources_match_their_instance_types() -> None:
    # EC2's description of its instance types, as shipped with moto.
    shipped = Path(moto.__file__).parent / "ec2" / "resources" / "instance_types.json.gz"
    described = json.loads(gzip.decompress(shipped.read_bytes()))
    for name, node_type in with_efa()["available_node_types"].items():
        if name != "head":
            instance = described[node_type["node_config"]["InstanceType"]]
            (gpus,) = instance["GpuInfo"]["Gpus"]
            assert node_type["resources"] == {"CPU": instance["VCpuInfo"]["DefaultVCpus"], "GPU": gpus["Count"]}


def test_dashboard_is_on_loopback_and_the_token_is_required_from_the_start() -> None:
    starts = [
        command for key in ("head", "worker") for command in AWS[f"{key}_start_ray_commands"] if "ray start" in command
    ]
    assert len(starts) == 2
    for command in starts:
        assert command.index("export RAY_AUTH_MODE=token") < command.index("ray start")
    assert "--dashboard-host=127.0.0.1" in starts[0]


@pytest.mark.parametrize(("has_efa", "inherited"), [(True, ""), (True, "/mine"), (False, "/mine")])
def test_nccl_finds_the_plugin_for_efa_on_nodes_with_efa(has_efa: bool, inherited: str, tmp_path: Path) -> None:
    (start,) = [command for command in AWS["worker_start_ray_commands"] if "ray start" in command]
    device = tmp_path / "uverbs0"
    if has_efa:
        device.touch()
    # Instead of Ray.
    script = "ray() { echo $LD_LIBRARY_PATH; }; " + start.replace("/dev/infiniband/uverbs0", str(device))
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path)} | (
        {"LD_LIBRARY_PATH": inherited} if inherited else {}
    )
    result = subprocess.run(["bash", "-c", script], env=environment, capture_output=True, text=True, timeout=20)
    assert result.returncode == 0, result.stderr
    folders = result.stdout.strip().split(":")
    own = ["/opt/amazon/ofi-nccl/lib", "/opt/amazon/ofi-nccl/lib/x86_64-linux-gnu", "/opt/amazon/efa/lib"]
    assert folders == own * has_efa + [inherited] * bool(inherited)


def test_stopped_job_has_time_to_save_a_checkpoint() -> None:
    local = yaml.safe_load((CLUSTER / "local.yaml").read_text())
    for commands in (AWS["head_start_ray_commands"], local["head_start_ray_commands"]):
        (start,) = [command for command in commands if "ray start" in command]
        waits = re.search(r"export .*RAY_JOB_STOP_WAIT_TIME_S=(\d+)\b.*;.*ray start", start)
        assert waits and int(waits[1]) > SECONDS_TO_SAVE


def test_code_is_not_mounted() -> None:
    packages = {"requirements-train.txt", "constraints.txt"}
    assert set(AWS["file_mounts"].values()) == {"~/.ray/auth_token", "cluster/spot_agent.py"} | packages


@pytest.mark.parametrize("name", ["aws.yaml", "local.yaml"])
def test_nodes_install_only_what_training_needs_in_exact_versions(name: str) -> None:
    config = yaml.safe_load((CLUSTER / name).read_text())
    commands = config["setup_commands"] + config.get("head_setup_commands", [])
    installs = [command for command in commands if "pip install" in command]
    mounted = {Path(remote).name: local for remote, local in config["file_mounts"].items()}
    for command in installs:
        assert command.startswith("cd ~/vgg-ddp-node &&")
        assert command.endswith(f" -c {mounted['constraints.txt']}")
    assert f" -r {mounted['requirements-train.txt']} " in installs[0]
    # Ray's autoscaler on AWS.
    assert [" boto3 " in command for command in installs[1:]] == [True] * (name == "aws.yaml")


@pytest.mark.parametrize("has_venv", [True, False])
def test_new_node_gets_a_virtual_environment_even_while_apt_is_busy(has_venv: bool, tmp_path: Path) -> None:
    (command,) = [command for command in AWS["setup_commands"] if "-m venv" in command]
    programs = {
        # As on Debian: without the package python3-venv, venv leaves an incomplete environment.
        "python3": "mkdir -p ~/vgg-ddp/bin; test -e ~/has_venv && install -m 755 /dev/null ~/vgg-ddp/bin/pip",
        "sudo": 'echo "$@" >> ~/calls; "$@"',
        # Only the third update gets the lock.
        "apt-get": 'case "$*" in update) test $(wc -l < ~/calls) = 3;; *) touch ~/has_venv;; esac',
        "sleep": "true",
    }
    for name, script in programs.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / name).chmod(0o755)
    calls = tmp_path / "calls"
    calls.touch()
    if has_venv:
        (tmp_path / "has_venv").touch()
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "HOME": str(tmp_path)}
    # `ray up` runs the command each time.
    for _ in range(2):
        assert subprocess.run(["bash", "-c", command], env=environment).returncode == 0
    assert (tmp_path / "vgg-ddp" / "bin" / "pip").exists()
    install = "apt-get -o DPkg::Lock::Timeout=300 install -y python3-venv"
    assert calls.read_text().splitlines() == ([] if has_venv else ["apt-get update"] * 3 + [install])


def test_local_yaml_matches_the_schema_and_starts_like_aws_yaml() -> None:
    local = yaml.safe_load((CLUSTER / "local.yaml").read_text())
    jsonschema.validate(local, SCHEMA)
    for key in ("head_start_ray_commands", "worker_start_ray_commands"):
        (start,) = [command for command in local[key] if "ray start" in command]
        assert start.index("export RAY_AUTH_MODE=token") < start.index("ray start")
    assert "--dashboard-host=127.0.0.1" in local["head_start_ray_commands"][-1]
    for config in (local, AWS):
        (start,) = config["head_start_ray_commands"]
        assert start.index("ray job list") < start.index("else ray stop --force;") < start.index("ray start")
    assert set(local["file_mounts"].values()) == {"~/.ray/auth_token", "requirements-train.txt", "constraints.txt"}
