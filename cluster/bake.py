"""Bake a machine image for a cluster file like aws.yaml, with everything installed that its setup commands install.

python cluster/bake.py cluster/aws.yaml

Starts an instance from the head's launch template, without a key pair, so that nobody can log in. It runs the setup
commands, cleans up, and stops. No secret ever reaches its disk: the image gets only files of this repository. The image
is then named in the Systems Manager parameter /STACK/image, for the stack's parameter ImageId.
"""

import argparse
import base64
import io
import shlex
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

import boto3
from botocore.exceptions import BotoCoreError, ClientError

from machines import ClusterFileError, read_cluster

# As in infra.yaml.
BASE_IMAGE = "/aws/service/deeplearning/ami/x86_64/base-oss-nvidia-driver-gpu-ubuntu-24.04/latest/ami-id"
POLL_SECONDS = 3.0
SETUP_LIMIT_SECONDS = 50 * 60
# The instance shuts down by then, if this program no longer runs; later than that limit.
SHUTDOWN_MINUTES = 60
# A snapshot of a disk takes some minutes, sometimes many.
IMAGE_WAIT = {"Delay": 15, "MaxAttempts": 240}
FAILED = "bake.py: the setup failed"
ELSEWHERE = {"Unsupported", "InsufficientInstanceCapacity"}

# The instance runs this as root at its first boot. `bash -i` reads ~/.bashrc, as for Ray's launcher.
SCRIPT = """#!/bin/bash
shutdown --no-wall -h +{minutes}
trap 'test $? = 0 || echo "{failed}"' EXIT
set -e
base64 -d <<'END' | runuser --login {user} --command 'tar --extract --gzip'
{files}END
{commands}
# In the background, because cloud-init writes to its folder until this script has ended.
(
  cloud-init status --wait > /dev/null || true
  cloud-init clean --logs --machine-id &&
    rm -rf /etc/ssh/ssh_host_* ~root/.ssh ~{user}/.ssh ~root/.bash_history ~{user}/.bash_history ~{user}/.cache &&
    shutdown -h now || echo "{failed}"
) &
"""


class BakeError(Exception):
    """The image was not made; the message is one line."""


def is_in_repository(local: str) -> bool:
    """Whether a mounted file is one of the repository's, which are no secrets."""
    return not local.startswith("~") and not Path(local).is_absolute() and ".." not in Path(local).parts


def user_data(config: dict[str, Any]) -> str:
    """The script that the instance runs.

    Raises:
        ClusterFileError: if a file of the repository is missing.
    """
    user, mounts = config["auth"]["ssh_user"], config.get("file_mounts") or {}
    included = {remote: local for remote, local in mounts.items() if is_in_repository(local)}
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        for remote, local in included.items():
            try:
                archive.add(local, remote.removeprefix("~/"))
            except OSError as error:
                raise ClusterFileError(f"file_mounts: {error}") from error
    # Commands that need the other files run on the nodes only.
    commands = [
        f"runuser --login {user} --command {shlex.quote('bash -ic ' + shlex.quote(command))}"
        for command in [*config["setup_commands"], *(config.get("head_setup_commands") or [])]
        if not any(remote.rstrip("/") in command for remote in mounts.keys() - included)
    ]
    return SCRIPT.format(
        minutes=SHUTDOWN_MINUTES,
        failed=FAILED,
        user=user,
        files=base64.encodebytes(packed.getvalue()).decode(),
        commands="\n".join(commands),
    )


def subnets(ec2: Any, config: dict[str, Any], template: dict[str, str]) -> list[str]:
    """The subnets in which Ray would start nodes: those of the security group's network.

    Raises:
        ClusterFileError: if the launch template does not exist.
    """
    name, region = template["LaunchTemplateName"], config["provider"]["region"]
    try:
        found = ec2.describe_launch_template_versions(LaunchTemplateName=name, Versions=[template["Version"]])
    except ClientError as error:
        if error.response["Error"]["Code"] != "InvalidLaunchTemplateName.NotFoundException":
            raise
        reason = f"the launch template {name} does not exist in {region}: deploy the stack of cluster/infra.yaml first"
        raise ClusterFileError(reason) from error
    groups = found["LaunchTemplateVersions"][0]["LaunchTemplateData"]["SecurityGroupIds"]
    (group,) = ec2.describe_security_groups(GroupIds=groups)["SecurityGroups"]
    filters = [{"Name": "vpc-id", "Values": [group["VpcId"]]}]
    if not config["provider"].get("use_internal_ips"):
        filters.append({"Name": "map-public-ip-on-launch", "Values": ["true"]})
    return [str(subnet["SubnetId"]) for subnet in ec2.describe_subnets(Filters=filters)["Subnets"]]


def launch(ec2: Any, config: dict[str, Any], request: dict[str, Any], name: str) -> str:
    """Start the instance in the first zone that has its type; return its ID.

    Raises:
        BakeError: if no zone has it, or if the instance of an earlier attempt is left.
    """
    filters = [{"Name": "tag:Name", "Values": [name]}]
    filters.append({"Name": "instance-state-name", "Values": ["pending", "running", "stopping", "stopped"]})
    for reservation in ec2.describe_instances(Filters=filters)["Reservations"]:
        left = reservation["Instances"][0]["InstanceId"]
        raise BakeError(f"{left}, named {name}, is left from another attempt: terminate it if that no longer runs")
    reason = "its network has no subnet that assigns public addresses"
    for subnet in subnets(ec2, config, request["LaunchTemplate"]):
        try:
            answer = ec2.run_instances(
                SubnetId=subnet,
                # Its disk becomes the image. The launch template says terminate.
                InstanceInitiatedShutdownBehavior="stop",
                TagSpecifications=[{"ResourceType": "instance", "Tags": [{"Key": "Name", "Value": name}]}],
                MinCount=1,
                MaxCount=1,
                **request,
            )
            return str(answer["Instances"][0]["InstanceId"])
        except ClientError as error:
            if error.response["Error"]["Code"] not in ELSEWHERE:
                raise
            reason = str(error)
    raise BakeError(f"the instance cannot be started: {reason}")


def console(ec2: Any, instance: str) -> str:
    """What the instance has printed; empty if that is not available in its present state."""
    try:
        return str(ec2.get_console_output(InstanceId=instance, Latest=True).get("Output", ""))
    except ClientError:
        return ""


def wait_until_stopped(ec2: Any, instance: str) -> None:
    """Wait until the instance stops, which it does after its setup.

    Raises:
        BakeError: if the setup fails, after printing the end of its output; or if it takes too long.
    """
    # EC2 may not know a new instance everywhere at once.
    ec2.get_waiter("instance_exists").wait(InstanceIds=[instance])
    # By the wall clock, which runs on while a laptop sleeps: after the limit, the instance may have stopped unfinished.
    deadline = time.time() + SETUP_LIMIT_SECONDS
    while time.time() < deadline:
        (reservation,) = ec2.describe_instances(InstanceIds=[instance])["Reservations"]
        state = reservation["Instances"][0]["State"]["Name"]
        if state == "stopped":
            return
        if state in ("shutting-down", "terminated"):
            raise BakeError(f"{instance} was terminated during its setup")
        output = console(ec2, instance)
        if FAILED in output:
            print(output[-3000:], file=sys.stderr)
            raise BakeError("the setup commands failed; the output of the instance is above")
        time.sleep(POLL_SECONDS)
    raise BakeError(f"the setup did not end within {SETUP_LIMIT_SECONDS // 60} minutes")


def bake(cluster_file: str, base_parameter: str) -> None:
    """Make the image, name it in the parameter, and say how to use it.

    Raises:
        ClusterFileError: if the cluster file, or the stack, is not as needed.
        BakeError, BotoCoreError, ClientError: if AWS refuses something, or the setup fails.
    """
    config = read_cluster(cluster_file)
    if config["provider"].get("type") != "aws":
        raise ClusterFileError(f"{cluster_file}: not a cluster file for AWS like aws.yaml")
    try:
        stack, region = config["cluster_name"], config["provider"]["region"]
        head = config["available_node_types"][config["head_node_type"]]["node_config"]
        template = {name: head["LaunchTemplate"][name] for name in ("LaunchTemplateName", "Version")}
        machine = {"LaunchTemplate": template, "InstanceType": head["InstanceType"]}
        script = user_data(config)
    except KeyError as error:
        raise ClusterFileError(f"{cluster_file}: not a cluster file like aws.yaml: {error} is missing") from error
    except (AttributeError, TypeError) as error:
        raise ClusterFileError(f"{cluster_file}: not a cluster file like aws.yaml: {error}") from error
    ec2, ssm = boto3.client("ec2", region), boto3.client("ssm", region)
    base = ssm.get_parameter(Name=base_parameter)["Parameter"]["Value"]
    instance = launch(ec2, config, machine | {"ImageId": base, "UserData": script}, f"{stack}-image")
    try:
        print(f"Instance:  {instance}, from {base}; installing", flush=True)
        started = time.monotonic()
        wait_until_stopped(ec2, instance)
        print(f"Installed: after {time.monotonic() - started:.0f} s", flush=True)
        name = f"{stack}-{time.strftime('%Y%m%d-%H%M%S')}"
        image = ec2.create_image(InstanceId=instance, Name=name)["ImageId"]
        print(f"Image:     {image} ({name}), being created", flush=True)
        ec2.get_waiter("image_available").wait(ImageIds=[image], WaiterConfig=IMAGE_WAIT)
    finally:
        ec2.terminate_instances(InstanceIds=[instance])
    parameter = f"/{stack}/image"
    previous = ssm.get_parameters(Names=[parameter])["Parameters"]
    ssm.put_parameter(Name=parameter, Value=image, Type="String", Overwrite=True)
    print(
        f"Parameter: {parameter}\nEnd all jobs, because the next `ray up` will replace the head. Then:\n"
        f"aws cloudformation deploy --region {region} --stack-name {stack} --template-file cluster/infra.yaml \\\n"
        f"  --capabilities CAPABILITY_IAM --parameter-overrides ImageId={parameter}\nray up {cluster_file}"
    )
    for old in previous:
        print(f"aws ec2 deregister-image --region {region} --image-id {old['Value']} --delete-associated-snapshots")


def main() -> int:
    parser = argparse.ArgumentParser(prog="bake.py", description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("cluster_file", metavar="CLUSTER_FILE", help="such as cluster/aws.yaml")
    base_help = "Systems Manager parameter with the image to start from (default: the stack's default)"
    parser.add_argument("--base-image", metavar="PARAMETER", default=BASE_IMAGE, help=base_help)
    given = parser.parse_args()
    try:
        bake(given.cluster_file, given.base_image)
        return 0
    except ClusterFileError as error:
        print(f"bake.py: error: {error}", file=sys.stderr)
        return 2
    except (BakeError, BotoCoreError, ClientError) as error:
        print(f"bake.py: error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("bake.py: stopped; the instance is being terminated", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
