"""The stack of infra.yaml, deployed to a simulated AWS, and the cluster file that render.py writes from it."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from support.command import PATIENCE, ROOT, free_port
from support.s3_server import CREDENTIALS, aws_server, client

pytestmark = pytest.mark.e2e

REGION = CREDENTIALS["AWS_DEFAULT_REGION"]
IMAGE = "ami-0123456789abcdef0"
PARAMETER = "/images/newest"


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    """Endpoint of an account with a complete stack named vgg-test."""
    with aws_server(free_port()) as url:
        ec2 = client(url, "ec2")
        vpc = ec2.describe_vpcs()["Vpcs"][0]["VpcId"]
        subnets = [subnet["SubnetId"] for subnet in ec2.describe_subnets()["Subnets"][:2]]
        parameters = {"VpcId": vpc, "SubnetIds": ",".join(subnets), "SshCidr": "203.0.113.7/32"}
        client(url, "cloudformation").create_stack(
            StackName="vgg-test",
            TemplateBody=(ROOT / "cluster" / "infra.yaml").read_text(),
            Parameters=[{"ParameterKey": key, "ParameterValue": value} for key, value in parameters.items()],
            Capabilities=["CAPABILITY_IAM"],
        )
        client(url, "ssm").put_parameter(Name=PARAMETER, Value=IMAGE, Type="String")
        yield url


def render(endpoint: str, *flags: object) -> subprocess.CompletedProcess[str]:
    command = [
        sys.executable,
        ROOT / "cluster" / "render.py",
        "--region",
        REGION,
        "--image-parameter",
        PARAMETER,
        *flags,
    ]
    environment = CREDENTIALS | {"AWS_ENDPOINT_URL": endpoint}
    return subprocess.run(
        [str(part) for part in command], env=environment, capture_output=True, text=True, timeout=PATIENCE
    )


def test_rendered_file_has_the_resources_of_the_stack(endpoint: str, tmp_path: Path) -> None:
    result = render(endpoint, "--stack", "vgg-test", "--output", tmp_path / "aws.yaml")
    assert result.returncode == 0, result.stderr
    config = yaml.safe_load((tmp_path / "aws.yaml").read_text())
    stack = client(endpoint, "cloudformation").describe_stacks(StackName="vgg-test")["Stacks"][0]
    outputs = {output["OutputKey"]: output["OutputValue"] for output in stack["Outputs"]}
    assert (config["cluster_name"], config["provider"]["region"]) == ("vgg-test", REGION)
    for name, node_type in config["available_node_types"].items():
        node = node_type["node_config"]
        assert node["ImageId"] == IMAGE
        assert node["IamInstanceProfile"]["Name"] == outputs["HeadProfile" if name == "head" else "WorkerProfile"]
        network = node["NetworkInterfaces"][0] if name == "efa_spot" else node
        assert network.get("Groups", network.get("SecurityGroupIds")) == [outputs["SecurityGroupId"]]
    subnets = outputs["SubnetIds"].split(",")
    assert config["available_node_types"]["g6_spot"]["node_config"]["SubnetIds"] == subnets
    assert len(subnets) == 2
    assert f"s3://{outputs['Bucket']}/runs" in result.stdout


def test_security_group_of_the_stack_allows_ssh_from_one_network_and_its_own_nodes(endpoint: str) -> None:
    groups = client(endpoint, "ec2").describe_security_groups()["SecurityGroups"]
    (group,) = [group for group in groups if group["Description"].startswith("SSH from one network")]
    ingress = [
        (rule["IpProtocol"], rule.get("FromPort"), [part["CidrIp"] for part in rule["IpRanges"]])
        for rule in group["IpPermissions"]
    ]
    assert sorted(ingress) == [("-1", None, []), ("tcp", 22, ["203.0.113.7/32"])]
    assert [pair["GroupId"] for rule in group["IpPermissions"] for pair in rule["UserIdGroupPairs"]] == [
        group["GroupId"]
    ]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--stack", "nowhere"], "--stack nowhere --region us-east-1: "),
        (["--stack", "vgg-test", "--image-parameter", "/none"], "--image-parameter /none --region us-east-1: "),
    ],
    ids=["no stack", "no parameter"],
)
def test_missing_resource_is_reported_in_one_line(
    endpoint: str, tmp_path: Path, flags: list[str], message: str
) -> None:
    result = render(endpoint, "--output", tmp_path / "aws.yaml", *flags)
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    assert message in line
    assert not (tmp_path / "aws.yaml").exists()
