"""A lease on S3 is kept, lost, and given back, against moto's server."""

import pickle
import shutil
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.faults.cluster.s3_proxy import BROKEN, THROTTLED, FaultProxy, fault_proxy
from support.command import free_port
from support.run_writer import SECONDS
from support.s3_server import BUCKET, CREDENTIALS, client, s3_server, uri_of
from vgg_ddp.config import TrainConfig
from vgg_ddp.flags import UsageError
from vgg_ddp.run import checkpoint, conditional, lease
from vgg_ddp.run.conditional import ConflictError
from vgg_ddp.run.lease import LEASE_FILE, HeldError, Lease, LeaseLostError
from vgg_ddp.run.lock import locked
from vgg_ddp.run.notes import print_note_once
from vgg_ddp.run.runs import Run, open_run
from vgg_ddp.run.saver import Saver
from vgg_ddp.run.storage import Folder
from vgg_ddp.run.versions import VersionedFile

LOST = "another command has taken over run run, because this one had stopped renewing its lease"


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with s3_server(free_port()) as url:
        yield url


@pytest.fixture
def proxied(server: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[tuple[FaultProxy, str]]:
    """A proxy in front of S3, and the URI of a storage folder that is reached through it."""
    for name, value in (CREDENTIALS | SECONDS).items():
        if isinstance(value, str):
            monkeypatch.setenv(name, value)
        else:
            monkeypatch.setattr(lease, name, value)
    monkeypatch.setattr(conditional, "ATTEMPTS", 2)
    with fault_proxy(server) as (proxy, url):
        yield proxy, uri_of(url, tmp_path.name)


def at(uri: str) -> Run:
    return open_run(TrainConfig(run_name="run", storage_path=uri), [])


def object_of(server: str, tmp_path: Path, name: str) -> bytes:
    key = f"{tmp_path.name}/run/{name}"
    content: bytes = client(server).get_object(Bucket=BUCKET, Key=key)["Body"].read()
    return content


def test_damaged_lease_is_replaced_once_nobody_changes_it(
    server: str, tmp_path: Path, proxied: tuple[FaultProxy, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, uri = proxied
    monkeypatch.setattr(lease, "LEASE_SECONDS", 0.5)
    client(server).put_object(Bucket=BUCKET, Key=f"{tmp_path.name}/run/{LEASE_FILE}", Body=b'{"owner": 1')
    started = time.monotonic()
    with locked(at(uri)):
        assert time.monotonic() - started > 0.5


class OutdatedStore:
    """Shows a lease as it was, like a network file system with a cache, although its holder renews it."""

    path = "lease"

    def __init__(self) -> None:
        self.writes = 0

    def read(self) -> tuple[bytes, str]:
        return b'{"owner": "another"}', str(self.writes)

    def replace(self, _content: bytes, _etag: str | None) -> str:
        self.writes += 1
        raise ConflictError

    def require_conditions(self) -> None:
        raise AssertionError


def test_lease_that_was_renewed_unseen_is_held(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "LEASE_SECONDS", 0.2)
    monkeypatch.setattr(lease, "SECONDS_BETWEEN_LOOKS", 0.05)
    store = OutdatedStore()
    with pytest.raises(HeldError):
        Lease(store, "run").acquire()
    assert store.writes == 1


def test_storage_that_always_reports_a_conflict_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "SECONDS_BETWEEN_LOOKS", 0.01)
    store = OutdatedStore()
    monkeypatch.setattr(store, "read", lambda: None)
    with pytest.raises(OSError, match="lease keeps changing"):
        Lease(store, "run").acquire()
    assert store.writes == lease.ATTEMPTS


def test_failed_renewals_delay_writes_but_do_not_lose_the_lease(
    server: str, tmp_path: Path, proxied: tuple[FaultProxy, str]
) -> None:
    proxy, uri = proxied
    with locked(at(uri)) as run:
        held = run.folder.lease
        assert held
        held._update()
        until = time.monotonic() + SECONDS["SECONDS_TO_WRITE"] / 2
        proxy.choose = lambda _, path: THROTTLED if LEASE_FILE in path else None
        while time.monotonic() < until:
            run.folder.write("file", b"old")
            time.sleep(0.1)
        proxy.choose = lambda _, path: BROKEN if LEASE_FILE in path else None
        time.sleep(SECONDS["SECONDS_TO_WRITE"])
        with pytest.raises(OSError, match="InternalError"):
            run.folder.write("file", b"new")
        assert object_of(server, tmp_path, "file") == b"old"
        proxy.choose = lambda _method, _path: None
        run.folder.write("file", b"new")
        assert object_of(server, tmp_path, "file") == b"new" and held.lost is None


def test_rank_zero_keeps_the_lease_while_the_driver_is_frozen_and_a_restarted_one_takes_its_place(
    proxied: tuple[FaultProxy, str],
) -> None:
    _, uri = proxied
    with locked(at(uri)) as run:
        driver = run.folder.lease
        assert driver
        first, second = (pickle.loads(pickle.dumps(run.folder)) for _ in range(2))
        # As if they were other processes.
        first.lease._identity, second.lease._identity = "elsewhere/1", "elsewhere/2"
        first.lease.join()
        # As if the driver were frozen: it does not renew anymore.
        driver._ended.set()
        with pytest.raises(UsageError, match="already running"), locked(at(uri)):
            pass
        first.write("file", b"first")
        run.folder.write("file", b"driver")
        first.lease._ended.set()
        second.lease.join()
        second.write("file", b"second")
        time.sleep(SECONDS["SECONDS_TO_WRITE"])
        with pytest.raises(LeaseLostError, match="another worker of run run has taken the place of this one"):
            first.write("file", b"first")
        assert second.read("file") == b"second" and not driver.lost
        second.lease.leave()


def test_saver_reports_that_the_lease_is_lost_without_further_attempts(proxied: tuple[FaultProxy, str]) -> None:
    _, uri = proxied
    with locked(at(uri)) as run:
        saver = Saver(run.folder, 0)
        assert run.folder.lease and saver.failure is None
        run.folder.lease.lost = LOST
        started = time.monotonic()
        saver.write_reliably(lambda: run.folder.write("file", b""))
        assert saver.failure == LOST and time.monotonic() - started < 1
        assert not run.folder.exists("file")


def test_storage_that_ignores_conditions_is_noted_and_used_without_a_lease(
    proxied: tuple[FaultProxy, str], capsys: pytest.CaptureFixture[str]
) -> None:
    proxy, uri = proxied
    proxy.ignores_conditions = True
    print_note_once.cache_clear()
    for _ in range(2):
        with locked(at(uri)) as run:
            assert run.folder.lease is None
    assert capsys.readouterr().err == (
        "NOTE: nothing prevents other commands from using run run at the same time: this storage ignores the "
        "conditions If-None-Match and If-Match.\n"
    )


def test_machine_without_boto3_is_noted(
    proxied: tuple[FaultProxy, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("boto3", "botocore"):
        monkeypatch.setitem(sys.modules, name, None)
    print_note_once.cache_clear()
    with locked(at(proxied[1])) as run:
        assert run.folder.lease is None
    assert capsys.readouterr().err.endswith("at the same time: boto3 is not installed.\n")


def test_folder_whose_lease_was_deleted_is_not_changed(tmp_path: Path) -> None:
    held = Lease(VersionedFile(str(tmp_path / "lease")), "run")
    held.acquire()
    folder = replace(Folder.at(str(tmp_path)), lease=held)
    folder.write("old", b"content")
    shutil.rmtree(tmp_path / "lease")
    # As if it had not been renewed for a while.
    held._renewed_at = float("-inf")
    changes = (
        lambda: folder.write("new", b""),
        lambda: folder.create("new", b""),
        lambda: folder.overwrite("old", b""),
        lambda: folder.delete("old"),
        lambda: checkpoint.write(folder, checkpoint.new_name(1), {"step": 1}),
    )
    for change in changes:
        with pytest.raises(LeaseLostError, match=f"the lease on run run, {tmp_path}/lease, was deleted"):
            change()
    assert folder.names() == ["old"] and folder.read("old") == b"content"
