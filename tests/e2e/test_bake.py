"""bake.py on a simulated EC2: its instance boots, runs the setup for real, cleans up, and becomes an image."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from support import ssh_hosts
from support.command import PATIENCE, ROOT
from support.fake_ec2 import IMAGE_PARAMETER, LAPTOP, REGION, STACK, Account, account, template

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(bool(ssh_hosts.missing_requirement()), reason=ssh_hosts.missing_requirement()),
]

TOKEN = "0123456789abcdef" * 4
# As on a real machine, where they come from cloud-init and from whoever logs in.
TRACES = ["~/.ssh/authorized_keys", "~/.bash_history", "~/.cache/pip/wheel", "/etc/ssh/ssh_host_rsa_key"]


@pytest.fixture(scope="module")
def made() -> Iterator[Account]:
    with account() as account_with_stack:
        yield account_with_stack


@cache
def installed_versions() -> bytes:
    """Constraints for the host, which shares this environment, and has no network to change it."""
    listed = [sys.executable, "-m", "pip", "list", "--format=freeze"]
    return subprocess.run(listed, capture_output=True, check=True).stdout


def run_bake(
    made: Account, folder: Path, setup_commands: list[str], cluster: str = STACK
) -> "subprocess.CompletedProcess[str]":
    """Run bake.py for aws.yaml with further setup commands, in a folder that takes the place of the repository."""
    config: dict[str, Any] = yaml.safe_load((ROOT / "cluster" / "aws.yaml").read_text().replace(STACK, cluster))
    config["provider"]["use_internal_ips"] = True
    config["auth"]["ssh_user"] = "root"
    config["setup_commands"] += setup_commands
    (folder / "cluster.yaml").write_text(yaml.safe_dump(config))
    shutil.copy(ROOT / "requirements-train.txt", folder)
    (folder / "constraints.txt").write_bytes(installed_versions())
    (folder / "cluster").mkdir()
    shutil.copy(ROOT / "cluster" / "spot_agent.py", folder / "cluster")
    token = folder / "home" / ".ray" / "auth_token"
    token.parent.mkdir(parents=True)
    token.write_text(TOKEN)
    credentials = {"AWS_ACCESS_KEY_ID": LAPTOP, "AWS_SECRET_ACCESS_KEY": "secret", "AWS_ENDPOINT_URL": made.endpoint}
    command = [sys.executable, str(ROOT / "cluster" / "bake.py"), "cluster.yaml", "--base-image", IMAGE_PARAMETER]
    return subprocess.run(
        command,
        cwd=folder,
        env=os.environ | credentials | {"HOME": str(folder / "home")},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )


def files_with(text: str, folder: Path) -> list[str]:
    found = subprocess.run(["grep", "-rlFs", "--devices=skip", text, str(folder)], capture_output=True, text=True)
    assert found.returncode in (0, 1)
    return found.stdout.splitlines()


def test_image_has_the_installed_environment_and_no_secrets_and_is_the_one_of_the_stack(
    made: Account, tmp_path: Path
) -> None:
    traces = [f"mkdir -p $(dirname {trace}) && echo secret > {trace}" for trace in TRACES]
    result = run_bake(made, tmp_path, [*traces, "command -v ray > ~/ray", 'echo "$HOME $USER" > ~/who'])
    assert result.returncode == 0, result.stdout + result.stderr
    (instance,) = made.instances()
    assert instance["State"]["Name"] == "terminated"
    disk = made.network.folder / instance["InstanceId"]
    home = disk / "home"

    # The commands ran as the user of the cluster file, with what the earlier ones wrote to ~/.bashrc.
    assert (home / "who").read_text() == f"{home} root\n"
    assert (home / "ray").read_text() == f"{home}/vgg-ddp/bin/ray\n"
    mounted = {path.name for path in (home / "vgg-ddp-node").iterdir()}
    assert mounted == {"requirements-train.txt", "constraints.txt", "spot_agent.py"}
    assert [list(home.glob(trace.removeprefix("~/"))) for trace in TRACES[:3]] == [[], [], []]
    assert list((disk / "ssh").iterdir()) == []
    assert (disk / "cloud-init.log").read_text() == "clean --logs --machine-id\n"
    assert not (home / ".ray").exists()
    assert files_with(TOKEN, disk) == []
    assert (disk / "shutdown.log").read_text().splitlines() == ["--no-wall -h +60", "-h now"]

    (launch,) = made.parameters("ec2:RunInstances")
    ssm, ec2 = made.client("ssm"), made.client("ec2")
    assert launch["ImageId"] == ssm.get_parameter(Name=IMAGE_PARAMETER)["Parameter"]["Value"]
    assert launch["LaunchTemplate.LaunchTemplateName"] == f"{STACK}-head"
    assert launch["InstanceInitiatedShutdownBehavior"] == "stop"
    assert "KeyName" not in launch and launch["SubnetId"] in made.subnets
    image = ssm.get_parameter(Name=f"/{STACK}/image")["Parameter"]["Value"]
    assert [call["InstanceId"] for call in made.parameters("ec2:CreateImage")] == [instance["InstanceId"]]
    assert ec2.describe_images(ImageIds=[image])["Images"][0]["Name"].startswith(f"{STACK}-2")

    # moto cannot update a stack: create another one with the parameter that the printed command sets.
    *_, deploy, up = result.stdout.replace("\\\n", "").splitlines()
    assert up == "ray up cluster.yaml"
    options = deploy.split()
    assert options[:7] == ["aws", "cloudformation", "deploy", "--region", REGION, "--stack-name", STACK]
    assert options[-2:] == ["--parameter-overrides", f"ImageId=/{STACK}/image"]
    formation = made.client("cloudformation")
    (stack,) = formation.describe_stacks(StackName=STACK)["Stacks"]
    parameters = {one["ParameterKey"]: one["ParameterValue"] for one in stack["Parameters"]}
    given = {key: parameters[key] for key in ("VpcId", "SshCidr")} | dict([options[-1].split("=")])
    formation.create_stack(
        StackName="baked",
        TemplateBody=template(),
        Parameters=[{"ParameterKey": key, "ParameterValue": value} for key, value in given.items()],
        Capabilities=["CAPABILITY_IAM"],
    )
    for node in ("head", "worker"):
        found = ec2.describe_launch_template_versions(LaunchTemplateName=f"baked-{node}", Versions=["$Latest"])
        assert found["LaunchTemplateVersions"][0]["LaunchTemplateData"]["ImageId"] == image


def test_failed_setup_is_shown_and_leaves_nothing_that_costs_money(made: Account, tmp_path: Path) -> None:
    images = len(made.parameters("ec2:CreateImage"))
    result = run_bake(made, tmp_path, ["echo this package does not exist; false"])
    assert result.returncode == 1
    assert "\nthis package does not exist\n" in result.stderr
    last_line = result.stderr.splitlines()[-1]
    assert last_line == "bake.py: error: the setup commands failed; the output of the instance is above"
    assert {instance["State"]["Name"] for instance in made.instances()} == {"terminated"}
    assert len(made.parameters("ec2:CreateImage")) == images


def test_without_the_stack_nothing_is_started(made: Account, tmp_path: Path) -> None:
    launches = len(made.parameters("ec2:RunInstances"))
    result = run_bake(made, tmp_path, [], cluster="birds")
    assert (result.returncode, result.stderr) == (
        2,
        "bake.py: error: the launch template birds-head does not exist in us-west-2: "
        "deploy the stack of cluster/infra.yaml first\n",
    )
    assert len(made.parameters("ec2:RunInstances")) == launches


def test_instance_of_another_attempt_is_named_and_no_second_one_started(made: Account, tmp_path: Path) -> None:
    ec2 = made.client("ec2")
    image = ec2.describe_images()["Images"][0]["ImageId"]
    tags = [{"ResourceType": "instance", "Tags": [{"Key": "Name", "Value": f"{STACK}-image"}]}]
    started = ec2.run_instances(ImageId=image, SubnetId=made.subnets[0], MinCount=1, MaxCount=1, TagSpecifications=tags)
    left = started["Instances"][0]["InstanceId"]
    ec2.stop_instances(InstanceIds=[left])
    launches = len(made.parameters("ec2:RunInstances"))
    result = run_bake(made, tmp_path, [])
    assert result.returncode == 1
    assert result.stderr.startswith(f"bake.py: error: {left}, named {STACK}-image, is left from another attempt")
    assert len(made.parameters("ec2:RunInstances")) == launches
    ec2.terminate_instances(InstanceIds=[left])
