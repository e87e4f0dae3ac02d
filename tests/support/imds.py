"""An instance metadata service, version 2, that serves the files of a folder: python imds.py HOST PORT FOLDER.

The file `latest/meta-data/spot/instance-action` in the folder is the response at that path. Requests without a token
from this server are rejected, as with HttpTokens: required.
"""

import http.server
import secrets
import sys
from pathlib import Path

INTERRUPTION = "latest/meta-data/spot/instance-action"


class Server(http.server.ThreadingHTTPServer):
    """Listens once it is created; `serve_forever` answers."""

    daemon_threads = True

    def __init__(self, host: str, port: int, folder: Path) -> None:
        super().__init__((host, port), Handler)
        self.folder = folder
        self.tokens: set[str] = set()
        # Statuses of the next responses, for any request; 0 closes the connection without a response.
        self.failures: list[int] = []


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's names
        """Print nothing; the base class writes to stderr."""

    def do_PUT(self) -> None:
        if self._inject_failure():
            return
        if self.path != "/latest/api/token" or not self.headers.get("X-aws-ec2-metadata-token-ttl-seconds"):
            self._answer(400)
            return
        token = secrets.token_hex(16)
        self.server.tokens.add(token)
        self._answer(200, token.encode())

    def do_GET(self) -> None:
        if self._inject_failure():
            return
        file = self.server.folder / self.path.strip("/")
        if self.headers.get("X-aws-ec2-metadata-token") not in self.server.tokens:
            self._answer(401)
        elif file.is_file():
            self._answer(200, file.read_bytes())
        elif file.is_dir():
            self._answer(200, "\n".join(sorted(path.name for path in file.iterdir())).encode())
        else:
            self._answer(404)

    def _inject_failure(self) -> bool:
        if not self.server.failures:
            return False
        status = self.server.failures.pop(0)
        if status:
            self._answer(status)
        else:
            self.close_connection = True
        return True

    def _answer(self, status: int, body: bytes = b"") -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


if __name__ == "__main__":
    Server(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])).serve_forever()
