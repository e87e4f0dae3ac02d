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
from contextlib import ExitStack

from benchmarks.faults.cluster.hosts import Host, Network, run

# Of linux/if_tun.h; Python has no names for them.
TUNSETIFF, IFF_TAP, IFF_NO_PI = 0x400454CA, 0x0002, 0x1000
LARGEST_FRAME, QUEUED_FRAMES = 2**16, 20_000


def delay_link(network: Network, host: Host, seconds: float, undo: ExitStack) -> None:
    """Delay packets from and to a host by this many seconds in each direction, until `undo` is closed.

    The packets on their way are then lost.
    """
    mark = secrets.token_hex(4)
    bridge = f"db{mark}"
    run("ip", "link", "add", bridge, "type", "bridge")
    undo.callback(run, "ip", "link", "delete", bridge)
    run("ip", "link", "set", bridge, "up")
    taps = [_open_tap(f"da{mark}", bridge, undo), _open_tap(f"dc{mark}", network.bridge, undo)]
    undo.callback(run, "ip", "link", "set", host.link, "master", network.bridge)
    run("ip", "link", "set", host.link, "master", bridge)
    ended = threading.Event()
    thread = threading.Thread(target=_forward, args=(taps, seconds, ended), name="link delay", daemon=True)
    thread.start()
    undo.callback(thread.join)
    undo.callback(ended.set)


def _forward(taps: list[int], seconds: float, ended: threading.Event) -> None:
    """Copy packets between two devices, each one late, until the event is set."""
    other = dict(zip(taps, reversed(taps), strict=True))
    waiting: deque[tuple[float, int, bytes]] = deque()
    while not ended.is_set():
        wait = min(0.05, max(0.0, waiting[0][0] - time.monotonic())) if waiting else 0.05
        readable, _, _ = select.select(taps, [], [], wait)
        for tap in readable:
            waiting.append((time.monotonic() + seconds, other[tap], os.read(tap, LARGEST_FRAME)))
        while waiting and waiting[0][0] <= time.monotonic():
            _, tap, frame = waiting.popleft()
            os.write(tap, frame)


def _open_tap(name: str, bridge: str, undo: ExitStack) -> int:
    tap = os.open("/dev/net/tun", os.O_RDWR)
    undo.callback(os.close, tap)
    fcntl.ioctl(tap, TUNSETIFF, struct.pack("16sH22x", name.encode(), IFF_TAP | IFF_NO_PI))
    run("ip", "link", "set", name, "txqueuelen", QUEUED_FRAMES, "master", bridge, "up")
    return tap
