"""The head's verdict for the other hosts, over TCP: they ask twice a second, which also tells the head that they live.

A request is one line of JSON, and so is the answer. Each carries an HMAC under the job's token, over a nonce of the
asking host: whoever does not know the token can neither ask nor answer.
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

from outcome import FAILURE_CHARACTERS, Verdict

PORT = 6380
SECONDS_TO_ANSWER = 5.0
LINE_BYTES = 65_536
# More of a reason than is shown in the end, and few enough for a line, however JSON escapes them.
CHARACTERS = 2 * FAILURE_CHARACTERS


@dataclass
class Sighting:
    """What the head last heard of another host.

    Attributes:
        at: when, on the monotonic clock.
        stopping: it was told by SageMaker to stop.
        failure: why it cannot go on, or empty.
        knows_verdict: it was given the verdict.
    """

    at: float
    stopping: bool = False
    failure: str = ""
    knows_verdict: bool = False


class VerdictServer:
    """Answers the other hosts, on the head's own address only."""

    def __init__(self, address: str, token: str, port: int = PORT) -> None:
        self.seen: dict[str, Sighting] = {}
        self._token = token
        self._verdict: Verdict | None = None
        self._server = socketserver.ThreadingTCPServer((address, port), self._handler())
        self._server.daemon_threads = True
        self.port: int = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, name="verdicts", daemon=True).start()

    def _handler(self) -> type[socketserver.StreamRequestHandler]:
        outer = self

        class Handler(socketserver.StreamRequestHandler):
            timeout = SECONDS_TO_ANSWER

            def handle(self) -> None:
                request = _open(outer._token, self.rfile.readline(LINE_BYTES))
                if request:
                    self.wfile.write(_seal(outer._token, outer._answer(request)))

        return Handler

    def _answer(self, request: dict[str, Any]) -> dict[str, Any]:
        verdict = self._verdict
        sighting = Sighting(time.monotonic(), request["stopping"], request["failure"], verdict is not None)
        self.seen[request["host"]] = sighting
        outcome = {"code": verdict.code, "reason": verdict.reason[:CHARACTERS]} if verdict else None
        return {"nonce": request["nonce"], "verdict": outcome}

    def silent(self, limit_seconds: float) -> dict[str, float]:
        """The hosts that were seen and then not heard of for longer than the limit, with the seconds since then."""
        now = time.monotonic()
        seconds = {name: now - sighting.at for name, sighting in list(self.seen.items())}
        return {name: silence for name, silence in seconds.items() if silence > limit_seconds}

    def publish(self, verdict: Verdict, hosts: set[str], seconds: float) -> set[str]:
        """Give the verdict to these hosts; those that did not ask for it in time are returned."""
        self._verdict = verdict
        deadline = time.monotonic() + seconds
        while True:
            waiting = {name for name in hosts if name not in self.seen or not self.seen[name].knows_verdict}
            if not waiting or time.monotonic() > deadline:
                return waiting
            time.sleep(0.1)

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def ask(address: str, token: str, host: str, stopping: bool, failure: str, port: int = PORT) -> Verdict | None:
    """Tell the head how this host is, and learn its verdict; None while there is none.

    Raises:
        OSError: if the head does not answer, or somebody else does.
    """
    nonce = secrets.token_hex(16)
    request = {"host": host, "nonce": nonce, "stopping": stopping, "failure": failure[:CHARACTERS]}
    with socket.create_connection((address, port), SECONDS_TO_ANSWER) as connection:
        connection.sendall(_seal(token, request))
        with connection.makefile("rb") as stream:
            answer = _open(token, stream.readline(LINE_BYTES))
    if not answer or answer.get("nonce") != nonce:
        raise ConnectionError(f"{address}:{port} did not prove that it is the head of this job")
    return Verdict(**answer["verdict"]) if answer["verdict"] else None


def _seal(token: str, message: dict[str, Any]) -> bytes:
    body = json.dumps(message)
    return json.dumps({"body": body, "mac": _mac(token, body)}).encode() + b"\n"


def _open(token: str, line: bytes) -> dict[str, Any] | None:
    """The message in a line, or None if it does not come from a host of this job."""
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
