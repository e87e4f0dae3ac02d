"""What becomes of output that nobody reads any more."""

import os
import pty
import subprocess
import sys
from collections.abc import Callable

import pytest

from command import MAIN
from vgg_ddp.output import Outlet

# Prints to a pipe, then to no reader, by itself and by a child, and ends with a code of its own.
PROGRAM = """
import subprocess, sys
from vgg_ddp.output import outlive_readers

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
def test_what_is_written_without_a_reader_is_lost(connect: Callable[[], tuple[int, int]]) -> None:
    reader, writer = connect()
    with Outlet(writer, "w") as outlet:
        assert outlet.write(b"read") == 4
        assert os.read(reader, 100) == b"read"
        os.close(reader)
        assert [outlet.write(b"lost"), outlet.write(b"too")] == [4, 3]
        assert os.path.samestat(os.fstat(writer), os.stat(os.devnull))


def test_other_faults_are_told() -> None:
    with Outlet("/dev/full", "w") as outlet, pytest.raises(OSError, match="No space left"):
        outlet.write(b"x")


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_program_and_its_child_go_on_without_a_reader(unbuffered: str) -> None:
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
