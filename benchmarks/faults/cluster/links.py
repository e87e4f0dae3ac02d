"""Faults of a host's link: partitions, lost packets, latency, little bandwidth."""

import secrets
import subprocess
from collections.abc import Callable

from benchmarks.faults.cluster.hosts import Host, run
from benchmarks.faults.cluster.link_delay import delay_link
from benchmarks.faults.cluster.scene import Scene

RULES = """table inet {name} {{
  chain in {{ type filter hook input priority 0; {input} }}
  chain out {{ type filter hook output priority 0; {output} }}
}}"""
LOST_PERCENT = 30
# In each direction, so that an answer takes twice as long.
DELAY_SECONDS = 1.0
RATE = "1mbit"


def choose_host(scene: Scene) -> Host:
    host = scene.rng.choice(scene.cluster.hosts)
    scene.notes.append(host.name)
    return host


def drop(incoming: bool, outgoing: bool, percent: int = 100) -> Callable[[Scene], None]:
    """A fault: packets to or from a host are lost."""

    def inject(scene: Scene) -> None:
        host, name = choose_host(scene), f"chaos{secrets.token_hex(3)}"
        some = "drop;" if percent == 100 else f"numgen random mod 100 < {percent} drop;"
        rules = RULES.format(
            name=name,
            input=f'iifname "eth0" {some}' if incoming else "",
            output=f'oifname "eth0" {some}' if outgoing else "",
        )
        nft = ["ip", "netns", "exec", host.namespace, "nft"]
        subprocess.run([*nft, "-f", "-"], input=rules, text=True, check=True, capture_output=True)
        scene.undo.callback(run, *nft, "delete", "table", "inet", name)

    return inject


def delay(scene: Scene) -> None:
    """A fault: packets to and from a host arrive late."""
    delay_link(scene.cluster.network, choose_host(scene), DELAY_SECONDS, scene.undo)


def slow_down(scene: Scene) -> None:
    """A fault: a host's link has little bandwidth in both directions."""
    host = choose_host(scene)
    ends = (["tc", "-n", host.namespace, "qdisc"], "eth0"), (["tc", "qdisc"], host.link)
    for tc, device in ends:
        run(*tc, "replace", "dev", device, "root", "tbf", "rate", RATE, "burst", "16kb", "latency", "1s")
        scene.undo.callback(run, *tc, "delete", "dev", device, "root")
