"""Configuration of the memory allocator for large tensors that are allocated and freed often."""

from __future__ import annotations

import ctypes
import os
import sys

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4  # malloc.h


def tune_allocator() -> bool:
    """Let glibc keep freed memory for the next tensor instead of returning it to the system. Returns whether it worked.

    Otherwise, the activations of an encoder are mapped and unmapped in every call, with one page fault per 4 KiB, which
    takes 1.1 to 1.9 times as long on a CPU. Results do not change, but the process keeps its peak memory until it ends.
    Call this at the start of a process. It does nothing with another C library.
    """
    if sys.platform != "linux" or "CS_GNU_LIBC_VERSION" not in os.confstr_names:
        return False
    try:
        glibc = (os.confstr("CS_GNU_LIBC_VERSION") or "").startswith("glibc")
    except (OSError, ValueError):  # musl has the name without a value
        return False
    if not glibc:
        return False
    mallopt = ctypes.CDLL(None).mallopt
    done = (mallopt(_M_MMAP_MAX, 0), mallopt(_M_TRIM_THRESHOLD, 2**31 - 1), mallopt(_M_TOP_PAD, 64 << 20))
    return all(done)
