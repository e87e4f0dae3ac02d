"""aws.yaml against an EC2 whose instances boot: from `ray up` over an interruption to `ray down`, and who did what."""

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

import ssh_hosts
from command import ROOT, wait_until
from fake_ec2 import HEAD, IMAGE_PARAMETER, LAPTOP, REGION, SSH_CIDR, STACK, WORKER, Account, account
from launcher import RAY, SUBMIT, Laptop, training_hosts

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(bool(ssh_hosts.unavailable()), reason=ssh_hosts.unavailable()),
    pytest.mark.timeout(900),
]

WORKERS = 2
# EC2 gives notice 120 s ahead; less shows the same sooner.
NOTICE_SECONDS = 45


@dataclass
class Story:
    """What happened.

    Attributes:
        log: what submit.sh printed.
        saved_steps: steps of the checkpoints that were in the bucket before the instance went.
        first, then: instances that trained before the interruption, and after it.
        interrupted: the instance that was taken back.
    """

    account: Account
    log: str
    saved_steps: set[int]
    first: set[str]
    then: set[str]
    interrupted: str


def rendered(made: Account, folder: Path) -> dict[str, object]:
    """The stack's cluster file, but for what the hosts are not: reached from outside, Ubuntu, with GPUs."""
    environment = os.environ | {"AWS_ENDPOINT_URL": made.endpoint} | laptop_credentials()
    command = [sys.executable, str(ROOT / "cluster" / "render.py"), "--stack", STACK, "--region", REGION]
    command += ["--image-parameter", IMAGE_PARAMETER, "--output", str(folder / "aws.yaml")]
    subprocess.run(command, env=environment, check=True, timeout=60)
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
def story() -> Iterator[Story]:
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
            wait_until(lambda: has_started(made) or process.poll() is not None, seconds=240)
            assert process.poll() is None, log.read_text()
            first = training_hosts(made.workers())
            interrupted = made.workers()[0]
            made.announce_interruption(interrupted, NOTICE_SECONDS)
            wait_until(lambda: bool(saved_steps(made)), seconds=NOTICE_SECONDS)
            steps = saved_steps(made)
            wait_until(lambda: "Resumed at step" in log.read_text() or process.poll() is not None, seconds=240)
            assert process.poll() is None, log.read_text()
            then = training_hosts(made.workers())
            result = laptop.run(RAY, "down", "--yes", laptop.cluster_file)
            assert result.returncode == 0, result.stdout
            yield Story(made, log.read_text(), steps, first, then, interrupted.name)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def test_run_goes_on_from_the_checkpoint_that_the_interruption_made(story: Story) -> None:
    resumed = re.search(r"Resumed at step (\d+)", story.log)
    assert resumed, story.log
    assert {int(resumed[1])} == story.saved_steps
    assert int(resumed[1]) > 0


def test_replacement_trains_in_place_of_the_interrupted_worker(story: Story) -> None:
    assert len(story.first) == len(story.then) == WORKERS
    assert story.interrupted in story.first
    assert story.interrupted not in story.then
    assert len(story.first & story.then) == 1


def test_ray_down_leaves_no_instance(story: Story) -> None:
    states = [instance["State"]["Name"] for instance in story.account.instances()]
    assert len(states) == sum(int(launch["MaxCount"]) for launch in story.account.parameters("ec2:RunInstances"))
    assert set(states) == {"terminated"}
    wait_until(lambda: not story.account.network.hosts, seconds=30)


def test_every_instance_is_launched_encrypted_with_imdsv2_in_the_stacks_network(story: Story) -> None:
    outputs = story.account.outputs
    launches = story.account.parameters("ec2:RunInstances")
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


def test_laptop_launches_the_head_on_demand_and_the_head_its_workers_as_spot_instances(story: Story) -> None:
    outputs = story.account.outputs
    launches = [call for call in story.account.calls if call.action == "ec2:RunInstances"]
    for call in launches:
        is_head = call.caller == LAPTOP
        profile = outputs["HeadProfile" if is_head else "WorkerProfile"]
        assert call.parameters["IamInstanceProfile.Name"] == profile
        assert call.parameters["InstanceType"] == ("m7i.large" if is_head else "g6.xlarge")
        assert call.parameters.get("InstanceMarketOptions.MarketType") == (None if is_head else "spot")
    assert [call.caller for call in launches].count(LAPTOP) == 1
    counts = [int(call.parameters["MaxCount"]) for call in launches if call.caller == HEAD]
    # The workers, and the replacement. Once Ray's autoscaler launched one more on a busy machine: probably it looked
    # just when the workers' placement group gave way to the next one, and counted both.
    assert sum(counts) in (WORKERS + 1, WORKERS + 2)


def allowed_actions(made: Account, profile: str) -> set[str]:
    """What an instance profile's role allows besides the bucket, on whatever resource."""
    iam = made.client("iam")
    (role,) = iam.get_instance_profile(InstanceProfileName=made.outputs[profile])["InstanceProfile"]["Roles"]
    name = role["RoleName"]
    names = iam.list_role_policies(RoleName=name)["PolicyNames"]
    documents = [iam.get_role_policy(RoleName=name, PolicyName=policy)["PolicyDocument"] for policy in names]
    # moto gives them as text with single quotes, which YAML reads.
    statements = [statement for document in documents for statement in yaml.safe_load(document)["Statement"]]
    actions = [statement["Action"] for statement in statements]
    return {action for entry in actions for action in ([entry] if isinstance(entry, str) else entry)}


def test_head_does_what_its_role_allows_and_workers_only_touch_the_bucket(story: Story) -> None:
    made = story.account
    head = {action for action in made.made_by(HEAD) if not action.startswith("s3:")}
    assert {"ec2:DescribeInstances", "ec2:RunInstances"} <= head <= allowed_actions(made, "HeadProfile")
    assert {action.partition(":")[0] for action in made.made_by(WORKER)} == {"s3"}
    assert allowed_actions(made, "WorkerProfile") == set()


def test_neither_launcher_nor_autoscaler_touches_roles_or_security_groups(story: Story) -> None:
    changes = {
        action
        for action in story.account.made_by(LAPTOP) | story.account.made_by(HEAD)
        if not action.startswith("s3:") and not re.match(r"\w+:(Describe|Get)", action)
    }
    assert changes <= {"ec2:RunInstances", "ec2:CreateTags", "ec2:TerminateInstances", "ec2:CreateKeyPair"}


def test_nothing_but_ssh_from_one_network_is_let_in(story: Story) -> None:
    ec2 = story.account.client("ec2")
    (group,) = ec2.describe_security_groups(GroupIds=[story.account.outputs["SecurityGroupId"]])["SecurityGroups"]
    open_to = {(rule.get("FromPort"), part["CidrIp"]) for rule in group["IpPermissions"] for part in rule["IpRanges"]}
    assert open_to == {(22, SSH_CIDR)}
