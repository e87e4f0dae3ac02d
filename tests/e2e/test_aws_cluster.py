"""aws.yaml on a simulated EC2 whose instances boot: `ray up`, a spot interruption, `ray down`, and every API call."""

import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from support import ssh_hosts
from support.command import PATIENCE, ROOT, wait_until
from support.fake_ec2 import HEAD, IMAGE_PARAMETER, LAPTOP, REGION, SSH_CIDR, STACK, WORKER, Account, account
from support.launcher import RAY, SUBMIT, Laptop, training_hosts

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(bool(ssh_hosts.missing_requirement()), reason=ssh_hosts.missing_requirement()),
]

WORKERS = 2
# EC2 gives 120 s of notice; less makes the test faster.
NOTICE_SECONDS = 60


@dataclass
class Observed:
    """Observations of a cluster from `ray up` to `ray down`.

    Attributes:
        log: output of submit.sh.
        saved_steps: steps of the checkpoints in the bucket before EC2 terminated the instance.
        before, after: instances that trained before the interruption, and after it.
        interrupted: the reclaimed instance.
    """

    account: Account
    log: str
    saved_steps: set[int]
    before: set[str]
    after: set[str]
    interrupted: str


def rendered(made: Account, folder: Path) -> dict[str, object]:
    """The stack's cluster file, adapted to the simulated hosts: internal addresses, root instead of ubuntu, no GPUs."""
    environment = os.environ | {"AWS_ENDPOINT_URL": made.endpoint} | laptop_credentials()
    command = [sys.executable, str(ROOT / "cluster" / "render.py"), "--stack", STACK, "--region", REGION]
    command += ["--image-parameter", IMAGE_PARAMETER, "--output", str(folder / "aws.yaml")]
    subprocess.run(command, env=environment, check=True, timeout=PATIENCE)
    config: dict[str, dict[str, dict[str, object]]] = yaml.safe_load((folder / "aws.yaml").read_text())
    config["provider"]["use_internal_ips"] = True  # type: ignore[assignment]
    config["auth"]["ssh_user"] = "root"  # type: ignore[assignment]
    config["available_node_types"]["g6_spot"]["resources"] = {"CPU": 1, "GPU": 0}
    return config  # type: ignore[return-value]


def laptop_credentials() -> dict[str, str]:
    return {"AWS_ACCESS_KEY_ID": LAPTOP, "AWS_SECRET_ACCESS_KEY": "secret"}


def saved_steps(made: Account) -> set[int]:
    found = made.client("s3").list_objects_v2(Bucket=made.outputs["Bucket"], Prefix="runs/run/")
    keys = [item["Key"] for item in found.get("Contents", [])]
    return {int(found[1]) for key in keys if (found := re.search(r"checkpoint_(\d+)_\w+/manifest.json", key))}


def has_started(made: Account) -> bool:
    found = made.client("s3").list_objects_v2(Bucket=made.outputs["Bucket"], Prefix="runs/run/startup.json")
    return bool(found["KeyCount"])


@pytest.fixture(scope="module")
def observed() -> Iterator[Observed]:
    with account() as made, tempfile.TemporaryDirectory(prefix="vgg-") as home:
        environment = laptop_credentials() | {"AWS_ENDPOINT_URL": made.endpoint}
        laptop = Laptop.make(Path(home) / "home", rendered(made, Path(home)), **environment)
        laptop.up()
        assert len(made.instances("running")) == 1
        log = Path(home) / "log"
        flags = ["--num-workers", WORKERS, "--device", "cpu", "--data", "sample", "--batch-size", 2, "--epochs", 1]
        flags += ["--recipe", "classic", "--precision", "fp32", "--max-failures", 0, "--run-name", "run"]
        flags += ["--storage-path", f"s3://{made.outputs['Bucket']}/runs"]
        process = laptop.start(SUBMIT, laptop.cluster_file, *flags, log=log)
        try:
            wait_until(lambda: has_started(made) or process.poll() is not None)
            assert process.poll() is None, log.read_text()
            before = training_hosts(made.workers())
            interrupted = made.workers()[0]
            made.announce_interruption(interrupted, NOTICE_SECONDS)
            wait_until(lambda: bool(saved_steps(made)), seconds=NOTICE_SECONDS)
            steps = saved_steps(made)
            wait_until(lambda: "Resumed at step" in log.read_text() or process.poll() is not None)
            assert process.poll() is None, log.read_text()
            after = training_hosts(made.workers())
            result = laptop.run(RAY, "down", "--yes", laptop.cluster_file)
            assert result.returncode == 0, result.stdout
            yield Observed(made, log.read_text(), steps, before, after, interrupted.name)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def test_run_resumes_from_the_checkpoint_saved_at_the_interruption(observed: Observed) -> None:
    resumed = re.search(r"Resumed at step (\d+)", observed.log)
    assert resumed, observed.log
    assert {int(resumed[1])} == observed.saved_steps
    assert int(resumed[1]) > 0


def test_replacement_worker_trains_instead_of_the_interrupted_one(observed: Observed) -> None:
    assert len(observed.before) == len(observed.after) == WORKERS
    assert observed.interrupted in observed.before
    assert observed.interrupted not in observed.after
    assert len(observed.before & observed.after) == 1


def test_ray_down_terminates_every_instance(observed: Observed) -> None:
    states = [instance["State"]["Name"] for instance in observed.account.instances()]
    assert len(states) == sum(int(launch["MaxCount"]) for launch in observed.account.parameters("ec2:RunInstances"))
    assert set(states) == {"terminated"}
    wait_until(lambda: not observed.account.network.hosts, seconds=30)


def test_every_instance_launches_with_encrypted_disk_and_imdsv2_in_the_stacks_network(observed: Observed) -> None:
    outputs = observed.account.outputs
    launches = observed.account.parameters("ec2:RunInstances")
    assert launches
    for launch in launches:
        assert launch["MetadataOptions.HttpTokens"] == "required"
        assert launch["MetadataOptions.HttpEndpoint"] == "enabled"
        assert launch["MetadataOptions.HttpPutResponseHopLimit"] == "1"
        assert launch["BlockDeviceMapping.1.Ebs.Encrypted"] == "true"
        assert launch["BlockDeviceMapping.1.Ebs.VolumeType"] == "gp3"
        assert launch["SecurityGroupId.1"] == outputs["SecurityGroupId"]
        assert "SecurityGroupId.2" not in launch
        assert launch["SubnetId"] in outputs["SubnetIds"].split(",")
        tags = {
            launch[f"TagSpecification.1.Tag.{number}.Key"]: launch[f"TagSpecification.1.Tag.{number}.Value"]
            for number in range(1, 20)
            if f"TagSpecification.1.Tag.{number}.Key" in launch
        }
        assert tags["ray-cluster-name"] == STACK


def test_laptop_launches_an_on_demand_head_and_the_head_launches_spot_workers(observed: Observed) -> None:
    outputs = observed.account.outputs
    launches = [call for call in observed.account.calls if call.action == "ec2:RunInstances"]
    for call in launches:
        is_head = call.caller == LAPTOP
        profile = outputs["HeadProfile" if is_head else "WorkerProfile"]
        assert call.parameters["IamInstanceProfile.Name"] == profile
        assert call.parameters["InstanceType"] == ("m7i.large" if is_head else "g6.xlarge")
        assert call.parameters.get("InstanceMarketOptions.MarketType") == (None if is_head else "spot")
    assert [call.caller for call in launches].count(LAPTOP) == 1
    counts = [int(call.parameters["MaxCount"]) for call in launches if call.caller == HEAD]
    # The workers and the replacement. Once, on a busy machine, Ray's autoscaler launched one more: it probably counted
    # both the old placement group of the workers and the new one.
    assert sum(counts) in (WORKERS + 1, WORKERS + 2)


def allowed_actions(made: Account, profile: str) -> set[str]:
    """Actions that an instance profile's role allows besides access to the bucket, on any resource."""
    iam = made.client("iam")
    (role,) = iam.get_instance_profile(InstanceProfileName=made.outputs[profile])["InstanceProfile"]["Roles"]
    name = role["RoleName"]
    names = iam.list_role_policies(RoleName=name)["PolicyNames"]
    documents = [iam.get_role_policy(RoleName=name, PolicyName=policy)["PolicyDocument"] for policy in names]
    # moto returns them as text with single quotes, which YAML can parse.
    statements = [statement for document in documents for statement in yaml.safe_load(document)["Statement"]]
    actions = [statement["Action"] for statement in statements]
    return {action for entry in actions for action in ([entry] if isinstance(entry, str) else entry)}


def test_head_calls_only_what_its_role_allows_and_workers_access_only_the_bucket(observed: Observed) -> None:
    made = observed.account
    head = {action for action in made.actions_of(HEAD) if not action.startswith("s3:")}
    assert {"ec2:DescribeInstances", "ec2:RunInstances"} <= head <= allowed_actions(made, "HeadProfile")
    assert {action.partition(":")[0] for action in made.actions_of(WORKER)} == {"s3"}
    assert allowed_actions(made, "WorkerProfile") == set()


def test_neither_launcher_nor_autoscaler_changes_roles_or_security_groups(observed: Observed) -> None:
    changes = {
        action
        for action in observed.account.actions_of(LAPTOP) | observed.account.actions_of(HEAD)
        if not action.startswith("s3:") and not re.match(r"\w+:(Describe|Get)", action)
    }
    assert changes <= {"ec2:RunInstances", "ec2:CreateTags", "ec2:TerminateInstances", "ec2:CreateKeyPair"}


def test_only_ssh_from_one_network_is_allowed(observed: Observed) -> None:
    ec2 = observed.account.client("ec2")
    (group,) = ec2.describe_security_groups(GroupIds=[observed.account.outputs["SecurityGroupId"]])["SecurityGroups"]
    open_to = {(rule.get("FromPort"), part["CidrIp"]) for rule in group["IpPermissions"] for part in rule["IpRanges"]}
    assert open_to == {(22, SSH_CIDR)}
