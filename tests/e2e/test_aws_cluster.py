"""aws.yaml on a simulated EC2 whose instances boot, from `ray up` to `ray down`, and every API call.

In between, EC2 reclaims a spot worker, and later the head is terminated.
"""

import os
import re
import signal
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from support import ssh_hosts
from support.command import ROOT, wait_until
from support.fake_ec2 import HEAD, LAPTOP, SSH_CIDR, STACK, WORKER, Account, account
from support.launcher import RAY, SUBMIT, Laptop, training_hosts
from support.packets import CONTENT_OF_RAY, Seen, capture

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(bool(ssh_hosts.missing_requirement()), reason=ssh_hosts.missing_requirement()),
]

WORKERS = 2
# EC2 gives 120 s of notice; less makes the test faster.
NOTICE_SECONDS = 60
LOST_SECONDS = 20
REFUSAL = ("InsufficientInstanceCapacity", "We currently do not have sufficient g6.xlarge capacity.")


@dataclass
class Observed:
    """Observations of a cluster from `ray up` to `ray down`.

    Attributes:
        log: output of submit.sh.
        saved_steps: steps of the checkpoints in the bucket before EC2 terminated the instance.
        before, after: instances that trained before the interruption, and after it.
        interrupted: the reclaimed instance.
        shutdowns: arguments of each `shutdown` on a worker, before the head was terminated.
        seconds_without_head: seconds from the end of the head until EC2 had terminated the workers.
        without_stack: exit code and last line of `ray up` for a cluster whose stack does not exist.
        head: the instance that was the head.
        seen: what crossed the network until the run had started.
    """

    account: Account
    laptop: Laptop
    log: str
    saved_steps: set[int]
    before: set[str]
    after: set[str]
    interrupted: str
    shutdowns: list[str]
    seconds_without_head: float
    without_stack: tuple[int, str]
    head: str
    seen: Seen


def adapted(cluster_file: Path) -> dict[str, Any]:
    """The cluster file for the simulated hosts: internal addresses, root instead of ubuntu, no GPUs, less patience."""
    config: dict[str, Any] = yaml.safe_load(cluster_file.read_text())
    config["provider"]["use_internal_ips"] = True
    config["auth"]["ssh_user"] = "root"
    config["available_node_types"]["g6_spot"]["resources"] = {"CPU": 1, "GPU": 0}
    *others, agent = config["worker_start_ray_commands"]
    config["worker_start_ray_commands"] = [
        *others,
        agent.replace("python spot_agent.py", f"python spot_agent.py --lost-minutes {LOST_SECONDS / 60}"),
    ]
    return config


def laptop_credentials() -> dict[str, str]:
    return {"AWS_ACCESS_KEY_ID": LAPTOP, "AWS_SECRET_ACCESS_KEY": "secret"}


def saved_steps(made: Account) -> set[int]:
    found = made.client("s3").list_objects_v2(Bucket=made.outputs["Bucket"], Prefix="runs/run/")
    keys = [item["Key"] for item in found.get("Contents", [])]
    return {int(found[1]) for key in keys if (found := re.search(r"checkpoint_(\d+)_\w+/manifest.json", key))}


def has_started(made: Account) -> bool:
    found = made.client("s3").list_objects_v2(Bucket=made.outputs["Bucket"], Prefix="runs/run/startup.json")
    return bool(found["KeyCount"])


def up_without_stack(laptop: Laptop) -> tuple[int, str]:
    other = laptop.home / "birds.yaml"
    other.write_text(laptop.cluster_file.read_text().replace("vgg-ddp", "birds"))
    result = laptop.run(RAY, "up", "--yes", "--no-config-cache", other)
    return result.returncode, result.stdout.splitlines()[-1]


def terminate_head(made: Account) -> float:
    """Terminate the head as AWS may do; wait until the workers are gone."""
    (head,) = [one["InstanceId"] for one in made.instances("running") if one.get("InstanceLifecycle") != "spot"]
    assert made.workers()
    started = time.monotonic()
    made.client("ec2").terminate_instances(InstanceIds=[head])
    wait_until(lambda: not made.instances("pending", "running"))
    return time.monotonic() - started


@pytest.fixture(scope="module")
def observed() -> Iterator[Observed]:
    with account() as made, tempfile.TemporaryDirectory(prefix="vgg-") as home:
        environment = laptop_credentials() | {"AWS_ENDPOINT_URL": made.endpoint}
        laptop = Laptop.make(Path(home) / "home", adapted(ROOT / "cluster" / "aws.yaml"), **environment)
        without_stack = up_without_stack(laptop)
        laptop.up()
        (head,) = [instance["InstanceId"] for instance in made.instances("running")]
        log = Path(home) / "log"
        flags = ["--num-workers", WORKERS, "--device", "cpu", "--data", "sample", "--batch-size", 2, "--epochs", 1]
        flags += ["--recipe", "classic", "--precision", "fp32", "--max-failures", 0, "--run-name", "run"]
        flags += ["--storage-path", f"s3://{made.outputs['Bucket']}/runs"]
        made.refusal = REFUSAL
        process = laptop.start(SUBMIT, laptop.cluster_file, *flags, log=log)
        try:
            wait_until(lambda: REFUSAL[0] in log.read_text() or process.poll() is not None)
            made.refusal = None
            with capture(made.network.bridge, laptop.token, CONTENT_OF_RAY) as seen:
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
            shutdowns = made.workers()[0].shutdowns()
            seconds = terminate_head(made)
            result = laptop.run(RAY, "down", "--yes", laptop.cluster_file)
            assert result.returncode == 0, result.stdout
            yield Observed(
                made,
                laptop,
                log.read_text(),
                steps,
                before,
                after,
                interrupted.name,
                shutdowns,
                seconds,
                without_stack,
                head,
                seen,
            )
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


def test_reason_of_a_refused_launch_is_printed_once(observed: Observed) -> None:
    note = f"NOTE: Ray could not start a machine, and retries: g6_spot: {REFUSAL[0]}: {REFUSAL[1]}\n"
    assert observed.log.count(note) == 1
    assert observed.log.index(note) < observed.log.index("Started:")


def test_workers_without_a_head_end(observed: Observed) -> None:
    # The agent connects to the head every 5 s.
    assert LOST_SECONDS - 7 < observed.seconds_without_head < LOST_SECONDS + 30


def test_ray_up_without_the_stack_names_what_is_missing_and_creates_nothing(observed: Observed) -> None:
    code, last_line = observed.without_stack
    assert code == 1
    assert "The specified launch template, with template name birds-worker, does not exist" in last_line
    assert all(
        "birds" not in call.parameters.values() for call in observed.account.calls if "Describe" not in call.action
    )


def test_no_instance_is_left(observed: Observed) -> None:
    states = [instance["State"]["Name"] for instance in observed.account.instances()]
    launches = [call for call in observed.account.calls if call.action == "ec2:RunInstances" and not call.refused]
    assert len(states) == sum(int(call.parameters["MaxCount"]) for call in launches)
    assert set(states) == {"terminated"}
    wait_until(lambda: not observed.account.network.hosts, seconds=30)


def test_every_instance_launches_with_encrypted_disk_and_imdsv2_in_the_stacks_network(observed: Observed) -> None:
    launches = observed.account.parameters("ec2:RunInstances")
    assert launches
    for launch in launches:
        assert launch["MetadataOptions.HttpTokens"] == "required"
        assert launch["MetadataOptions.HttpEndpoint"] == "enabled"
        assert launch["MetadataOptions.HttpPutResponseHopLimit"] == "1"
        assert launch["BlockDeviceMapping.1.Ebs.Encrypted"] == "true"
        assert launch["BlockDeviceMapping.1.Ebs.VolumeType"] == "gp3"
        assert launch["InstanceInitiatedShutdownBehavior"] == "terminate"
        assert launch["SecurityGroupId.1"] == observed.account.resources["SecurityGroup"]
        assert "SecurityGroupId.2" not in launch
        assert launch["SubnetId"] in observed.account.subnets
        assert launch["KeyName"] == STACK
        tags = {
            launch[f"TagSpecification.1.Tag.{number}.Key"]: launch[f"TagSpecification.1.Tag.{number}.Value"]
            for number in range(1, 20)
            if f"TagSpecification.1.Tag.{number}.Key" in launch
        }
        assert tags["ray-cluster-name"] == STACK


def test_laptop_launches_an_on_demand_head_and_the_head_launches_spot_workers(observed: Observed) -> None:
    resources = observed.account.resources
    launches = [call for call in observed.account.calls if call.action == "ec2:RunInstances"]
    for call in launches:
        is_head = call.caller == LAPTOP
        kind = "Head" if is_head else "Worker"
        assert call.parameters["IamInstanceProfile.Name"] == resources[f"{kind}Profile"]
        assert call.parameters["LaunchTemplate.LaunchTemplateName"] == f"{STACK}-{kind.lower()}"
        assert call.parameters["InstanceType"] == ("m7i.large" if is_head else "g6.xlarge")
        assert call.parameters.get("InstanceMarketOptions.MarketType") == (None if is_head else "spot")
    assert [call.caller for call in launches].count(LAPTOP) == 1
    counts = [int(call.parameters["MaxCount"]) for call in launches if call.caller == HEAD and not call.refused]
    # The workers and the replacement. Once, on a busy machine, Ray's autoscaler launched one more: it probably counted
    # both the old placement group of the workers and the new one.
    assert sum(counts) in (WORKERS + 1, WORKERS + 2)


def test_agent_takes_over_from_the_shutdown_that_guards_the_setup(observed: Observed) -> None:
    assert observed.shutdowns[:2] == ["--no-wall -h +60", "-c"]


def allowed_actions(made: Account, profile: str) -> set[str]:
    """Actions that an instance profile's role allows besides access to the bucket, on any resource."""
    iam = made.client("iam")
    (role,) = iam.get_instance_profile(InstanceProfileName=made.resources[profile])["InstanceProfile"]["Roles"]
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
    (group,) = ec2.describe_security_groups(GroupIds=[observed.account.resources["SecurityGroup"]])["SecurityGroups"]
    open_to = {(rule.get("FromPort"), part["CidrIp"]) for rule in group["IpPermissions"] for part in rule["IpRanges"]}
    assert open_to == {(22, SSH_CIDR)}


def test_token_and_settings_cross_the_network_in_clear_without_tls(observed: Observed) -> None:
    # With TLS, they do not: test_local_cluster.py.
    assert all(observed.seen.counts.values()), observed.seen


def test_host_key_of_the_head_is_kept_by_its_instance(observed: Observed) -> None:
    # Not by its address, which another instance may get.
    file = observed.laptop.home / ".ssh" / "vgg-ddp_known_hosts"
    assert observed.laptop.run("ssh-keygen", "-F", observed.head, "-f", file).returncode == 0
