"""Faults of the storage: a full or read-only disk, an S3 that fails, damaged checkpoints."""

import os
import signal
from collections.abc import Callable
from functools import partial

from benchmarks.faults.cluster.hosts import SHARED_BYTES, Host, run, wait_until
from benchmarks.faults.cluster.processes import send
from benchmarks.faults.cluster.s3_proxy import OUTDATED, Chooser, Fault
from benchmarks.faults.cluster.scene import NotInjected, Scene, checkpoints
from vgg_ddp.run.files import MODEL_FILE
from vgg_ddp.run.storage import MANIFEST_FILE, STATE_FILE

SECONDS_TO_REMOUNT, SECONDS_TO_END = 10, 90
# Of the requests; the others succeed.
FAILING_SHARE = 0.7
WRITES = ("PUT", "POST")


def fill_disk(scene: Scene) -> None:
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

    scene.undo.callback(run, "mount", "-o", f"remount,size={SHARED_BYTES}", shared)
    if not wait_until(shrink, SECONDS_TO_REMOUNT, interval_seconds=0.01):
        raise NotInjected("the disk could not be filled")


def make_read_only(scene: Scene) -> None:
    """A fault: all hosts but the head see the disk of the run folder as read-only."""
    shared = scene.cluster.network.shared

    def remount(host: Host, mode: str) -> None:
        run(*host.enter("mount", "-o", f"remount,bind,{mode}", shared))

    def is_read_only(host: Host) -> bool:
        try:
            remount(host, "ro")
        except RuntimeError:
            # A file is open for writing.
            return False
        return True

    for host in scene.cluster.hosts[1:]:
        scene.undo.callback(remount, host, "rw")
        if not wait_until(partial(is_read_only, host), SECONDS_TO_REMOUNT, interval_seconds=0.01):
            raise NotInjected(f"the disk of {host.name} could not be made read-only")


def fail_requests(fault: Fault, only_writes: bool = False) -> Callable[[Scene], None]:
    """A fault: most requests to S3 fail like this."""

    def inject(scene: Scene) -> None:
        def choose(method: str, _path: str) -> Fault | None:
            is_meant = method in WRITES or not only_writes
            return fault if is_meant and scene.rng.random() < FAILING_SHARE else None

        _add(scene, choose)

    return inject


def answer_old_listings(scene: Scene) -> None:
    """A fault: listings of S3 show what was there before the fault."""
    _add(scene, lambda _method, path: OUTDATED if "list-type=2" in path else None)


def _add(scene: Scene, choose: Chooser) -> None:
    assert scene.proxy
    scene.proxy.choosers.append(choose)
    scene.undo.callback(scene.proxy.choosers.remove, choose)


def damage_checkpoint(truncate: bool) -> Callable[[Scene], None]:
    """A fault: the driver is killed, and then the newest checkpoint is damaged: a byte changes, or its end is lost."""

    def inject(scene: Scene) -> None:
        def damage() -> None:
            if remaining := scene.cluster.wait_until_clean(SECONDS_TO_END, may_idle=True):
                raise NotInjected(f"processes of the run remained: {remaining}")
            if scene.run.exists(MODEL_FILE):
                raise NotInjected("the run had finished before its processes ended")
            names = checkpoints(scene.run)
            if not names:
                raise NotInjected("there was no checkpoint to damage")
            name, file = names[-1], scene.rng.choice((STATE_FILE, MANIFEST_FILE))
            content = bytearray((scene.run / name).read(file))
            position = scene.rng.randrange(len(content))
            content[position] ^= 255
            (scene.run / name).write(file, bytes(content[:position] if truncate else content))
            scene.notes.append(f"{name}/{file}")

        send("driver", signal.SIGKILL)(scene)
        scene.undo.callback(damage)

    return inject
