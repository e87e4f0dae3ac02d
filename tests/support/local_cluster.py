"""local.yaml on simulated machines reached by SSH, without and with TLS between the nodes."""

import secrets
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import yaml

from support import ssh_hosts
from support.command import ROOT, STATE_TRACKING, wait_until
from support.launcher import Laptop

LOCAL = ROOT / "cluster" / "local.yaml"
CERTIFICATES = ROOT / "cluster" / "certificates.sh"


@contextmanager
def machines(count: int) -> Iterator[tuple[ssh_hosts.Network, Laptop]]:
    """Hosts, and a laptop whose copy of local.yaml lists them."""
    with ssh_hosts.network() as network, tempfile.TemporaryDirectory(prefix="vgg-") as home:
        ips = [f"{network.prefix}.{11 + number}" for number in range(count)]
        for number, ip in enumerate(ips):
            # Unlike other simulated clusters: a test reads the list of runs.
            network.boot(f"m{number}", ip, environment={STATE_TRACKING: "1"})
        config = yaml.safe_load(LOCAL.read_text())
        config["cluster_name"] = f"test-{secrets.token_hex(4)}"
        config["provider"] |= {"head_ip": ips[0], "worker_ips": ips[1:]}
        config["auth"] = {"ssh_user": "root", "ssh_private_key": str(network.private_key)}
        yield network, Laptop.make(Path(home), config)


def up(network: ssh_hosts.Network, laptop: Laptop) -> None:
    """Run `ray up`, and wait until all nodes have joined."""
    laptop.up()
    wait_until(lambda: all(host.ray_processes() for host in network.hosts.values()))
    wait_until(lambda: alive(laptop) == len(network.hosts))


def alive(laptop: Laptop) -> int:
    """How many nodes the cluster has; 0 if its head does not answer."""
    count = (
        'python -c \'import ray; ray.init(address="auto", logging_level=40); '
        'print("ALIVE", sum(node["Alive"] for node in ray.nodes()))\''
    )
    _, found, number = laptop.exec(count).partition("ALIVE ")
    return int(number.split()[0]) if found else 0


def turn_on_tls(laptop: Laptop) -> None:
    """Make the certificates, and uncomment the lines marked TLS in the laptop's copy of the cluster file."""
    made = laptop.run(CERTIFICATES)
    assert made.returncode == 0, made.stdout
    config = yaml.safe_load(laptop.cluster_file.read_text())
    uncommented = yaml.safe_load(LOCAL.read_text().replace("# TLS: ", ""))
    config["file_mounts"] = uncommented["file_mounts"] | config["file_mounts"]
    config["setup_commands"] = uncommented["setup_commands"]
    laptop.cluster_file.write_text(yaml.safe_dump(config))
