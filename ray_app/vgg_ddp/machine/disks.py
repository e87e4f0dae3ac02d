"""Find out whether a path is on a disk of this machine."""

import os
import re
from pathlib import Path

MOUNTS = Path("/proc/self/mounts")
# Where locks work, and no other machine writes. All others count as network file systems.
LOCAL_TYPES = {
    *("bcachefs", "btrfs", "ext2", "ext3", "ext4", "f2fs", "jfs", "reiserfs", "xfs", "zfs"),
    *("exfat", "fuseblk", "hfs", "hfsplus", "ntfs", "ntfs3", "vfat"),
    *("aufs", "ecryptfs", "fuse.fuse-overlayfs", "fuse.gocryptfs", "lxfs", "overlay", "wslfs"),
    *("ramfs", "rootfs", "tmpfs"),
}


def is_on_own_disk(path: str) -> bool:
    """Whether a path is on a file system of this machine alone, by its type; True if the types are unknown (macOS)."""
    try:
        mounts = [line.split() for line in MOUNTS.read_text().splitlines()]
    except OSError:
        return True
    target, found, kind = os.path.realpath(path), "", "ext4"
    for _, point, mounted, *_ in mounts:
        # Spaces, for example, are written as \040.
        folder = re.sub(r"\\(\d{3})", lambda code: chr(int(code[1], 8)), point).rstrip("/")
        # Of mounts at the same place, the last one is in use.
        if f"{target}/".startswith(f"{folder}/") and len(folder) >= len(found):
            found, kind = folder, mounted
    return kind in LOCAL_TYPES
