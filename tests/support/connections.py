"""Records where the Python processes of a command connect to."""

from pathlib import Path

# Python runs this file at start, also in processes that the command starts.
RECORDER = """
import os, sys

record = os.open(os.environ["CONNECTIONS"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)

def hook(event, arguments):
    if event in ("socket.connect", "socket.sendto", "socket.sendmsg"):
        os.write(record, f"{arguments[-1]!r}\\n".encode())
    elif event in ("socket.getaddrinfo", "socket.gethostbyname"):
        os.write(record, f"{arguments[:2]!r}\\n".encode())

sys.addaudithook(hook)
"""


class Connections:
    """The addresses and names that commands with this environment used.

    Attributes:
        environment: for the commands.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        (folder / "sitecustomize.py").write_text(RECORDER)
        self._record = folder / "record"
        self.environment = {"PYTHONPATH": str(folder), "CONNECTIONS": str(self._record)}

    def addresses(self) -> set[str]:
        """The addresses, as Python writes them. Fails if no command was recorded."""
        return set(self._record.read_text().splitlines())
