"""Connections and servers without a network: a request is a line, and so is its answer."""

import io
from collections.abc import Callable
from typing import Any


class Connection:
    """The client's end of a connection: `exchange` returns the answer to a request."""

    def __init__(self, exchange: Callable[[bytes], bytes]) -> None:
        self._exchange, self._answer = exchange, b""

    def __enter__(self) -> "Connection":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def sendall(self, request: bytes) -> None:
        self._answer = self._exchange(request)

    def makefile(self, _mode: str) -> io.BytesIO:
        return io.BytesIO(self._answer)


class Server:
    """A server whose handlers answer at once; a host that ended has closed it."""

    def __init__(self, servers: "dict[str, Server]", address: tuple[str, int], handler: Any) -> None:
        self._servers, self.server_address, self._handler = servers, address, handler
        servers[address[0]] = self

    def serve_forever(self, _poll_seconds: float) -> None:
        pass

    def shutdown(self) -> None:
        pass

    def server_close(self) -> None:
        del self._servers[self.server_address[0]]

    def answer(self, request: bytes) -> bytes:
        connection = Request(request)
        self._handler(connection, ("", 0), self)
        return connection.answer


class Request:
    """The server's end of a connection."""

    def __init__(self, request: bytes) -> None:
        self._request, self.answer = request, b""

    def makefile(self, *_: Any) -> io.BytesIO:
        return io.BytesIO(self._request)

    def sendall(self, answer: bytes) -> None:
        self.answer += bytes(answer)

    def settimeout(self, _seconds: float) -> None:
        pass
