"""What this process asks of the operating system."""

from __future__ import annotations

import ctypes
import os
import sys

import jax

from llm_jax.core.files import cache_folder

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX, M_ARENA_MAX = -1, -2, -4, -8  # of glibc's malloc.h
NEVER = -1
MADV_HUGEPAGE = 14  # of Linux's mman.h
HUGE_PAGE = 2**21
ORDERED = "xla_gpu_deterministic_ops"
XNNPACK = "xla_cpu_use_xnnpack"
XNNPACK_MENDED = (0, 8)  # the first jax


def set_up() -> None:
    """What every training and every use of a model asks for. Call it before JAX is first used."""
    fix_order()
    avoid_xnnpack()
    keep_memory()
    keep_compiled()


def fix_order() -> None:
    """On a GPU, sums are made in one order, so that a seed gives the same bits again, unless $XLA_FLAGS says otherwise.

    Without it cuDNN's attention gives other gradients at every call (docs/decisions.md). XLA reads the variable once,
    when a process first uses it: one that has computed on its GPU before is left as it was.
    """
    _set_flag(ORDERED, "true")


def avoid_xnnpack() -> None:
    """On a CPU, jax 0.7 (Colab's) computes small products without XNNPACK, unless $XLA_FLAGS says otherwise.

    On CPUs with instructions for bfloat16 it leaves some products of bfloat16 to a kernel that cannot sum in float32:
    "Unsupported element type for DotThunk::Execute".
    """
    if jax.__version_info__ < XNNPACK_MENDED:
        _set_flag(XNNPACK, "false")


def _set_flag(name: str, value: str) -> None:
    flags = os.environ.get("XLA_FLAGS", "")
    if name not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} --{name}={value}".strip()


def keep_memory() -> None:
    """Memory that was freed stays with the process, to be used again, in huge pages where there are any.

    XLA's CPU programs allocate their temporaries anew at each step. By default glibc maps large ones and gives them
    back, so each step pays for fresh pages; so does each large one in an arena of a thread's own, whatever M_MMAP_MAX
    says. It was 20% to 30% of a step (docs/research_log.md). Without glibc nothing is done.
    """
    if sys.platform != "linux" or not hasattr(libc := ctypes.CDLL(None), "mallopt"):
        return
    for parameter, value in ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, NEVER), (M_TOP_PAD, 2**26), (M_ARENA_MAX, 1)):
        libc.mallopt(parameter, value)
    _ask_for_huge_pages(libc)


def _ask_for_huge_pages(libc: ctypes.CDLL) -> None:
    """For half of the machine's memory: the heap grows by that many addresses, and by no page until one is used.

    Where the system refuses the addresses or has no huge pages, the pages are the usual ones.
    """
    libc.sbrk.restype = libc.malloc.restype = ctypes.c_void_p
    libc.sbrk.argtypes, libc.malloc.argtypes = [ctypes.c_ssize_t], [ctypes.c_size_t]
    libc.free.argtypes, libc.madvise.argtypes = [ctypes.c_void_p], [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    before = libc.sbrk(0)
    libc.free(libc.malloc(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2))
    first = -(-before // HUGE_PAGE) * HUGE_PAGE
    if (grown := libc.sbrk(0) - first) > 0:
        libc.madvise(first, grown, MADV_HUGEPAGE)


def keep_compiled() -> None:
    """Keeps compiled programs in the user's cache folder, unless $LLM_JAX_COMPILATION_CACHE is 0."""
    if os.environ.get("LLM_JAX_COMPILATION_CACHE", "1") == "0" or jax.config.values["jax_compilation_cache_dir"]:
        return
    jax.config.update("jax_compilation_cache_dir", str(cache_folder("compiled")))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)
