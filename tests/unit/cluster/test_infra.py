"""The stack of infra.yaml: launch templates, roles, network, and bucket."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from support.cluster_files import CLUSTER, INFRA, RESOURCES, TEMPLATES


def statements() -> list[dict[str, Any]]:
    """All statements that grant a permission to a role."""
    roles = [RESOURCES[name]["Properties"] for name in ("HeadRole", "WorkerRole")]
    documents = [policy["PolicyDocument"] for role in roles for policy in role.get("Policies", [])]
    documents += [RESOURCES[name]["Properties"]["PolicyDocument"] for name in ("BucketAccess", "SessionManagerAccess")]
    return [statement for document in documents for statement in document["Statement"]]


def test_template_passes_cfn_lint() -> None:
    command = [str(Path(sys.executable).with_name("cfn-lint")), str(CLUSTER / "infra.yaml")]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize("name", TEMPLATES)
def test_every_template_requires_imdsv2_and_has_encrypted_gp3_disks(name: str) -> None:
    node = RESOURCES[name]["Properties"]["LaunchTemplateData"]
    assert node["MetadataOptions"] == {
        "HttpEndpoint": "enabled",
        "HttpTokens": "required",
        "HttpPutResponseHopLimit": 1,
    }
    for disk in node["BlockDeviceMappings"]:
        assert (disk["Ebs"]["VolumeType"], disk["Ebs"]["Encrypted"]) == ("gp3", True)
        assert disk["Ebs"]["DeleteOnTermination"] is True
    assert node["InstanceInitiatedShutdownBehavior"] == "terminate"


def test_only_the_head_has_the_role_that_launches_instances() -> None:
    profiles = {
        name: RESOURCES[name]["Properties"]["LaunchTemplateData"]["IamInstanceProfile"]["Name"]["Ref"]
        for name in TEMPLATES
    }
    assert profiles == {
        "HeadTemplate": "HeadProfile",
        "WorkerTemplate": "WorkerProfile",
        "EfaTemplate": "WorkerProfile",
    }
    assert RESOURCES["WorkerRole"]["Properties"].get("Policies") is None
    assert RESOURCES["WorkerRole"]["Properties"]["ManagedPolicyArns"] == [{"Ref": "BucketAccess"}]


def test_only_ssh_from_one_network_is_allowed() -> None:
    assert "SecurityGroupIngress" not in RESOURCES["SecurityGroup"]["Properties"]
    rules = [name for name, resource in RESOURCES.items() if resource["Type"] == "AWS::EC2::SecurityGroupIngress"]
    assert rules == ["Ssh", "FromNodes"]
    ssh = RESOURCES["Ssh"]["Properties"]
    assert (ssh["FromPort"], ssh["ToPort"], ssh["CidrIp"]) == (22, 22, {"Ref": "SshCidr"})
    assert RESOURCES["FromNodes"]["Properties"]["SourceSecurityGroupId"] == {"Ref": "SecurityGroup"}
    pattern = INFRA["Parameters"]["SshCidr"]["AllowedPattern"]
    assert re.fullmatch(pattern, "203.0.113.7/32")
    assert re.fullmatch(pattern, "none")
    assert not re.fullmatch(pattern, "0.0.0.0/0")
    assert "Default" not in INFRA["Parameters"]["SshCidr"]


def test_roles_have_no_wildcard_actions_or_resources() -> None:
    for statement in statements():
        actions = statement["Action"]
        assert "*" not in "".join([actions] if isinstance(actions, str) else actions)
        if statement["Resource"] == "*":
            # AWS cannot restrict these to specific resources.
            assert statement["Sid"] in ("DescribeInstances", "SessionManager")
    for name in ("HeadRole", "WorkerRole"):
        assert RESOURCES[name]["Properties"]["ManagedPolicyArns"] == [{"Ref": "BucketAccess"}]


def test_head_can_only_change_instances_of_its_own_cluster() -> None:
    by_id = {statement["Sid"]: statement for statement in statements()}
    own = {"StringEquals": {"aws:ResourceTag/ray-cluster-name": {"Ref": "AWS::StackName"}}}
    assert by_id["OwnInstances"]["Condition"] == own
    assert all("Condition" in by_id[name] for name in ("LaunchWorkers", "LaunchWithEncryptedDisks", "TagAtLaunch"))
    assert by_id["PassWorkerRole"]["Resource"] == {"GetAtt": "WorkerRole.Arn"}


def test_bucket_is_encrypted_private_and_retained() -> None:
    bucket = RESOURCES["Bucket"]
    assert bucket["DeletionPolicy"] == "Retain"
    properties = bucket["Properties"]
    (rule,) = properties["BucketEncryption"]["ServerSideEncryptionConfiguration"]
    assert rule == {"ServerSideEncryptionByDefault": {"SSEAlgorithm": "AES256"}}
    assert set(properties["PublicAccessBlockConfiguration"].values()) == {True}
    assert properties["VersioningConfiguration"] == {"Status": "Enabled"}
    rules = {rule["Id"]: rule for rule in properties["LifecycleConfiguration"]["Rules"]}
    assert rules["expire-old-versions"]["NoncurrentVersionExpiration"] == {"NoncurrentDays": 30}
    actions = RESOURCES["BucketAccess"]["Properties"]["PolicyDocument"]["Statement"][1]["Action"]
    assert "s3:DeleteObjectVersion" not in actions
