"""Standard output and error that outlive their reader."""

import errno
import io
import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

# What a write meets where a pipe or a terminal is gone.
GONE = (errno.EPIPE, errno.EIO)


class Outlet(io.FileIO):
    """A file descriptor that takes what is written to it; once nobody can read that any more, it is lost."""

    def write(self, data: "ReadableBuffer", /) -> int:
        try:
            return super().write(data)
        except OSError as error:
            if error.errno not in GONE:
                raise
        nowhere = os.open(os.devnull, os.O_WRONLY)
        # Under the same number, so that child processes write there, too.
        os.dup2(nowhere, self.fileno())
        os.close(nowhere)
        return super().write(data)


def outlive_readers() -> None:
    """Let this process go on when what it prints is read no more: as in `| head`, or after `tee` was killed."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if isinstance(stream, io.TextIOWrapper):
            stream.flush()
            outlet = Outlet(stream.fileno(), "w", closefd=False)
            # Python without buffers (`python -u`) has none below the text either.
            buffer = outlet if stream.write_through else io.BufferedWriter(outlet)
            replacement = io.TextIOWrapper(
                buffer, stream.encoding, stream.errors, None, stream.line_buffering, stream.write_through
            )
            setattr(sys, name, replacement)
