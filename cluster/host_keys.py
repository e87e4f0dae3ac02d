"""SSH host keys: how the scripts have them checked, and what to say if a key is not the expected one."""

import re
import shlex
from pathlib import Path
from typing import Any

# The folder of the ssh command that checks them.
CHECKED_SSH = Path(__file__).resolve().parent / "ssh"


def head_alias(config: dict[str, Any]) -> str | None:
    """The name under which SSH keeps the key of the head node; None for its address.

    On EC2, it is the instance: a new one has a new key, and may have the address of an earlier one.
    """
    provider = config["provider"]
    if provider.get("type") != "aws":
        return None
    try:
        import boto3
        from botocore.exceptions import BotoCoreError, ClientError
    except ImportError:
        # Ray cannot do without it either, and says so.
        return None
    wanted = {"tag:ray-cluster-name": config.get("cluster_name", ""), "tag:ray-node-type": "head"}
    wanted["instance-state-name"] = "running"
    filters = [{"Name": name, "Values": [value]} for name, value in wanted.items()]
    try:
        ec2 = boto3.client("ec2", region_name=provider.get("region"), **(provider.get("aws_credentials") or {}))
        reservations = ec2.describe_instances(Filters=filters)["Reservations"]
    except (BotoCoreError, ClientError):
        # Ray makes the same call next, and reports why it fails.
        return None
    instances = [instance["InstanceId"] for reservation in reservations for instance in reservation["Instances"]]
    return instances[0] if len(instances) == 1 else None


def changed_key(output: str) -> str | None:
    """One line for the user if SSH refused a host key, according to its output."""
    name = re.search(r"Host key for (\S+) has changed", output)
    file = re.search(r"Offending \S+ key in (.+):\d+", output)
    if not name or not file:
        return None
    command = shlex.join(["ssh-keygen", "-R", name[1], "-f", file[1]])
    return (
        f"{name[1]} has another SSH host key than in {file[1]}: if you know that it was reinstalled or replaced, run "
        f"{command}; if not, another machine may be posing as it"
    )
