"""Read what the fake CUDA counted: of this process while it runs, or of other processes from their files.

A counter is 248 bytes of name and a 64-bit value; the first empty name ends the list. Names start with:

- `kernel`, `copy`, `memset`, `graph`, `collective`: work put into a GPU's queue. Together they are `launches`. Copies
  name their direction and the host's memory, as `copy H2D pinned`.
- `sync`: the host waited for the GPU. Copies between the GPU and pageable memory are among them.
- `illegal during capture`: calls that fail while a graph is captured.
- `not emulated`: kernels that ran outside of an emulated operator, so that their results are wrong.
"""

import ctypes
import struct
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SLOT = struct.Struct("=248sq")


class Counts(Counter[str]):
    """Counters by name."""

    def starting_with(self, *prefixes: str) -> dict[str, int]:
        """The counters above zero whose names start with one of these."""
        return {name: value for name, value in self.items() if value and name.startswith(prefixes)}

    @property
    def launches(self) -> int:
        return self["launches"]

    @property
    def synchronizations(self) -> int:
        return sum(self.starting_with("sync ").values())


def parse(data: bytes) -> Counts:
    """Counters of one process."""
    counts = Counts()
    for name, value in SLOT.iter_unpack(data):
        text = name.rstrip(b"\0").decode()
        if not text:
            break
        counts[text] += value
    return counts


def read(folder: Path) -> dict[int, Counts]:
    """Counters of all processes that had FAKE_CUDA_COUNTS set to this folder, by process ID; also while they run."""
    return {int(file.name): parse(file.read_bytes()) for file in folder.iterdir()}


def total(folder: Path) -> Counts:
    """The sum over these processes."""
    sums = Counts()
    for counts in read(folder).values():
        sums.update(counts)
    return sums


def current() -> Counts:
    """Counters of this process, which runs on the fake CUDA."""
    library = ctypes.CDLL(None)
    library.fake_cuda_counts.restype = ctypes.c_void_p
    size = ctypes.c_size_t()
    address = library.fake_cuda_counts(ctypes.byref(size))
    return parse(ctypes.string_at(address, size.value))


@contextmanager
def counted() -> Iterator[Counts]:
    """Count what this process does within the block; the result is filled at its end."""
    result, before = Counts(), current()
    yield result
    after = current()
    result.update({name: after[name] - before[name] for name in after if after[name] != before[name]})
