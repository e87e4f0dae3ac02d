"""A proxy that injects faults into S3: throttling, errors, stalls, dropped connections, cut uploads, old listings."""

import http.client
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

HOP_HEADERS = {"connection", "transfer-encoding", "content-length", "expect", "server", "date"}
CONDITIONS = ("If-Match", "If-None-Match")
THROTTLED = (503, "SlowDown")
BROKEN = (500, "InternalError")
FORBIDDEN = (403, "AccessDenied")
DROPPED = (0, "the connection is closed without a response")
STALLED = (0, "the connection stays open without a response")
CUT = (0, "the connection is closed in the middle of the request's body")
OUTDATED = (0, "a listing is answered as the last time; other requests are forwarded")
STALL_SECONDS = 30.0
Fault = tuple[int, str]
Chooser = Callable[[str, str], Fault | None]


class FaultProxy:
    """Which requests fail, and how.

    Attributes:
        choose: maps a request's method and path to a fault, or to None to forward the request.
        choosers: more such functions, which are asked first; faults come and go in any order.
        faults: the number of requests that failed.
        ignores_conditions: write objects unconditionally, as old storage does.
    """

    def __init__(self) -> None:
        self.choose: Chooser = lambda _method, _path: None
        self.choosers: list[Chooser] = []
        self.faults = 0
        self.ignores_conditions = False
        self.conditional_lock = threading.Lock()
        self.lock = threading.Lock()
        # The newest answer to each listing: status, headers, body.
        self.listings: dict[str, tuple[int, list[tuple[str, str]], bytes]] = {}

    def fault_of(self, method: str, path: str) -> Fault | None:
        """The fault of a request: the first one that is chosen."""
        choosers = [*self.choosers, self.choose]
        return next((fault for choose in choosers if (fault := choose(method, path))), None)


class FaultHandler(BaseHTTPRequestHandler):
    """Answers a request with the fault that the proxy chose, or forwards it."""

    proxy: FaultProxy
    host: str
    ended: threading.Event
    protocol_version = "HTTP/1.1"

    def handle_any(self) -> None:
        with self.proxy.lock:
            fault = self.proxy.fault_of(self.command, self.path)
            self.proxy.faults += fault is not None
        if fault == CUT:
            self.rfile.read(int(self.headers.get("Content-Length", 0)) // 2)
            self.close_connection = True
            return
        body = self.read_body()
        if fault == STALLED:
            self.ended.wait(STALL_SECONDS)
        if fault in (STALLED, DROPPED):
            self.close_connection = True
            return
        if fault == OUTDATED and self.path in self.proxy.listings:
            self.answer(*self.proxy.listings[self.path])
            return
        if fault and fault != OUTDATED:
            status, code = fault
            self.answer(status, [], f"<Error><Code>{code}</Code><Message>{code}</Message></Error>".encode())
            return
        # moto checks the condition of a write, then writes: another request could come in between.
        is_conditional = any(name in self.headers for name in CONDITIONS)
        with self.proxy.conditional_lock if is_conditional else nullcontext():
            self.forward(body)

    def forward(self, body: bytes) -> None:
        connection = http.client.HTTPConnection(self.host, timeout=60)
        forwarded = {name: value for name, value in self.headers.items() if name.lower() not in HOP_HEADERS}
        if self.proxy.ignores_conditions:
            forwarded = {name: value for name, value in forwarded.items() if name not in CONDITIONS}
        connection.request(self.command, self.path, body, forwarded)
        response = connection.getresponse()
        content = response.read()
        headers = [(name, value) for name, value in response.getheaders() if name.lower() not in HOP_HEADERS]
        length = response.getheader("Content-Length")
        if "list-type=2" in self.path:
            self.proxy.listings[self.path] = (response.status, headers, content)
        self.answer(response.status, headers, content, length)
        connection.close()

    def read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        chunks = []
        while size := int(self.rfile.readline(), 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def answer(self, status: int, headers: list[tuple[str, str]], body: bytes, length: str | None = None) -> None:
        self.send_response(status)
        for name, value in headers:
            self.send_header(name, value)
        # A response to HEAD states the length of the body that it omits.
        self.send_header("Content-Length", length if self.command == "HEAD" and length else str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = handle_any  # noqa: N815 - names from http.server

    def log_message(self, *_: object) -> None:
        """Print nothing."""


@contextmanager
def fault_proxy(upstream: str, address: str = "127.0.0.1") -> Iterator[tuple[FaultProxy, str]]:
    """Run a proxy in front of S3 on an address of this machine; yield it and its endpoint."""
    proxy = FaultProxy()
    ended = threading.Event()
    host = urlsplit(upstream).netloc
    handler = type("Handler", (FaultHandler,), {"proxy": proxy, "host": host, "ended": ended})
    server = ThreadingHTTPServer((address, 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield proxy, f"http://{address}:{server.server_port}"
    finally:
        ended.set()
        server.shutdown()
        server.server_close()
        thread.join()
