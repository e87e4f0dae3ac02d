"""How the C library keeps memory."""

import ctypes

# Of glibc's malloc.h.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
MAPPED_FROM_BYTES = 2**30
NEVER = -1
# To be set before a process starts. Ray trains in a thread, and what glibc keeps for threads holds 64 MB in one piece;
# larger maps would come from the kernel in every step. So it shares what it keeps for the main thread.
ENVIRONMENT = {"MALLOC_ARENA_MAX": "1"}


def keep_freed_memory() -> None:
    """Let this process keep what it frees: each training step asks for the same amounts again.

    Without it, glibc gives large maps back to the kernel, which then has to clear them page by page in every step. See
    https://man7.org/linux/man-pages/man3/mallopt.3.html. Other C libraries stay as they are.
    """
    library = ctypes.CDLL(None)
    if hasattr(library, "mallopt"):
        library.mallopt(M_MMAP_THRESHOLD, MAPPED_FROM_BYTES)
        library.mallopt(M_TRIM_THRESHOLD, NEVER)
