"""An AWS account whose EC2 instances boot: moto's API, and a host in a network namespace for each running instance.

Every call is recorded with its caller: the laptop, the head, or a worker, distinguished by their access keys. The head
and the workers get their keys from the instance metadata service, as the role of their instance profile.
"""

import base64
import io
import json
import re
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app

from support import ssh_hosts
from support.command import ROOT, free_port
from support.imds import INTERRUPTION
from support.s3_server import CREDENTIALS, client, serving

# As in aws.yaml.
REGION = "us-west-2"
STACK = "vgg-ddp"
INFRA = ROOT / "cluster" / "infra.yaml"
IMAGE_PARAMETER = "/images/newest"
LAPTOP, HEAD, WORKER, AWS = "LAPTOP", "HEAD", "WORKER", CREDENTIALS["AWS_ACCESS_KEY_ID"]
SSH_CIDR = "203.0.113.7/32"


@dataclass(frozen=True)
class Call:
    """One API call: its caller, its action, its parameters in the query protocol, and whether it was refused."""

    caller: str
    action: str
    parameters: dict[str, str]
    refused: bool = False


@dataclass
class Account:
    """The account, its one stack, and its instances."""

    network: ssh_hosts.Network
    endpoint: str
    calls: list[Call] = field(default_factory=list)
    outputs: dict[str, str] = field(default_factory=dict)
    resources: dict[str, str] = field(default_factory=dict)
    subnets: list[str] = field(default_factory=list)
    # While set, the code and message with which EC2 refuses to launch workers.
    refusal: tuple[str, str] | None = None

    def client(self, service: str) -> Any:
        """A client with the account's own credentials."""
        return client(self.endpoint, service, REGION)

    def instances(self, *states: str) -> list[dict[str, Any]]:
        """Instances in these states; all instances if none is given."""
        filters = [{"Name": "instance-state-name", "Values": list(states)}] if states else []
        reservations = self.client("ec2").describe_instances(Filters=filters)["Reservations"]
        return [instance for reservation in reservations for instance in reservation["Instances"]]

    def workers(self) -> list[ssh_hosts.Host]:
        """Hosts of the running spot instances."""
        spot = [one["InstanceId"] for one in self.instances("running") if one.get("InstanceLifecycle") == "spot"]
        return [self.network.hosts[name] for name in spot if name in self.network.hosts]

    def announce_interruption(self, host: ssh_hosts.Host, seconds: float) -> None:
        """Announce in the instance metadata that EC2 will reclaim the instance in `seconds`, and then terminate it."""
        at = datetime.now(UTC) + timedelta(seconds=seconds)
        file = host.folder / "imds" / INTERRUPTION
        file.parent.mkdir(parents=True)
        file.write_text(json.dumps({"action": "terminate", "time": at.strftime("%Y-%m-%dT%H:%M:%SZ")}))
        terminate = self.client("ec2").terminate_instances
        timer = threading.Timer(seconds, terminate, kwargs={"InstanceIds": [host.name]})
        timer.daemon = True
        timer.start()

    def actions_of(self, caller: str) -> set[str]:
        return {call.action for call in self.calls if call.caller == caller}

    def parameters(self, action: str) -> list[dict[str, str]]:
        return [call.parameters for call in self.calls if call.action == action and call.caller != AWS]


REFUSAL = (
    '<?xml version="1.0"?><Response><Errors><Error><Code>{}</Code><Message>{}</Message></Error></Errors></Response>'
)
CONSOLE = "<GetConsoleOutputResponse><output>{}</output></GetConsoleOutputResponse>"


def _recorder(application: Callable[..., Any], made: Account) -> Callable[..., Any]:
    """Wrap an application to record its calls, to refuse launches, and to show what the hosts print."""

    def answer(environ: dict[str, Any], start_response: Any) -> Any:
        authorization = environ.get("HTTP_AUTHORIZATION", "")
        found = re.search(r"Credential=(\w+)/\d+/[\w-]+/([\w-]+)/", authorization)
        if found:
            caller, service = found.groups()
            parameters: dict[str, str] = {}
            # S3 requests do not name an action.
            action = environ["REQUEST_METHOD"]
            if service != "s3":
                body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
                environ["wsgi.input"] = io.BytesIO(body)
                parameters = dict(urllib.parse.parse_qsl(body.decode()))
                action = parameters.get("Action") or environ.get("HTTP_X_AMZ_TARGET", "").rpartition(".")[2]
            refused = action == "RunInstances" and caller == HEAD and made.refusal is not None
            made.calls.append(Call(caller, f"{service}:{action}", parameters, refused))
            if made.refusal and refused:
                start_response("500 Internal Server Error", [("Content-Type", "text/xml")])
                return [REFUSAL.format(*made.refusal).encode()]
            if action == "RunInstances":
                # EC2 launches as many instances as its capacity allows, up to the maximum; moto launches the minimum.
                full = parameters | {"MinCount": parameters["MaxCount"]}
                body = urllib.parse.urlencode(full).encode()
                environ |= {"wsgi.input": io.BytesIO(body), "CONTENT_LENGTH": str(len(body))}
            if action == "GetConsoleOutput":
                log = made.network.folder / parameters["InstanceId"] / "init.log"
                printed = log.read_bytes() if log.exists() else b""
                start_response("200 OK", [("Content-Type", "text/xml")])
                return [CONSOLE.format(base64.b64encode(printed).decode()).encode()]
        return application(environ, start_response)

    return answer


def template() -> str:
    """The text of infra.yaml, whose default image is in a parameter that moto accepts."""
    text, replaced = re.subn(r"Default: /aws/service/\S+", f"Default: {IMAGE_PARAMETER}", INFRA.read_text())
    assert replaced == 1
    return text


@contextmanager
def account() -> Iterator[Account]:
    """An account with the stack of infra.yaml, whose instances boot and terminate."""
    with ssh_hosts.network() as network:
        port = free_port()
        made = Account(network, f"http://{network.gateway}:{port}")
        application = _recorder(DomainDispatcherApplication(create_backend_app), made)
        stop = threading.Event()
        with serving(application, network.gateway, port), ThreadPoolExecutor(1) as pool:
            _deploy(made)
            keeping = pool.submit(_keep_hosts, made, stop)
            try:
                yield made
            finally:
                stop.set()
                # Raises the exception of that thread, if any.
                keeping.result()


def _deploy(made: Account) -> None:
    """Create a network with subnets in two zones, the parameter that holds the image, and the stack."""
    ec2 = made.client("ec2")
    network = made.network
    vpc = ec2.create_vpc(CidrBlock=f"{network.prefix}.0/24")["Vpc"]["VpcId"]
    for cidr, zone in ((f"{network.prefix}.0/25", "a"), (f"{network.prefix}.128/25", "b")):
        subnet = ec2.create_subnet(VpcId=vpc, CidrBlock=cidr, AvailabilityZone=REGION + zone)["Subnet"]
        made.subnets.append(subnet["SubnetId"])
    image = next(image for image in ec2.describe_images()["Images"] if image["Architecture"] == "x86_64")
    made.client("ssm").put_parameter(Name=IMAGE_PARAMETER, Value=image["ImageId"], Type="String")
    parameters = {"VpcId": vpc, "SshCidr": SSH_CIDR}
    formation = made.client("cloudformation")
    formation.create_stack(
        StackName=STACK,
        TemplateBody=template(),
        Parameters=[{"ParameterKey": key, "ParameterValue": value} for key, value in parameters.items()],
        Capabilities=["CAPABILITY_IAM"],
    )
    stack = formation.describe_stacks(StackName=STACK)["Stacks"][0]
    made.outputs |= {output["OutputKey"]: output["OutputValue"] for output in stack["Outputs"]}
    for resource in formation.describe_stack_resources(StackName=STACK)["StackResources"]:
        # moto lists resources that it does not support without their names.
        if resource.keys() >= {"LogicalResourceId", "PhysicalResourceId"}:
            made.resources[resource["LogicalResourceId"]] = resource["PhysicalResourceId"]


def _keep_hosts(made: Account, stop: threading.Event) -> None:
    """Boot a host for each running instance, and power off the hosts whose instances no longer run."""
    network = made.network
    while not stop.wait(0.3):
        running = {instance["InstanceId"]: instance for instance in made.instances("running")}
        for name, host in network.hosts.items():
            if name in running and "-h now" in host.shutdowns():
                _shut_down(made, name)
        for name in set(network.hosts) - set(running):
            network.power_off(name)
        for name, instance in running.items():
            if name not in network.hosts:
                _boot(made, name, instance)


def _shut_down(made: Account, name: str) -> None:
    """Do what EC2 does when an instance shuts down."""
    ec2 = made.client("ec2")
    attribute = "instanceInitiatedShutdownBehavior"
    described = ec2.describe_instance_attribute(InstanceId=name, Attribute=attribute)
    if described["InstanceInitiatedShutdownBehavior"]["Value"] == "terminate":
        ec2.terminate_instances(InstanceIds=[name])
    else:
        ec2.stop_instances(InstanceIds=[name])


def _user_data(made: Account, name: str) -> str:
    described = made.client("ec2").describe_instance_attribute(InstanceId=name, Attribute="userData")
    return base64.b64decode(described["UserData"].get("Value", "")).decode()


def _boot(made: Account, name: str, instance: dict[str, Any]) -> None:
    public_key = None
    if name_of_key := instance.get("KeyName"):
        pairs = made.client("ec2").describe_key_pairs(KeyNames=[name_of_key], IncludePublicKey=True)["KeyPairs"]
        public_key = pairs[0]["PublicKey"].strip() + "\n"
    # Not from the profile: moto sets it only on the first instance of a request, and with a delay.
    caller = WORKER if instance.get("InstanceLifecycle") == "spot" else HEAD
    expiry = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + 6 * 3600))
    role = {"Code": "Success", "Type": "AWS-HMAC", "AccessKeyId": caller, "SecretAccessKey": "secret"}
    role |= {"Token": "token", "LastUpdated": "2026-01-01T00:00:00Z", "Expiration": expiry}
    metadata = {
        "latest/meta-data/instance-id": name,
        "latest/meta-data/placement/region": REGION,
        f"latest/meta-data/iam/security-credentials/{caller.lower()}-role": json.dumps(role),
    }
    made.network.boot(
        name,
        instance["PrivateIpAddress"],
        public_key=public_key,
        environment={"AWS_ENDPOINT_URL": made.endpoint},
        metadata=metadata,
        user_data=_user_data(made, name),
    )
