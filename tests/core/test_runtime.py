import os
import subprocess
import sys

import jax
import pytest

from llm_jax.core.runtime import avoid_xnnpack, fix_order

LINUX = sys.platform == "linux"
PROGRAM = """
import ctypes, pathlib, re, threading
from llm_jax.core.runtime import keep_memory
keep_memory()
keep_memory()  # a second training in the same process
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
def faults():  # the tenth field of /proc/self/stat
    return int(pathlib.Path("/proc/self/stat").read_text().rsplit(")")[1].split()[7])
def use():
    block = libc.malloc(2**28)
    ctypes.memset(block, 1, 2**28)
    libc.free(block)
def in_a_thread():
    thread = threading.Thread(target=use)
    thread.start()
    thread.join()
in_a_thread()
before = faults()
for _ in range(3):
    in_a_thread()
print(faults() - before)
"""


@pytest.mark.skipif(not LINUX, reason="only Linux's allocator is asked")
def test_large_blocks_are_used_again_by_every_thread():
    found = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    assert int(found.stdout) < 1000  # 3 x 65,536 pages of 4 KiB if each block were fresh


@pytest.mark.skipif(not LINUX, reason="only Linux's allocator is asked")
def test_without_addresses_to_spare_it_runs_all_the_same():
    limited = "import resource; resource.setrlimit(resource.RLIMIT_AS, (2**31, 2**31))\n" + PROGRAM
    found = subprocess.run([sys.executable, "-c", limited], capture_output=True, text=True, check=True)
    assert int(found.stdout) < 1000


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (None, "--xla_gpu_deterministic_ops=true"),
        ("--xla_dump_to=/tmp/x", "--xla_dump_to=/tmp/x --xla_gpu_deterministic_ops=true"),
        ("--xla_gpu_deterministic_ops=false", "--xla_gpu_deterministic_ops=false"),
    ],
)
def test_a_gpu_sums_in_one_order_unless_told_otherwise(before, after, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", before or "")
    if before is None:
        monkeypatch.delenv("XLA_FLAGS")
    fix_order()
    fix_order()
    assert os.environ["XLA_FLAGS"] == after


@pytest.mark.parametrize(("version", "after"), [((0, 7, 2), "--xla_cpu_use_xnnpack=false"), ((0, 8, 0), "")])
def test_the_oldest_jax_does_without_xnnpack(version, after, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "")
    monkeypatch.setattr(jax, "__version_info__", version)
    avoid_xnnpack()
    assert os.environ["XLA_FLAGS"] == after
    monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_use_xnnpack=true")
    avoid_xnnpack()
    assert os.environ["XLA_FLAGS"] == "--xla_cpu_use_xnnpack=true"
