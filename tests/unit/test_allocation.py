"""Memory that is asked for again and again, counted by the pages that the kernel has to give."""

import platform
import subprocess
import sys

import pytest

from command import ROOT

# 64 MB again and again, each freed before the next is taken; counted from the eleventh time on.
PROGRAM = """
import resource
import sys
import torch
from vgg_ddp.allocation import keep_freed_memory

if sys.argv[1] == "kept":
    keep_freed_memory()

def pages():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

for number in range(50):
    if number == 10:
        before = pages()
    torch.ones(2**24)
print((pages() - before) * resource.getpagesize() // 2**20)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc is told")
def test_memory_that_was_freed_is_used_again() -> None:
    megabytes = {}
    for kind in ("given back", "kept"):
        command = [sys.executable, "-c", PROGRAM, kind]
        result = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT / "ray_app", timeout=120)
        megabytes[kind] = int(result.stdout)
    assert megabytes["given back"] > 40 * 50
    assert megabytes["kept"] < 100
