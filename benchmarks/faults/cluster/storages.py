"""Faults of the storage: a full or read-only disk, an S3 that fails, damaged checkpoints."""

import os
import signal
from collections.abc import Callable

from benchmarks.faults.cluster.hosts import SHARED_BYTES, Host, run, wait_until
from benchmarks.faults.cluster.processes import send
from benchmarks.faults.cluster.s3_proxy import OUTDATED, Fault
from benchmarks.faults.cluster.scene import MANIFEST_FILE, STATE_FILE, Scene, Undo, checkpoints

SECONDS_TO_REMOUNT, SECONDS_TO_END = 10, 90
# Of the requests; the others succeed.
FAILING_SHARE = 0.7
WRITES = ("PUT", "POST")


def fill_disk(scene: Scene) -> Undo:
    """A fault: the disk of the run folder is full."""
    shared = scene.cluster.network.shared

    def shrink() -> bool:
        space = os.statvfs(shared)
        used_bytes = (space.f_blocks - space.f_bfree) * space.f_frsize
        try:
            run("mount", "-o", f"remount,size={max(used_bytes, 2**20)}", shared)
        except RuntimeError:
            # More has been written in the meantime.
            return False
        return True

    wait_until(shrink, SECONDS_TO_REMOUNT, interval_seconds=0.01)
    return lambda: run("mount", "-o", f"remount,size={SHARED_BYTES}", shared)


def make_read_only(scene: Scene) -> Undo:
    """A fault: all hosts but the head see the disk of the run folder as read-only."""
    shared = scene.cluster.network.shared

    def remount(host: Host, mode: str) -> bool:
        try:
            run(*host.enter("mount", "-o", f"remount,bind,{mode}", shared))
        except RuntimeError:
            # A file is open for writing.
            return False
        return True

    hosts = scene.cluster.hosts[1:]
    for host in hosts:
        wait_until(lambda host=host: remount(host, "ro"), SECONDS_TO_REMOUNT, interval_seconds=0.01)
    return lambda: [remount(host, "rw") for host in hosts]


def fail_requests(fault: Fault, only_writes: bool = False) -> Callable[[Scene], Undo]:
    """A fault: most requests to S3 fail like this."""

    def inject(scene: Scene) -> Undo:
        assert scene.proxy
        proxy, before, rng = scene.proxy, scene.proxy.choose, scene.rng

        def choose(method: str, path: str) -> Fault | None:
            is_meant = method in WRITES or not only_writes
            return fault if is_meant and rng.random() < FAILING_SHARE else before(method, path)

        proxy.choose = choose
        return lambda: setattr(proxy, "choose", before)

    return inject


def answer_old_listings(scene: Scene) -> Undo:
    """A fault: listings of S3 show what was there before the fault."""
    assert scene.proxy
    proxy, before = scene.proxy, scene.proxy.choose
    proxy.choose = lambda method, path: OUTDATED if "list-type=2" in path else before(method, path)
    return lambda: setattr(proxy, "choose", before)


def damage_checkpoint(truncate: bool) -> Callable[[Scene], Undo]:
    """A fault: the driver is killed, and then the newest checkpoint is damaged: a byte changes, or its end is lost."""

    def inject(scene: Scene) -> Undo:
        send("driver", signal.SIGKILL)(scene)

        def damage() -> None:
            scene.cluster.wait_until_clean(SECONDS_TO_END)
            names = checkpoints(scene.run)
            if not names:
                return
            name, file = names[-1], scene.rng.choice((STATE_FILE, MANIFEST_FILE))
            content = bytearray((scene.run / name).read(file))
            position = scene.rng.randrange(len(content))
            content[position] ^= 255
            (scene.run / name).write(file, bytes(content[:position] if truncate else content))
            scene.notes.append(f"{name}/{file}")

        return damage

    return inject
