"""certificates.sh, and the lines of the cluster files that are marked TLS."""

import json
import os
import re
import shutil
import ssl
import subprocess
from pathlib import Path

import jsonschema
import pytest
import ray
import yaml

from support.cluster_files import CLUSTER

pytestmark = pytest.mark.skipif(not shutil.which("openssl"), reason="needs openssl")
SCHEMA = json.loads((Path(ray.__file__).parent / "autoscaler" / "ray-schema.json").read_text())
FILES = ["local.yaml", "aws.yaml"]


def run(home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = ["bash", CLUSTER / "certificates.sh", *arguments]
    return subprocess.run(command, env=os.environ | {"HOME": str(home)}, capture_output=True, text=True, timeout=60)


@pytest.fixture
def node(tmp_path: Path) -> Path:
    """The home of a node with a certificate."""
    for arguments in ((), ("node",)):
        result = run(tmp_path, *arguments)
        assert result.returncode == 0, result.stdout + result.stderr
    return tmp_path


def test_files_are_private_and_complete(node: Path) -> None:
    found = {str(path.relative_to(node / ".ray")): path.stat().st_mode & 0o777 for path in (node / ".ray").rglob("*")}
    files = {"tls/ca.key", "tls/ca.crt", "node-tls/node.key", "node-tls/node.crt", "node-tls/names"}
    assert found == {"tls": 0o700, "node-tls": 0o700} | dict.fromkeys(files, 0o600)


def test_certificate_is_of_the_authority_and_names_every_address_of_the_node(node: Path) -> None:
    authority, certificate = node / ".ray" / "tls" / "ca.crt", node / ".ray" / "node-tls" / "node.crt"
    addresses = subprocess.run(["hostname", "-I"], capture_output=True, text=True, check=True).stdout.split()
    for address in ["127.0.0.1", *addresses]:
        for purpose in ("sslserver", "sslclient"):
            check = ["openssl", "verify", "-CAfile", authority, "-purpose", purpose, "-verify_ip", address, certificate]
            assert subprocess.run(check, capture_output=True).returncode == 0, address
    other = ["openssl", "verify", "-CAfile", authority, "-verify_ip", "192.0.2.99", certificate]
    assert subprocess.run(other, capture_output=True).returncode != 0
    # Raises if the key does not fit.
    ssl.create_default_context().load_cert_chain(certificate, certificate.with_suffix(".key"))


def test_certificate_is_made_again_only_if_it_does_not_fit(node: Path) -> None:
    certificate, names = node / ".ray" / "node-tls" / "node.crt", node / ".ray" / "node-tls" / "names"
    before = certificate.read_text()
    assert run(node, "node").returncode == 0
    assert certificate.read_text() == before
    names.write_text(names.read_text().replace("127.0.0.1", "127.0.0.2"))
    assert run(node, "node").returncode == 0
    with_new_name = certificate.read_text()
    assert with_new_name != before
    shutil.rmtree(node / ".ray" / "tls")
    assert run(node).returncode == 0
    assert run(node, "node").returncode == 0
    assert certificate.read_text() != with_new_name


def test_authority_is_made_once(node: Path) -> None:
    key = node / ".ray" / "tls" / "ca.key"
    before = key.read_text()
    result = run(node)
    assert (result.returncode, result.stdout) == (0, f"There is an authority in {node}/.ray/tls already.\n")
    assert key.read_text() == before


def test_node_without_an_authority_is_an_error_of_one_line(tmp_path: Path) -> None:
    result = run(tmp_path, "node")
    assert result.returncode == 2
    assert re.fullmatch(r"certificates.sh: error: there is no \S+/.ray/tls on this node: run .*\n", result.stderr)


@pytest.mark.parametrize("name", FILES)
def test_uncommented_lines_match_the_schema_and_turn_tls_on_and_off(name: str, node: Path) -> None:
    text = (CLUSTER / name).read_text()
    off, on = yaml.safe_load(text), yaml.safe_load(text.replace("# TLS: ", ""))
    jsonschema.validate(on, SCHEMA)
    mounts = {"~/.ray/tls": "~/.ray/tls", "~/vgg-ddp-node/certificates.sh": "cluster/certificates.sh"}
    assert on == off | {
        "file_mounts": off["file_mounts"] | mounts,
        "setup_commands": [
            *off["setup_commands"],
            "chmod -R go-rwx ~/.ray/tls; bash ~/vgg-ddp-node/certificates.sh node",
        ],
    }
    (node / "vgg-ddp-node").mkdir()
    shutil.copy(CLUSTER / "certificates.sh", node / "vgg-ddp-node")
    for config, expected in ((on, "1"), (on, "1"), (off, "")):
        for command in config["setup_commands"]:
            if ".bashrc" in command or "certificates" in command:
                subprocess.run(["bash", "-c", command], env=os.environ | {"HOME": str(node)}, check=True)
        show = '. ~/.bashrc; echo "$RAY_USE_TLS"; cat "$RAY_TLS_CA_CERT" "$RAY_TLS_SERVER_CERT" "$RAY_TLS_SERVER_KEY"'
        shown = subprocess.run(["bash", "-c", show], env={"HOME": str(node)}, capture_output=True, text=True).stdout
        value, *content = shown.splitlines()
        assert value == expected
        assert bool(content) == bool(expected)
