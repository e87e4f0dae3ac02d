"""How the cluster scripts reach machines over SSH: with the key, the agent, and the proxy of the cluster file."""

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

import machines
from host_keys import CHECKED_SSH, changed_key
from support.command import ROOT

pytestmark = pytest.mark.skipif(not shutil.which("ssh-add"), reason="needs openssh-client")
PASSPHRASE = "correct horse"


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A private key with a passphrase."""
    path = tmp_path_factory.mktemp("key") / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", PASSPHRASE, "-f", path], check=True)
    return path


@pytest.fixture
def agent(key: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A running ssh-agent that holds the key."""
    socket = tmp_path / "agent"
    process = subprocess.Popen(["ssh-agent", "-D", "-a", socket], stdout=subprocess.DEVNULL)
    ask = tmp_path / "ask"
    ask.write_text(f"#!/bin/sh\necho {PASSPHRASE}\n")
    ask.chmod(0o700)
    monkeypatch.setenv("SSH_AUTH_SOCK", str(socket))
    asking = os.environ | {"SSH_ASKPASS": str(ask), "SSH_ASKPASS_REQUIRE": "force"}
    # The agent may need a moment to listen.
    added = ["sh", "-c", 'for _ in 1 2 3 4 5 6 7 8 9; do ssh-add "$0" && exit; sleep 0.2; done; exit 1', str(key)]
    try:
        subprocess.run(added, env=asking, check=True, capture_output=True)
        yield
    finally:
        process.terminate()
        process.wait()


def cluster_file(folder: Path, **auth: str) -> str:
    file = folder / "cluster.yaml"
    config = {"cluster_name": "test", "provider": {"type": "local", "worker_ips": ["192.0.2.7"]}}
    file.write_text(yaml.safe_dump(config | {"auth": {"ssh_user": "root"} | auth}))
    return str(file)


def options(config: dict[str, Any]) -> dict[str, list[str]]:
    """What ssh itself understands of the command for a worker."""
    ssh, *arguments = machines.ssh_command(config, "192.0.2.7", "true")
    result = subprocess.run([ssh, "-G", *arguments], capture_output=True, text=True, check=True)
    found: dict[str, list[str]] = {}
    for line in result.stdout.splitlines():
        name, _, value = line.partition(" ")
        found.setdefault(name, []).append(value)
    return found


def test_proxy_command_and_key_of_the_cluster_file_are_used(key: Path, tmp_path: Path) -> None:
    proxy = "aws ssm start-session --target %h --parameters portNumber=%p"
    config = machines.read_cluster(cluster_file(tmp_path, ssh_private_key=str(key), ssh_proxy_command=proxy))
    found = options(config)
    assert found["proxycommand"] == [proxy]
    assert found["identityfile"] == [str(key)]
    assert (found["hostname"], found["user"], found["identitiesonly"]) == (["192.0.2.7"], ["root"], ["yes"])


def test_without_a_key_in_the_cluster_file_any_key_of_the_agent_is_tried(tmp_path: Path) -> None:
    found = options(machines.read_cluster(cluster_file(tmp_path)))
    assert found["identitiesonly"] == ["no"]
    assert "proxycommand" not in found


def test_host_keys_are_checked_whatever_rays_launcher_asks_for(tmp_path: Path) -> None:
    home = tmp_path / "a home"
    home.mkdir()
    unchecked = ["-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null"]
    unchecked += ["-o", "ControlMaster=auto", "-o", f"ControlPath={tmp_path}/%C", "192.0.2.7"]
    # As Ray does: the first ssh of the path.
    environment = os.environ | {"PATH": f"{CHECKED_SSH}:{os.environ['PATH']}", "HOME": str(home)}
    for alias in ("", "i-0123"):
        command = ["ssh", "-G", *unchecked]
        result = subprocess.run(command, env=environment | {"HOST_KEY_ALIAS": alias}, capture_output=True, text=True)
        found = dict(line.split(" ", 1) for line in result.stdout.splitlines())
        assert found["stricthostkeychecking"] == "accept-new"
        assert found["userknownhostsfile"] == f"{home}/.ssh/vgg-ddp_known_hosts {home}/.ssh/known_hosts"
        assert "controlpath" not in found
        assert (found["hostname"], found.get("hostkeyalias", "")) == ("192.0.2.7", alias)


def test_command_that_forgets_a_key_can_be_pasted() -> None:
    output = "Offending ED25519 key in /home/m e/known_hosts:3\nHost key for [::1]:2222 has changed and you have ..."
    command = "ssh-keygen -R '[::1]:2222' -f '/home/m e/known_hosts';"
    assert command in str(changed_key(output))
    assert changed_key("Connection refused") is None


@pytest.mark.parametrize("script", ["submit.sh", "down.sh"])
def test_passphrase_that_nothing_can_enter_is_reported_in_one_line(script: str, key: Path, tmp_path: Path) -> None:
    environment = os.environ | {"RAY_AUTH_TOKEN": "0" * 64, "SSH_AUTH_SOCK": "/nowhere"}
    command = [ROOT / "cluster" / script, cluster_file(tmp_path, ssh_private_key=str(key))]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert result.returncode == 2, result.stdout + result.stderr
    assert re.fullmatch(rf"{script}: error: {key} has a passphrase, .*: run ssh-add {key}\n", result.stderr), (
        result.stderr
    )


@pytest.mark.usefixtures("agent")
def test_passphrase_is_not_missing_if_an_agent_holds_the_key(key: Path, tmp_path: Path) -> None:
    machines.require_usable_key(machines.read_cluster(cluster_file(tmp_path, ssh_private_key=str(key))))


def test_file_that_is_no_cluster_file_is_reported_in_one_line(tmp_path: Path) -> None:
    file = tmp_path / "notes.yaml"
    for content in ("- a list\n", "cluster_name: x\n", "a: b: c\n", "\x00"):
        file.write_text(content)
        with pytest.raises(machines.ClusterFileError, match=r"notes.yaml: not a cluster file like local.yaml$"):
            machines.read_cluster(str(file))
