"""What this process asks of the operating system."""

from __future__ import annotations

import ctypes
import sys

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4  # of glibc's malloc.h
MOST = 2**31 - 1


def keep_memory() -> None:
    """Memory that was freed stays with the process, to be used again.

    XLA's CPU programs allocate their temporaries anew at each step. By default glibc maps large ones and gives them
    back, so each step pays for fresh pages: 29% of its time for a small model (BUILD_NOTES.md).
    Without glibc nothing is done.
    """
    if sys.platform != "linux" or not hasattr(libc := ctypes.CDLL(None), "mallopt"):
        return
    for parameter, value in ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, MOST), (M_TOP_PAD, 64 * 2**20)):
        libc.mallopt(parameter, value)
