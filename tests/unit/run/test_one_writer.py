"""Of all commands, one writes to a run: real processes, on S3 and on two machines' mounts of a network file system."""

import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from benchmarks.faults.cluster.s3_proxy import fault_proxy
from support.command import free_port, wait_until
from support.run_writer import SECONDS, freeze, printed, writer
from support.s3_server import BUCKET, CREDENTIALS, client, s3_server, uri_of
from support.two_mounts import two_mounts
from vgg_ddp.config import TrainConfig
from vgg_ddp.run.lock import locked
from vgg_ddp.run.runs import open_run

LOST = "another command has taken over run run, because this one had stopped renewing its lease"


@dataclass
class Places:
    """A storage folder as two commands reach it, and the files of the run in it."""

    one: str
    other: str
    files: Callable[[], dict[str, object]]


@pytest.fixture(params=["s3", "disk"])
def places(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Places]:
    if request.param == "disk":
        with two_mounts(tmp_path) as (one, other):
            yield Places(str(one), str(other), lambda: _files_on_disk(tmp_path / "stored" / "run"))
        return
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    # The proxy makes moto's conditional writes atomic.
    with s3_server(free_port()) as server, fault_proxy(server) as (_, url):
        yield Places(uri_of(url, "runs"), uri_of(url, "runs"), lambda: _files_on_s3(server))


def _files_on_disk(run: Path) -> dict[str, object]:
    return {path.name: path.read_bytes() for path in run.iterdir() if path.is_file()}


def _files_on_s3(server: str) -> dict[str, object]:
    found = client(server).list_objects_v2(Bucket=BUCKET, Prefix="runs/run/")["Contents"]
    return {item["Key"].rpartition("/")[2]: (item["ETag"], item["LastModified"]) for item in found}


def test_only_one_command_at_a_time_writes_even_if_they_start_together_wake_late_or_are_killed(
    places: Places, capsys: pytest.CaptureFixture[str]
) -> None:
    with writer("one", places.one) as one, writer("other", places.other) as other:
        wait_until(lambda: one.poll() is not None or other.poll() is not None)
        loser, winner, name = (one, other, "other") if one.poll() is not None else (other, one, "one")
        assert loser.returncode == 2
        output, _ = loser.communicate()
        assert output.startswith("Waiting:   up to 2 s, because run run may still be running")
        assert output.endswith("is already running: wait for it to finish, or use another --run-name.\n")
        # Nobody replaces it while it is frozen: it continues.
        freeze(winner)
        time.sleep(SECONDS["LEASE_SECONDS"])
        winner.send_signal(signal.SIGCONT)
        assert [printed(winner) for _ in range(3)] == ["written"] * 3
        freeze(winner)
        started = time.monotonic()
        with writer("third", places.other if name == "one" else places.one) as third:
            assert printed(third).startswith("Waiting:") and printed(third) == "written"
            assert time.monotonic() - started > SECONDS["LEASE_SECONDS"]
            before = places.files()[name]
            winner.send_signal(signal.SIGCONT)
            output, _ = winner.communicate(timeout=30)
            assert winner.returncode == 3 and LOST in output
            assert printed(third) == "written"
            assert places.files()[name] == before
            third.kill()
            third.wait()
            # On the same machine, everyone can see that it has ended.
            capsys.readouterr()
            for _ in range(2):
                with locked(open_run(TrainConfig(run_name="run", storage_path=places.one), [])) as run:
                    run.folder.write("fourth", b"")
            assert capsys.readouterr().out == ""
