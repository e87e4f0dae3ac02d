"""An SSH tunnel to Ray's dashboard on the head node of a cluster."""

import os
import signal
import socket
import subprocess
import tempfile
import time
from contextlib import suppress
from typing import Any

from host_keys import CHECKED_SSH, changed_key, head_alias

SECONDS_BETWEEN_LOOKS = 0.2


class TunnelError(Exception):
    """The tunnel could not be opened; the message is the output of the command that should have opened it."""


class HostKeyError(Exception):
    """Another machine may be posing as the head node; the message is one line."""


class Tunnel:
    """The tunnel of `ray dashboard`, which reads addresses, keys, and ssh_proxy_command from the cluster file.

    If the network is lost, SSH ends it within 20 seconds, which also ends the connections through it.
    """

    def __init__(self, cluster_file: str, config: dict[str, Any]) -> None:
        self._cluster_file = cluster_file
        self._config = config
        self._process: subprocess.Popen[bytes] | None = None
        self._port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def open(self) -> None:
        """Open the tunnel, in place of any earlier one.

        Raises:
            TunnelError: if there is no way to the head node.
            HostKeyError: if the head node has another host key than before.
        """
        self.close()
        # Each time another one: SSH may hold a forwarded port for a while after the tunnel is closed.
        self._port = _free_port()
        command = ["ray", "dashboard", self._cluster_file, "--port", str(self._port)]
        environment = os.environ | {
            "PATH": f"{CHECKED_SSH}:{os.environ['PATH']}",
            "HOST_KEY_ALIAS": head_alias(self._config) or "",
        }
        with tempfile.TemporaryFile() as log:
            # In a session of its own, so that Ctrl-C does not end it first, and SSH does not ask for a passphrase.
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, env=environment
            )
            while not self._answers():
                if self._process.poll() is not None:
                    log.seek(0)
                    output = log.read().decode(errors="replace").strip()
                    if problem := changed_key(output):
                        raise HostKeyError(problem)
                    raise TunnelError(output)
                time.sleep(SECONDS_BETWEEN_LOOKS)

    def close(self) -> None:
        """Close the tunnel, if it is open."""
        if self._process:
            # The command may have ended while SSH has not.
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGTERM)
            self._process.wait()
            self._process = None

    def _answers(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self._port)) == 0


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
