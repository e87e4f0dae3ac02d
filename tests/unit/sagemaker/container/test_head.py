import threading
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from sagemaker_entry.container import head
from sagemaker_entry.container.outcome import HOST_LOST, RAY_STOPPED, JobError
from sagemaker_entry.container.verdicts import VerdictServer, ask

TOKEN = "a" * 64
# await_heartbeats uses no other part of an entry.
ENTRY: Any = SimpleNamespace(processes=SimpleNamespace(reap=lambda: None))


@pytest.fixture
def server() -> Iterator[VerdictServer]:
    server = VerdictServer("127.0.0.1", TOKEN, port=0)
    yield server
    server.close()


def send_heartbeat(server: VerdictServer, failure: str = "") -> None:
    ask("127.0.0.1", TOKEN, "algo-2", False, failure, server.port)


def test_training_is_blamed_only_after_a_new_heartbeat_from_every_host(server: VerdictServer) -> None:
    send_heartbeat(server)
    threading.Timer(0.3, send_heartbeat, [server]).start()
    started = time.monotonic()
    head.await_heartbeats(ENTRY, server)
    assert 0.2 < time.monotonic() - started < 5


def test_silent_host_is_blamed_for_the_failure(server: VerdictServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head, "LOST_SECONDS", 0.5)
    send_heartbeat(server)
    with pytest.raises(JobError, match="algo-2 stopped responding") as caught:
        head.await_heartbeats(ENTRY, server)
    assert caught.value.verdict.code == HOST_LOST
    assert set(server.silent(0.5)) == {"algo-2"} and not server.silent(60)


def test_failed_host_is_blamed_for_the_failure(server: VerdictServer) -> None:
    send_heartbeat(server)
    threading.Timer(0.3, send_heartbeat, [server, "Ray stopped on algo-2"]).start()
    with pytest.raises(JobError, match="Ray stopped on algo-2") as caught:
        head.await_heartbeats(ENTRY, server)
    assert caught.value.verdict.code == RAY_STOPPED
