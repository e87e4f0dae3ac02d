"""Memory that is asked for again and again, counted by the pages that the kernel has to give."""

import os
import platform
import subprocess
import sys

import pytest

from command import ROOT
from vgg_ddp.allocation import ENVIRONMENT

# 128 MB again and again, each freed before the next is taken, in a thread; counted from the eleventh time on.
PROGRAM = """
import ctypes
import resource
import sys
import threading
import torch
from vgg_ddp.allocation import keep_freed_memory

PR_SET_THP_DISABLE = 41
# A huge page, which some systems give without being asked, would count as one.
ctypes.CDLL(None).prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0)
if sys.argv[1] == "kept":
    keep_freed_memory()

def pages():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def take():
    for number in range(50):
        if number == 10:
            before = pages()
        torch.ones(2**25)
    print((pages() - before) * resource.getpagesize() // 2**20)

thread = threading.Thread(target=take)
thread.start()
thread.join()
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc is told")
def test_memory_that_was_freed_is_used_again() -> None:
    megabytes = {}
    for kind in ("given back", "kept"):
        command = [sys.executable, "-c", PROGRAM, kind]
        environment = os.environ | (ENVIRONMENT if kind == "kept" else {})
        result = subprocess.run(
            command, env=environment, capture_output=True, text=True, check=True, cwd=ROOT / "ray_app", timeout=120
        )
        megabytes[kind] = int(result.stdout)
    assert megabytes["given back"] > 40 * 100
    assert megabytes["kept"] < 100
