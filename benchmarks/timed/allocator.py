"""What becomes of memory that is freed on a CPU."""

from __future__ import annotations

import ctypes

# glibc's malloc.h; by itself it keeps blocks of up to 32 MB, once some have been freed.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MMAP_MAX = -1, -3, -4
KEPT = {M_MMAP_MAX: 0, M_TRIM_THRESHOLD: -1}
AS_IT_IS = {M_MMAP_MAX: 65536, M_MMAP_THRESHOLD: 2**25, M_TRIM_THRESHOLD: 2**26}


def keep_freed_memory(kept: bool) -> bool:
    """Have the process keep what it frees from now on, or no more; whether it does, which only glibc's allocator can.

    By itself glibc gives maps of some ten megabytes back to the system or keeps them, as they happen to lie on its
    heap. To take one anew can cost as much as what is computed on it, and falls to whoever is at work.
    """
    try:
        libc = ctypes.CDLL(None)
        set_all = [libc.mallopt(name, value) for name, value in (KEPT if kept else AS_IT_IS).items()]
        libc.malloc_trim(0)
    except (OSError, TypeError, AttributeError):  # not Linux, or another C library
        return False
    return kept and all(set_all)
