"""Output whose reader is gone is discarded."""

import io
import os
import pty
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from support.command import MAIN
from vgg_ddp.machine.stdout import DiscardingWriter, OutputLostError

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


def test_what_does_not_fit_on_a_full_disk_is_discarded_unless_it_is_the_result() -> None:
    with DiscardingWriter("/dev/full", "w") as stream:
        assert stream.write(b"lost") == 4
        # There may be space later.
        assert os.path.samestat(os.fstat(stream.fileno()), os.stat("/dev/full"))
        stream.is_result = True
        with pytest.raises(OutputLostError, match="No space left"):
            stream.write(b"x")


def test_write_waits_for_a_reader_in_non_blocking_mode() -> None:
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    content = b"x" * 200_000
    with DiscardingWriter(writer, "w") as stream, ThreadPoolExecutor(1) as pool, open(reader, "rb") as readable:
        received = pool.submit(readable.read, len(content))
        buffer = io.BufferedWriter(stream)
        buffer.write(content)
        buffer.flush()
        assert received.result(60) == content


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
