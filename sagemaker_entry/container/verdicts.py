"""Delivers the head's verdict to the other hosts over TCP. They poll twice a second, which doubles as their heartbeat.

A request and its answer are one line of JSON each, signed with an HMAC keyed with the job's token. The answer repeats
the request's nonce. Without the token, a process can neither ask nor answer.
"""

import hmac
import json
import secrets
import socket
import socketserver
import threading
import time
from dataclasses import dataclass
from typing import Any

from sagemaker_entry.container.outcome import FAILURE_CHARACTERS, Verdict

PORT = 6380
ANSWER_SECONDS = 5.0
LINE_BYTES = 65_536
# More than SageMaker shows of a reason, and within LINE_BYTES even if JSON escapes every character.
MAX_REASON_CHARACTERS = 2 * FAILURE_CHARACTERS


@dataclass
class Heartbeat:
    """The last request of another host.

    Attributes:
        at: when it arrived, on the monotonic clock.
        stopping: whether the host received SIGTERM.
        failure: why the host cannot continue, or None.
        knows_verdict: whether the answer contained the verdict.
    """

    at: float
    stopping: bool = False
    failure: Verdict | None = None
    knows_verdict: bool = False


class VerdictServer:
    """Answers the other hosts. Listens only on the head's address in the job's network."""

    def __init__(self, address: str, token: str, port: int = PORT) -> None:
        self.heartbeats: dict[str, Heartbeat] = {}
        self._token = token
        self._verdict: Verdict | None = None
        self._server = socketserver.ThreadingTCPServer((address, port), self._handler())
        self._server.daemon_threads = True
        self.port: int = self._server.server_address[1]
        # Polls every 0.1 s, so close() takes no longer than that.
        threading.Thread(target=self._server.serve_forever, args=[0.1], name="verdicts", daemon=True).start()

    def _handler(self) -> type[socketserver.StreamRequestHandler]:
        outer = self

        class Handler(socketserver.StreamRequestHandler):
            timeout = ANSWER_SECONDS

            def handle(self) -> None:
                request = _open(outer._token, self.rfile.readline(LINE_BYTES))
                if request:
                    self.wfile.write(_seal(outer._token, outer._answer(request)))

        return Handler

    def _answer(self, request: dict[str, Any]) -> dict[str, Any]:
        verdict = self._verdict
        failure = _unpack(request["failure"])
        heartbeat = Heartbeat(time.monotonic(), request["stopping"], failure, verdict is not None)
        self.heartbeats[request["host"]] = heartbeat
        return {"nonce": request["nonce"], "verdict": _pack(verdict)}

    def silent(self, limit_seconds: float) -> dict[str, float]:
        """Hosts whose last heartbeat is older than the limit, with its age in seconds."""
        now = time.monotonic()
        ages = {name: now - heartbeat.at for name, heartbeat in list(self.heartbeats.items())}
        return {name: age for name, age in ages.items() if age > limit_seconds}

    def publish(self, verdict: Verdict, hosts: set[str], seconds: float) -> set[str]:
        """Publish the verdict, wait for these hosts to fetch it, and return those that did not in time."""
        self._verdict = verdict
        deadline = time.monotonic() + seconds
        while True:
            informed = {name for name, heartbeat in list(self.heartbeats.items()) if heartbeat.knows_verdict}
            if hosts <= informed or time.monotonic() > deadline:
                return hosts - informed
            time.sleep(0.1)

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def ask(
    address: str, token: str, host: str, stopping: bool, failure: Verdict | None, port: int = PORT
) -> Verdict | None:
    """Report this host's state to the head, and return the head's verdict, or None if there is none yet.

    Raises:
        OSError: if the head does not answer, or the answer is not signed with the job's token.
    """
    nonce = secrets.token_hex(16)
    request = {"host": host, "nonce": nonce, "stopping": stopping, "failure": _pack(failure)}
    with socket.create_connection((address, port), ANSWER_SECONDS) as connection:
        connection.sendall(_seal(token, request))
        with connection.makefile("rb") as stream:
            answer = _open(token, stream.readline(LINE_BYTES))
    if not answer or answer.get("nonce") != nonce:
        raise ConnectionError(f"{address}:{port} did not prove that it is the head of this job")
    return _unpack(answer["verdict"])


def _pack(verdict: Verdict | None) -> dict[str, Any] | None:
    return {"code": verdict.code, "reason": verdict.reason[:MAX_REASON_CHARACTERS]} if verdict else None


def _unpack(fields: dict[str, Any] | None) -> Verdict | None:
    return Verdict(**fields) if fields else None


def _seal(token: str, message: dict[str, Any]) -> bytes:
    body = json.dumps(message)
    return json.dumps({"body": body, "mac": _mac(token, body)}).encode() + b"\n"


def _open(token: str, line: bytes) -> dict[str, Any] | None:
    """The message in a line, or None if no host of this job sent the line."""
    try:
        envelope = json.loads(line)
        if not hmac.compare_digest(envelope["mac"], _mac(token, envelope["body"])):
            return None
        message: dict[str, Any] = json.loads(envelope["body"])
    except (ValueError, KeyError, TypeError):
        return None
    return message


def _mac(token: str, body: str) -> str:
    return hmac.digest(token.encode(), body.encode(), "sha256").hex()
