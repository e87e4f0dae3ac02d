"""Output whose reader is gone is discarded."""

import os
import pty
import subprocess
import sys
from collections.abc import Callable

import pytest

from support.command import MAIN
from vgg_ddp.machine.stdout import DiscardingWriter

# Prints to a pipe; once the reader is gone, prints again, also from a child process, and exits with its own code.
PROGRAM = """
import subprocess, sys
from vgg_ddp.machine.stdout import outlive_readers

outlive_readers()
print("before", flush=True)
sys.stdin.readline()
print("after", flush=True)
print("after", file=sys.stderr)
subprocess.run([sys.executable, "-c", "print('child', flush=True)"], check=True)
print("left in the buffer")
sys.exit(7)
"""


@pytest.mark.parametrize("connect", [os.pipe, pty.openpty])
def test_writes_without_a_reader_are_discarded(connect: Callable[[], tuple[int, int]]) -> None:
    reader, writer = connect()
    with DiscardingWriter(writer, "w") as stream:
        assert stream.write(b"read") == 4
        assert os.read(reader, 100) == b"read"
        os.close(reader)
        assert [stream.write(b"lost"), stream.write(b"too")] == [4, 3]
        assert os.path.samestat(os.fstat(writer), os.stat(os.devnull))


def test_other_write_errors_are_raised() -> None:
    with DiscardingWriter("/dev/full", "w") as stream, pytest.raises(OSError, match="No space left"):
        stream.write(b"x")


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_program_and_its_child_continue_without_a_reader(unbuffered: str) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=os.environ | {"PYTHONPATH": str(MAIN.parent), "PYTHONUNBUFFERED": unbuffered},
        text=True,
    )
    assert process.stdin and process.stdout
    assert process.stdout.readline() == "before\n"
    process.stdout.close()
    process.stdin.close()
    assert process.wait(60) == 7
