import threading
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from sagemaker_entry.container import head
from sagemaker_entry.container.outcome import HOST_LOST, PACKAGES_MISSING, RAY_STOPPED, JobError, Verdict
from sagemaker_entry.container.verdicts import VerdictServer, ask

TOKEN = "a" * 64
# await_heartbeats uses no other part of an entry.
ENTRY: Any = SimpleNamespace(processes=SimpleNamespace(reap=lambda: None))


@pytest.fixture
def server() -> Iterator[VerdictServer]:
    server = VerdictServer("127.0.0.1", TOKEN, port=0)
    yield server
    server.close()


@pytest.mark.parametrize(
    ("code", "lines", "reason"),
    [
        (
            1,
            ["x", "Traceback (most recent call last):", '  File "a.py", line 1', "OSError: [Errno 28] full"],
            "OSError",
        ),
        (1, ["x", "error: the run folder s3://b/r has no metrics.csv"], "the run folder s3://b/r has no metrics.csv"),
        (-9, [], "the program that copies the results was killed by SIGKILL"),
        (None, [], "SIGTERM arrived"),
    ],
)
def test_reason_for_lost_results_starts_with_the_cause(code: int | None, lines: list[str], reason: str) -> None:
    outputs: Any = SimpleNamespace(code=code, last_lines=lambda: lines)
    assert head.describe_lost_results(outputs).startswith(reason)


def send_heartbeat(server: VerdictServer, failure: Verdict | None = None) -> None:
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


@pytest.mark.parametrize("code", [RAY_STOPPED, PACKAGES_MISSING])
def test_failed_host_is_blamed_for_the_failure(code: int, server: VerdictServer) -> None:
    send_heartbeat(server)
    threading.Timer(0.3, send_heartbeat, [server, Verdict(code, "algo-2 failed")]).start()
    with pytest.raises(JobError, match="algo-2 failed") as caught:
        head.await_heartbeats(ENTRY, server)
    assert caught.value.verdict.code == code
