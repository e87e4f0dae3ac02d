"""The machines of a cluster file, and how SSH reaches them.

python cluster/machines.py check CLUSTER_FILE       exit code 2 and one line if they cannot be reached with its key
python cluster/machines.py stop-ray CLUSTER_FILE    stop Ray on the machines of a file like local.yaml
"""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from host_keys import CHECKED_SSH, changed_key

SSH = [str(CHECKED_SSH / "ssh"), "-n", "-o", "BatchMode=yes", "-o", "ConnectTimeout=10", "-o", "LogLevel=ERROR"]
STOP_RAY = "vgg-ddp/bin/ray stop --force"


class ClusterFileError(Exception):
    """A cluster file cannot be used; the message is one line."""


def read_cluster(cluster_file: str) -> dict[str, Any]:
    """The content of a cluster file.

    Raises:
        ClusterFileError: if it is none.
    """
    try:
        config = yaml.safe_load(Path(cluster_file).read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        config = None
    if not (isinstance(config, dict) and all(isinstance(config.get(key), dict) for key in ("provider", "auth"))):
        raise ClusterFileError(f"{cluster_file}: not a cluster file like local.yaml")
    return config


def private_key(config: dict[str, Any]) -> str | None:
    """The path of the key that the cluster file names; None if the choice is left to SSH, or if Ray creates one."""
    key = config["auth"].get("ssh_private_key")
    return os.path.expanduser(key) if key else None


def require_usable_key(config: dict[str, Any]) -> None:
    """Check that no passphrase is missing: without a terminal, SSH cannot ask for it.

    Raises:
        ClusterFileError: if the key has a passphrase, and no agent holds the key.
    """
    key = private_key(config)
    if not key or not _has_passphrase(key):
        return
    # For example: 256 SHA256:3hPF... comment (ED25519)
    fingerprint = (_run("ssh-keygen", "-l", "-f", key).stdout.split() or ["", ""])[1]
    if fingerprint not in _run("ssh-add", "-l").stdout.split():
        raise ClusterFileError(f"{key} has a passphrase, and no running ssh-agent holds this key: run ssh-add {key}")


def _has_passphrase(key: str) -> bool:
    answer = _run("ssh-keygen", "-y", "-P", "", "-f", key)
    return answer.returncode != 0 and "passphrase" in answer.stderr


def _run(*command: str) -> "subprocess.CompletedProcess[str]":
    # In English, whatever the user's language.
    environment = os.environ | {"LC_ALL": "C"}
    return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, env=environment)


def ssh_command(config: dict[str, Any], address: str, command: str) -> list[str]:
    """The arguments that run a command on a machine of the cluster.

    An agent is asked for the key that the file names, or, if it names none, for any key.
    """
    auth, key = config["auth"], private_key(config)
    identity = ["-o", "IdentitiesOnly=yes", "-i", key] if key else []
    proxy = ["-o", f"ProxyCommand={auth['ssh_proxy_command']}"] if auth.get("ssh_proxy_command") else []
    return [*SSH, *identity, *proxy, f"{auth['ssh_user']}@{address}", command]


def stop_ray(config: dict[str, Any]) -> bool:
    """Stop Ray on each machine of the file; whether that worked everywhere."""
    stopped = True
    provider = config["provider"]
    for address in filter(None, [provider.get("head_ip"), *(provider.get("worker_ips") or [])]):
        result = subprocess.run(ssh_command(config, address, STOP_RAY), stderr=subprocess.PIPE, text=True)
        if result.returncode:
            reason = changed_key(result.stderr) or (result.stderr.strip().splitlines() or ["ray stop failed"])[-1]
            print(f"down.sh: error: Ray may still be running on {address}: {reason}", file=sys.stderr)
            stopped = False
    return stopped


def main() -> int:
    action, cluster_file = sys.argv[1:]
    try:
        config = read_cluster(cluster_file)
        require_usable_key(config)
    except ClusterFileError as error:
        print(f"down.sh: error: {error}", file=sys.stderr)
        return 2
    return 0 if action == "check" or stop_ray(config) else 1


if __name__ == "__main__":
    sys.exit(main())
