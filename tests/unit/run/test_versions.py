"""Of several processes, one creates the next version of a file."""

import errno
import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from support.two_mounts import two_mounts
from vgg_ddp.run import versions
from vgg_ddp.run.conditional import ConflictError, UnsupportedError
from vgg_ddp.run.versions import KEEP, VersionedFile


@pytest.fixture
def file(tmp_path: Path) -> VersionedFile:
    return VersionedFile(str(tmp_path / "file"))


def test_version_is_replaced_by_one_that_knows_it(file: VersionedFile) -> None:
    assert file.read() is None
    first = file.replace(b"first", None)
    assert file.read() == (b"first", first)
    second = file.replace(b"second", first)
    file.require_conditions()
    for etag in (None, first):
        with pytest.raises(ConflictError):
            file.replace(b"late", etag)
    assert file.read() == (b"second", second)


def test_old_versions_and_remains_of_killed_processes_are_deleted(file: VersionedFile, tmp_path: Path) -> None:
    etag = file.replace(b"0", None)
    (tmp_path / "file" / "2.0123abcd.tmp").touch()
    for number in range(KEEP + 1):
        etag = file.replace(str(number).encode(), etag)
    assert sorted(map(int, os.listdir(file.path))) == list(range(3, KEEP + 3))


def test_version_that_came_and_went_long_ago_cannot_be_created_again(file: VersionedFile) -> None:
    first = etag = file.replace(b"0", None)
    for _ in range(2 * KEEP):
        etag = file.replace(b"new", etag)
    for known in (None, first):
        with pytest.raises(ConflictError):
            file.replace(b"late", known)
    assert file.read() == (b"new", etag) and len(os.listdir(file.path)) == KEEP


def test_process_that_is_frozen_before_its_link_cannot_create_an_old_version(
    file: VersionedFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = file.replace(b"0", None)
    link = os.link

    def link_late(source: str, target: str) -> None:
        monkeypatch.setattr(os, "link", link)
        etag = first
        for _ in range(2 * KEEP):
            etag = file.replace(b"new", etag)
        link(source, target)

    monkeypatch.setattr(os, "link", link_late)
    with pytest.raises(ConflictError):
        file.replace(b"late", first)
    assert file.read() == (b"new", str(2 * KEEP + 1)) and len(os.listdir(file.path)) == KEEP


def test_processes_that_replace_it_at_the_same_time_do_not_undo_each_other(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    # A thread that pauses while others write many versions would be refused, although it was first.
    monkeypatch.setattr(versions, "KEEP", 1000)

    def count(mount: Path) -> None:
        file, added = VersionedFile(str(mount / "file")), 0
        while added < 25:
            content, etag = file.read() or (b"0", None)
            with suppress(ConflictError):
                file.replace(str(int(content) + 1).encode(), etag)
                added += 1

    with two_mounts(tmp_path) as mounts, ThreadPoolExecutor() as pool:
        for counted in [pool.submit(count, mount) for mount in mounts * 2]:
            counted.result()
        assert VersionedFile(str(mounts[0] / "file")).read() == (b"100", "100")


def test_link_that_nfs_reports_as_existing_although_it_was_created_counts(
    file: VersionedFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = os.link

    def link_twice(source: str, target: str) -> None:
        link(source, target)
        link(source, target)

    monkeypatch.setattr(os, "link", link_twice)
    assert file.replace(b"first", None) == "1"


def test_file_system_without_hard_links_is_refused(file: VersionedFile, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(source: str, target: str) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM), source, None, target)

    monkeypatch.setattr(os, "link", fail)
    with pytest.raises(UnsupportedError, match="not support hard links"):
        file.replace(b"first", None)
    assert os.listdir(file.path) == []
