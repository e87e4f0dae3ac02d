import json
import socket
import threading
from collections.abc import Iterator

import pytest

from sagemaker_entry.container.outcome import FAILURE_CHARACTERS, Verdict
from sagemaker_entry.container.verdicts import VerdictServer, ask

TOKEN = "a" * 64


@pytest.fixture
def server() -> Iterator[VerdictServer]:
    server = VerdictServer("127.0.0.1", TOKEN, port=0)
    yield server
    server.close()


def ask_server(
    server: VerdictServer, host: str = "algo-2", stopping: bool = False, failure: Verdict | None = None
) -> Verdict | None:
    return ask("127.0.0.1", TOKEN, host, stopping, failure, server.port)


def test_host_receives_the_verdict_after_it_is_published(server: VerdictServer) -> None:
    assert ask_server(server) is None
    assert server.publish(Verdict(1, "boom"), {"algo-2"}, seconds=0) == {"algo-2"}
    assert ask_server(server) == Verdict(1, "boom")
    assert server.publish(Verdict(1, "boom"), {"algo-2"}, seconds=0) == set()


def test_long_reasons_are_truncated(server: VerdictServer) -> None:
    reason = 'a "quoted" \\ line of Ärger\n' * 2000
    ask_server(server, failure=Verdict(11, reason))
    failure = server.heartbeats["algo-2"].failure
    assert failure and reason.startswith(failure.reason) and len(failure.reason) > FAILURE_CHARACTERS
    server.publish(Verdict(1, reason), {"algo-2"}, seconds=0)
    verdict = ask_server(server)
    assert verdict and verdict.code == 1
    assert reason.startswith(verdict.reason) and len(verdict.reason) > FAILURE_CHARACTERS


def test_head_sees_the_state_of_other_hosts(server: VerdictServer) -> None:
    ask_server(server, "algo-2", stopping=True)
    ask_server(server, "algo-3", failure=Verdict(11, "Ray stopped"))
    assert server.heartbeats["algo-2"].stopping and not server.heartbeats["algo-3"].stopping
    assert server.heartbeats["algo-3"].failure == Verdict(11, "Ray stopped")


def test_request_without_the_token_is_ignored(server: VerdictServer) -> None:
    with pytest.raises(ConnectionError):
        ask("127.0.0.1", "b" * 64, "algo-2", False, None, server.port)
    assert server.heartbeats == {}


@pytest.mark.parametrize("line", [b"\n", b"GET / HTTP/1.1\r\n", b"{}\n", b'{"body": 1, "mac": 2}\n', b"\xff\xfe\n"])
def test_malformed_request_gets_no_answer(server: VerdictServer, line: bytes) -> None:
    with socket.create_connection(("127.0.0.1", server.port), 5) as connection:
        connection.sendall(line)
        assert connection.recv(100) == b""
    assert ask_server(server) is None


def test_answer_without_the_token_is_rejected() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        listener.settimeout(5)

        def answer() -> None:
            connection, _ = listener.accept()
            connection.recv(1000)
            body = json.dumps({"nonce": "x", "verdict": {"code": 0, "reason": ""}})
            connection.sendall(json.dumps({"body": body, "mac": "0" * 64}).encode() + b"\n")
            connection.close()

        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises(ConnectionError, match="did not prove"):
            ask("127.0.0.1", TOKEN, "algo-2", False, None, port)
        thread.join()
