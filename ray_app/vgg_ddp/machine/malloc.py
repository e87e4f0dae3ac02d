"""Tune glibc's malloc for training."""

import ctypes

# From glibc's malloc.h.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
MAPPED_FROM_BYTES = 2**30
NEVER = -1
# Must be set before a process starts. Ray trains in a thread, and glibc's per-thread arenas hold at most 64 MB: larger
# feature maps would be requested from the kernel in every step. With one arena, all threads use the main thread's.
ENVIRONMENT = {"MALLOC_ARENA_MAX": "1"}


def keep_freed_memory() -> None:
    """Make this process reuse freed memory, because every training step allocates the same sizes again.

    By default glibc returns large blocks to the kernel, which has to zero them page by page in every step. See
    https://man7.org/linux/man-pages/man3/mallopt.3.html. Has no effect with other C libraries.
    """
    library = ctypes.CDLL(None)
    if hasattr(library, "mallopt"):
        library.mallopt(M_MMAP_THRESHOLD, MAPPED_FROM_BYTES)
        library.mallopt(M_TRIM_THRESHOLD, NEVER)
