"""Tell whether two processes run the same code."""

import functools
import hashlib
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Self

PACKAGE = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Code:
    """A copy of this package.

    Attributes:
        folder: its path on `host`.
        digest: of the names and the content of its Python files.
    """

    host: str
    folder: str
    digest: str

    @classmethod
    @functools.cache
    def of_this_process(cls) -> Self:
        """The package at the time of the first call."""
        return cls(socket.gethostname(), str(PACKAGE), code_digest(PACKAGE))


def code_digest(folder: Path) -> str:
    """A digest of the names and the content of all Python files in a folder."""
    digest = hashlib.sha256()
    for file in sorted(folder.rglob("*.py")):
        name = file.relative_to(folder).as_posix()
        # Editors and file systems add hidden files, some of which are broken links.
        if file.is_file() and "/." not in f"/{name}":
            content = file.read_bytes()
            digest.update(f"{name} {len(content)}\n".encode(errors="surrogateescape") + content)
    return digest.hexdigest()[:16]
