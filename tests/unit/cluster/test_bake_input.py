"""What bake.py accepts, and what it puts on the disk of an image."""

import base64
import io
import re
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest
import yaml

import bake
from support.cluster_files import AWS, CLUSTER
from support.command import ROOT

WITHOUT_TEMPLATE = AWS | {"head_node_type": "other", "available_node_types": {"other": {"node_config": {}}}}
OLD_TEMPLATE = {"node_config": {"LaunchTemplate": {"LaunchTemplateId": "lt-1"}, "InstanceType": "m7i.large"}}
WITHOUT_NAME = AWS | {"available_node_types": {"head": OLD_TEMPLATE}}
WITHOUT_FILES = AWS | {"file_mounts": {"~/x": "missing.txt"}}


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (None, "cluster.yaml: not a cluster file like local.yaml"),
        ((CLUSTER / "local.yaml").read_text(), "cluster.yaml: not a cluster file for AWS like aws.yaml"),
        (
            yaml.safe_dump(WITHOUT_TEMPLATE),
            "cluster.yaml: not a cluster file like aws.yaml: 'LaunchTemplate' is missing",
        ),
        (
            yaml.safe_dump(WITHOUT_NAME),
            "cluster.yaml: not a cluster file like aws.yaml: 'LaunchTemplateName' is missing",
        ),
        (
            yaml.safe_dump(AWS | {"file_mounts": {}, "setup_commands": None}),
            "cluster.yaml: not a cluster file like aws.yaml: Value after * must be an iterable, not NoneType",
        ),
        (yaml.safe_dump(WITHOUT_FILES), "file_mounts: [Errno 2] No such file or directory: 'missing.txt'"),
    ],
)
def test_unsuitable_file_is_refused_in_one_line_before_any_request(
    content: str | None, expected: str, tmp_path: Path
) -> None:
    if content:
        (tmp_path / "cluster.yaml").write_text(content)
    command = [sys.executable, str(CLUSTER / "bake.py"), "cluster.yaml"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert (result.returncode, result.stdout, result.stderr) == (2, "", f"bake.py: error: {expected}\n")


def packed(script: str) -> dict[str, bytes]:
    """The files in a script, by name."""
    found = re.search(r"<<'END' .*\n((?:[\w+/=]+\n)+)END\n", script)
    assert found
    with tarfile.open(fileobj=io.BytesIO(base64.b64decode(found[1]))) as archive:
        members = {member.name: archive.extractfile(member) for member in archive.getmembers()}
        return {name: file.read() for name, file in members.items() if file}


def test_image_gets_only_files_of_the_repository_and_no_commands_that_need_others(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(ROOT)
    (tmp_path / "key").write_text("secret")
    others = {"~/.aws/credentials": "~/.aws/credentials", "~/a": str(tmp_path / "key"), "~/b": "../key"}
    # With TLS, whose authority is a secret.
    config: dict[str, Any] = yaml.safe_load((CLUSTER / "aws.yaml").read_text().replace("# TLS: ", ""))
    config["file_mounts"] |= others
    config["setup_commands"] += [f"chmod 600 {remote}" for remote in others]
    script = bake.user_data(config)
    assert packed(script) == {
        "vgg-ddp-node/certificates.sh": (CLUSTER / "certificates.sh").read_bytes(),
        "vgg-ddp-node/requirements-train.txt": (ROOT / "requirements-train.txt").read_bytes(),
        "vgg-ddp-node/constraints.txt": (ROOT / "constraints.txt").read_bytes(),
        "vgg-ddp-node/spot_agent.py": (CLUSTER / "spot_agent.py").read_bytes(),
    }
    # Those of aws.yaml without TLS, and without the one for the token.
    assert script.count("bash -ic") == len(AWS["setup_commands"] + AWS["head_setup_commands"]) - 1
    assert not re.search(r"auth_token|\.ray/tls|chmod 600|\.aws", script)
    # EC2's limit, before the encoding.
    assert len(script) < 16384


def test_base_image_is_the_one_of_the_stack() -> None:
    assert f"Default: {bake.BASE_IMAGE}\n" in (CLUSTER / "infra.yaml").read_text()
