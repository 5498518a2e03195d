"""One setting of the C allocator for everything that is measured.

By default glibc gives large blocks back to the kernel when they are freed and fetches them anew, page fault by page
fault, in every forward pass: on CPU that can cost a fifth of the time, and more or less of it depending on what the
process did before. Here memory once fetched is kept, for the network and its baseline alike.
"""

from __future__ import annotations

import ctypes
import functools
import sys

KEEP_BYTES = 1 << 30
"""Blocks up to this size come from the heap, and so much may lie free at its end."""
FALLBACK_BYTES = 32 << 20
"""The largest threshold that older releases of glibc accept."""

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


def keep_freed_memory() -> str:
    """Make the allocator of this process keep freed memory; says what is in force, for the conditions.

    The same is reached for a process as a whole by `MALLOC_MMAP_THRESHOLD_` and `MALLOC_TRIM_THRESHOLD_` in its
    environment.
    """
    library = _glibc()
    if library is None:
        return "platform default"
    accepted = next((n for n in (KEEP_BYTES, FALLBACK_BYTES) if library.mallopt(_M_MMAP_THRESHOLD, n)), 0)
    library.mallopt(_M_TRIM_THRESHOLD, KEEP_BYTES)
    return f"glibc, mmap threshold {accepted >> 20} MiB, trim threshold {KEEP_BYTES >> 20} MiB"


def release_freed_memory() -> None:
    """Give free heap pages back to the kernel now, so that the resident set holds nothing but what is in use."""
    library = _glibc()
    if library is not None:
        library.malloc_trim(0)


@functools.cache
def _glibc() -> ctypes.CDLL | None:
    if not sys.platform.startswith("linux"):
        return None
    library = ctypes.CDLL(None)
    return library if hasattr(library, "gnu_get_libc_version") else None
