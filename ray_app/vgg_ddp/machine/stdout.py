"""Keep running after the reader of standard output or error is gone."""

import errno
import io
import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer


# Errors of writing to a pipe or terminal whose reader is gone.
READER_GONE = (errno.EPIPE, errno.EIO)


class DiscardingWriter(io.FileIO):
    """A raw stream that discards writes once its reader is gone."""

    def write(self, data: "ReadableBuffer", /) -> int:
        try:
            return super().write(data)
        except OSError as error:
            if error.errno not in READER_GONE:
                raise
        nowhere = os.open(os.devnull, os.O_WRONLY)
        # Keeps the file descriptor, so that child processes also write to /dev/null.
        os.dup2(nowhere, self.fileno())
        os.close(nowhere)
        return super().write(data)


def outlive_readers() -> None:
    """Keep this process running when the reader of its output exits, such as `| head` or a killed `tee`."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if isinstance(stream, io.TextIOWrapper):
            stream.flush()
            writer = DiscardingWriter(stream.fileno(), "w", closefd=False)
            # With `python -u`, the text layer has no buffer below it.
            buffer = writer if stream.write_through else io.BufferedWriter(writer)
            replacement = io.TextIOWrapper(
                buffer, stream.encoding, stream.errors, None, stream.line_buffering, stream.write_through
            )
            setattr(sys, name, replacement)
