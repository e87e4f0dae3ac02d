"""Disks of this machine are told from network file systems."""

from pathlib import Path

import pytest

from support.two_mounts import two_mounts
from vgg_ddp.machine import disks
from vgg_ddp.machine.disks import is_on_own_disk


def test_mount_by_fuse_is_not_a_disk_of_this_machine(tmp_path: Path) -> None:
    assert is_on_own_disk(str(tmp_path))
    with two_mounts(tmp_path) as (mount, _):
        assert not is_on_own_disk(str(mount / "runs" / "run"))
        (tmp_path / "link").symlink_to(mount)
        assert not is_on_own_disk(str(tmp_path / "link"))


@pytest.mark.parametrize(
    ("path", "is_own"),
    [("/srv/x", True), ("/my runs/x", False), ("/my runs/disk/x", True), ("/my", True), ("/over/x", False)],
)
def test_innermost_and_newest_mount_counts(
    path: str, is_own: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    mounts = tmp_path / "mounts"
    mounts.write_text(
        "/dev/vda / ext4 rw 0 0\nhost:/runs /my\\040runs nfs4 rw 0 0\n/dev/vdb /my\\040runs/disk xfs rw 0 0\n"
        "/dev/vdc /over ext4 rw 0 0\nhost:/x /over lustre rw 0 0\n"
    )
    monkeypatch.setattr(disks, "MOUNTS", mounts)
    assert is_on_own_disk(path) == is_own


def test_machine_that_does_not_list_its_mounts_counts_as_local(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(disks, "MOUNTS", tmp_path / "missing")
    assert is_on_own_disk("/srv")
