"""Delay all packets between a host and the others: a thread that forwards them later.

The kernel's own delay (netem) is a module that many machines lack. The host's cable moves to a bridge of its own, and
the thread copies packets between that bridge and the network's, through a TAP device on each.
"""

import fcntl
import os
import secrets
import select
import struct
import threading
import time
from collections import deque

from benchmarks.faults.cluster.hosts import Host, Network, run

# Of linux/if_tun.h; Python has no names for them.
TUNSETIFF, IFF_TAP, IFF_NO_PI = 0x400454CA, 0x0002, 0x1000
LARGEST_FRAME, QUEUED_FRAMES = 2**16, 20_000


class LinkDelay:
    """Delays packets from and to a host from its creation until `stop`, by this many seconds in each direction."""

    def __init__(self, network: Network, host: Host, seconds: float) -> None:
        self._network, self._host, self._seconds = network, host, seconds
        mark = secrets.token_hex(4)
        self._bridge = f"db{mark}"
        self._stop = threading.Event()
        run("ip", "link", "add", self._bridge, "type", "bridge")
        run("ip", "link", "set", self._bridge, "up")
        self._taps = [_open_tap(f"da{mark}", self._bridge), _open_tap(f"dc{mark}", network.bridge)]
        run("ip", "link", "set", host.link, "master", self._bridge)
        self._thread = threading.Thread(target=self._forward, name="link delay", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Connect the host directly again; the packets on their way are lost."""
        run("ip", "link", "set", self._host.link, "master", self._network.bridge)
        self._stop.set()
        self._thread.join()
        for tap in self._taps:
            os.close(tap)
        run("ip", "link", "delete", self._bridge)

    def _forward(self) -> None:
        other = dict(zip(self._taps, reversed(self._taps), strict=True))
        waiting: deque[tuple[float, int, bytes]] = deque()
        while not self._stop.is_set():
            wait = min(0.05, max(0.0, waiting[0][0] - time.monotonic())) if waiting else 0.05
            readable, _, _ = select.select(self._taps, [], [], wait)
            for tap in readable:
                waiting.append((time.monotonic() + self._seconds, other[tap], os.read(tap, LARGEST_FRAME)))
            while waiting and waiting[0][0] <= time.monotonic():
                _, tap, frame = waiting.popleft()
                os.write(tap, frame)


def _open_tap(name: str, bridge: str) -> int:
    tap = os.open("/dev/net/tun", os.O_RDWR)
    fcntl.ioctl(tap, TUNSETIFF, struct.pack("16sH22x", name.encode(), IFF_TAP | IFF_NO_PI))
    run("ip", "link", "set", name, "txqueuelen", QUEUED_FRAMES, "master", bridge, "up")
    return tap
