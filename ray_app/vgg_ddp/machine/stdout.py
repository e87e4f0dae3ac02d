"""Keep running when standard output or error cannot be written: closed, without a reader, or full."""

import errno
import io
import os
import select
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer


# Errors of writing to a pipe or terminal whose reader is gone.
READER_GONE = (errno.EPIPE, errno.EIO)
STANDARD_STREAMS = {0: "stdin", 1: "stdout", 2: "stderr"}


class OutputLostError(OSError):
    """Standard output cannot be written, although it is the script's result."""


class DiscardingWriter(io.FileIO):
    """A raw stream that discards what cannot be written: forever once its reader is gone, otherwise only that write.

    Attributes:
        is_result: raise `OutputLostError` instead, except if the reader is gone.
    """

    is_result = False

    def write(self, data: "ReadableBuffer", /) -> int:
        try:
            # None if the terminal or pipe is in non-blocking mode, as some programs leave it, and full.
            while (written := super().write(data)) is None:
                select.select([], [self], [])
            return written
        except OSError as error:
            if error.errno not in READER_GONE:
                if self.is_result:
                    raise OutputLostError(error.errno, error.strerror) from error
                # For example a full disk, which may have space again later.
                return memoryview(data).nbytes
        nowhere = os.open(os.devnull, os.O_WRONLY)
        # Keeps the file descriptor, so that child processes also write to /dev/null.
        os.dup2(nowhere, self.fileno())
        os.close(nowhere)
        return super().write(data)


def outlive_readers(output_is_result: bool = False) -> None:
    """Keep this process running when its output cannot be written.

    - The reader exits, such as `| head` or a killed `tee`; or the stream was closed at start (`>&-`).
    - The disk is full. If the output is the result of the script, this raises `OutputLostError` for standard output.
    - The encoding lacks a character: it is written as an escape sequence, as Python does on standard error.
    """
    _open_closed_streams()
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if isinstance(stream, io.TextIOWrapper):
            stream.flush()
            writer = DiscardingWriter(stream.fileno(), "w", closefd=False)
            writer.is_result = output_is_result and name == "stdout"
            # With `python -u`, the text layer has no buffer below it.
            buffer = writer if stream.write_through else io.BufferedWriter(writer)
            replacement = io.TextIOWrapper(
                buffer, stream.encoding, "backslashreplace", None, stream.line_buffering, stream.write_through
            )
            setattr(sys, name, replacement)


def _open_closed_streams() -> None:
    """Connect closed standard streams to /dev/null; otherwise, the next file that is opened would take their place."""
    for descriptor, name in STANDARD_STREAMS.items():
        try:
            os.fstat(descriptor)
        except OSError:
            # The lowest free number, so this one.
            os.open(os.devnull, os.O_RDWR)
            os.set_inheritable(descriptor, True)
        if getattr(sys, name) is None:
            file = io.FileIO(descriptor, "r" if name == "stdin" else "w", closefd=False)
            buffer = io.BufferedReader(file) if name == "stdin" else io.BufferedWriter(file)
            setattr(sys, name, io.TextIOWrapper(buffer, "utf-8"))
