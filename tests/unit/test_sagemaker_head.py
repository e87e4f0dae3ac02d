import threading
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

import head
from outcome import HOST_LOST, RAY_STOPPED, JobError
from verdicts import VerdictServer, ask

TOKEN = "a" * 64
# All of an entry that listening to the other hosts needs.
ENTRY: Any = SimpleNamespace(processes=SimpleNamespace(reap=lambda: None))


@pytest.fixture
def server() -> Iterator[VerdictServer]:
    server = VerdictServer("127.0.0.1", TOKEN, port=0)
    yield server
    server.close()


def tell(server: VerdictServer, failure: str = "") -> None:
    ask("127.0.0.1", TOKEN, "algo-2", False, failure, server.port)


def test_failure_of_the_training_is_taken_for_one_once_all_hosts_are_heard_again(server: VerdictServer) -> None:
    tell(server)
    threading.Timer(0.3, tell, [server]).start()
    started = time.monotonic()
    head.hear_from_all(ENTRY, server)
    assert 0.2 < time.monotonic() - started < 5


def test_silence_of_a_host_explains_the_failure(server: VerdictServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head, "LOST_SECONDS", 0.5)
    tell(server)
    with pytest.raises(JobError, match="algo-2 fell silent") as caught:
        head.hear_from_all(ENTRY, server)
    assert caught.value.verdict.code == HOST_LOST
    assert set(server.silent(0.5)) == {"algo-2"} and not server.silent(60)


def test_failure_of_a_host_explains_the_failure(server: VerdictServer) -> None:
    tell(server)
    threading.Timer(0.3, tell, [server, "Ray stopped on algo-2"]).start()
    with pytest.raises(JobError, match="Ray stopped on algo-2") as caught:
        head.hear_from_all(ENTRY, server)
    assert caught.value.verdict.code == RAY_STOPPED
