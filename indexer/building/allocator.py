"""The C library's allocator, set for a program that allocates the same large blocks again and again."""

from __future__ import annotations

import ctypes
import platform
from collections.abc import Iterator
from contextlib import contextmanager

# parameters of glibc's mallopt, and its own largest threshold (malloc.h; DEFAULT_MMAP_THRESHOLD_MAX)
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_LARGEST_THRESHOLD = 32 << 20
_NEVER = 2**31 - 1


@contextmanager
def freed_memory_kept(largest_block: int) -> Iterator[None]:
    """Within the block, freed memory stays with the process for the next allocation.

    largest_block: bytes of the largest array that the program allocates again and again.

    By itself glibc returns it to the system, which hands it out again page by page, zeroed: in a forward pass
    on the CPU, a tenth of the time or more. Afterwards the thresholds are those that glibc's own adaption
    reaches with such blocks: the block's size, and twice that. Does nothing where the C library is another.
    """
    if platform.libc_ver()[0] != "glibc":
        yield
        return
    mallopt = ctypes.CDLL(None).mallopt
    mallopt(_MMAP_THRESHOLD, _LARGEST_THRESHOLD)
    mallopt(_TRIM_THRESHOLD, _NEVER)
    try:
        yield
    finally:
        adapted = min(largest_block, _LARGEST_THRESHOLD)
        mallopt(_MMAP_THRESHOLD, adapted)
        mallopt(_TRIM_THRESHOLD, 2 * adapted)
        ctypes.CDLL(None).malloc_trim(0)
