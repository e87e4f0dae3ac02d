"""Reuse of freed memory, measured by page faults."""

import os
import platform
import subprocess
import sys

import pytest

from support.command import ROOT
from vgg_ddp.machine.malloc import ENVIRONMENT

# Allocates 64 MB thirty times in a thread, freeing each block before the next; counts page faults after the first ten.
PROGRAM = """
import ctypes
import resource
import sys
import threading
import torch
from vgg_ddp.machine.malloc import keep_freed_memory

PR_SET_THP_DISABLE = 41
# A transparent huge page would count as a single fault.
ctypes.CDLL(None).prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0)
if sys.argv[1] == "kept":
    keep_freed_memory()

def pages():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def allocate():
    for number in range(30):
        if number == 10:
            before = pages()
        torch.ones(2**24)
    print((pages() - before) * resource.getpagesize() // 2**20)

thread = threading.Thread(target=allocate)
thread.start()
thread.join()
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is specific to glibc")
def test_freed_memory_is_reused() -> None:
    megabytes = {}
    for kind in ("returned", "kept"):
        command = [sys.executable, "-c", PROGRAM, kind]
        environment = os.environ | (ENVIRONMENT if kind == "kept" else {})
        result = subprocess.run(
            command, env=environment, capture_output=True, text=True, check=True, cwd=ROOT / "ray_app", timeout=120
        )
        megabytes[kind] = int(result.stdout)
    assert megabytes["returned"] > 20 * 50
    assert megabytes["kept"] < 50
