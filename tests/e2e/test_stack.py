"""The stack of infra.yaml, deployed to a simulated AWS."""

from collections.abc import Iterator
from typing import Any

import pytest

from support.command import free_port
from support.fake_ec2 import IMAGE_PARAMETER, template
from support.s3_server import aws_server, client

pytestmark = pytest.mark.e2e

IMAGE = "ami-0123456789abcdef0"


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    with aws_server(free_port()) as url:
        client(url, "ssm").put_parameter(Name=IMAGE_PARAMETER, Value=IMAGE, Type="String")
        yield url


def deploy(endpoint: str, name: str, **parameters: str) -> None:
    vpc = client(endpoint, "ec2").describe_vpcs()["Vpcs"][0]["VpcId"]
    given = {"VpcId": vpc, "SshCidr": "203.0.113.7/32"} | parameters
    client(endpoint, "cloudformation").create_stack(
        StackName=name,
        TemplateBody=template(),
        Parameters=[{"ParameterKey": key, "ParameterValue": value} for key, value in given.items()],
        Capabilities=["CAPABILITY_IAM"],
    )


def resource(endpoint: str, stack: str, name: str) -> str:
    found = client(endpoint, "cloudformation").describe_stack_resources(StackName=stack)["StackResources"]
    # moto lists resources that it does not support without their names.
    return next(str(one["PhysicalResourceId"]) for one in found if one.get("LogicalResourceId") == name)


def templates(endpoint: str, stack: str) -> dict[str, dict[str, Any]]:
    """Data of the stack's launch templates, by name."""
    versions = client(endpoint, "ec2").describe_launch_template_versions(Versions=["$Latest"])["LaunchTemplateVersions"]
    data = {version["LaunchTemplateName"]: version["LaunchTemplateData"] for version in versions}
    return {name: values for name, values in data.items() if name.startswith(f"{stack}-")}


def ingress(endpoint: str, stack: str) -> list[tuple[str, int | None, list[str]]]:
    """Protocol, port, and networks of each rule for incoming traffic."""
    group_id = resource(endpoint, stack, "SecurityGroup")
    (group,) = client(endpoint, "ec2").describe_security_groups(GroupIds=[group_id])["SecurityGroups"]
    assert {pair["GroupId"] for rule in group["IpPermissions"] for pair in rule["UserIdGroupPairs"]} == {group_id}
    rules = group["IpPermissions"]
    return [(rule["IpProtocol"], rule.get("FromPort"), [part["CidrIp"] for part in rule["IpRanges"]]) for rule in rules]


def test_launch_templates_have_the_image_the_role_and_the_security_group_of_the_stack(endpoint: str) -> None:
    deploy(endpoint, "plain")
    found = templates(endpoint, "plain")
    assert set(found) == {"plain-head", "plain-worker"}
    for name, data in found.items():
        profile = "HeadProfile" if name.endswith("head") else "WorkerProfile"
        assert data["ImageId"] == IMAGE
        assert data["IamInstanceProfile"] == {"Name": resource(endpoint, "plain", profile)}
        assert data["SecurityGroupIds"] == [resource(endpoint, "plain", "SecurityGroup")]
    assert sorted(ingress(endpoint, "plain")) == [("-1", None, []), ("tcp", 22, ["203.0.113.7/32"])]


def test_efa_template_has_an_efa_interface_in_the_given_subnet(endpoint: str) -> None:
    subnet = client(endpoint, "ec2").describe_subnets()["Subnets"][0]["SubnetId"]
    deploy(endpoint, "fast", EfaSubnetId=subnet)
    data = templates(endpoint, "fast")["fast-efa"]
    (interface,) = data["NetworkInterfaces"]
    assert (interface["InterfaceType"], interface["SubnetId"]) == ("efa", subnet)
    assert interface["Groups"] == [resource(endpoint, "fast", "SecurityGroup")]
    assert "SecurityGroupIds" not in data


def test_without_ssh_no_port_is_open_and_the_head_can_use_session_manager(endpoint: str) -> None:
    deploy(endpoint, "closed", SshCidr="none")
    assert ingress(endpoint, "closed") == [("-1", None, [])]
    role = resource(endpoint, "closed", "HeadRole")
    assert "session-manager" in client(endpoint, "iam").list_role_policies(RoleName=role)["PolicyNames"]
