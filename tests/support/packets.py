"""What crosses a network: counts how often given bytes appear in the packets on an interface of this machine."""

import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

# Of linux/if_ether.h, linux/if_packet.h, and asm/socket.h; Python has no names for them.
ETH_P_ALL = 0x0003
SOL_PACKET, PACKET_ADD_MEMBERSHIP, PACKET_STATISTICS, PACKET_MR_PROMISC = 263, 1, 6, 1
SO_RCVBUFFORCE = 33
BUFFER_BYTES = 512 * 2**20
# With segmentation offload, packets are up to 64 KiB.
LARGEST_PACKET = 2**17
# The class of the settings that Ray sends to the workers of a run.
CONTENT_OF_RAY = "TrainConfig"


@dataclass
class Seen:
    """What was seen so far.

    Attributes:
        counts: packets that contain these bytes.
        packets, size_bytes: all packets.
        lost: packets that came too fast.
    """

    counts: dict[bytes, int] = field(default_factory=dict)
    packets: int = 0
    size_bytes: int = 0
    lost: int = 0


@contextmanager
def capture(interface: str, *wanted: str) -> Iterator[Seen]:
    """Count packets with these texts; the counts are final after the block. Needs root."""
    seen = Seen({text.encode(): 0 for text in wanted})
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL)) as raw:
        raw.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, BUFFER_BYTES)
        raw.bind((interface, 0))
        # A bridge shows itself the packets between its ports only in promiscuous mode.
        member = struct.pack("IHH8s", socket.if_nametoindex(interface), PACKET_MR_PROMISC, 0, b"")
        raw.setsockopt(SOL_PACKET, PACKET_ADD_MEMBERSHIP, member)
        raw.settimeout(0.5)
        stop = threading.Event()
        thread = threading.Thread(target=_count, args=(raw, seen, stop), daemon=True)
        thread.start()
        try:
            yield seen
        finally:
            stop.set()
            thread.join()
            _, seen.lost = struct.unpack("II", raw.getsockopt(SOL_PACKET, PACKET_STATISTICS, 8))


def _count(raw: socket.socket, seen: Seen, stop: threading.Event) -> None:
    buffer = bytearray(LARGEST_PACKET)
    while not stop.is_set():
        try:
            size = raw.recv_into(buffer)
        except TimeoutError:
            continue
        seen.packets += 1
        seen.size_bytes += size
        for text in seen.counts:
            seen.counts[text] += buffer.find(text, 0, size) >= 0
