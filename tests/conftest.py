"""The strict settings that every test runs under, on eight virtual devices and with caches of its own."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

XDIST_WORKER = "PYTEST_XDIST_WORKER" in os.environ

os.environ["JAX_PLATFORMS"] = os.environ.get("TEST_PLATFORMS", "cpu")  # make test-gpu asks for another
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "1"  # no chatter, but the partitioner's warnings still reach stderr
os.environ["OMP_NUM_THREADS"] = "1"  # PyTorch's threads spin, which is slow where the workers share the cores
if os.environ["JAX_PLATFORMS"] == "cpu":  # tests compile more than they compute: a third of the compiler's time
    QUICK = ("backend_optimization_level=0", "cpu_use_fusion_emitters=false", "cpu_parallel_codegen_split_count=1")
    os.environ["XLA_FLAGS"] = " ".join(f"--xla_{setting}" for setting in QUICK)
os.environ.pop("JAX_COMPILATION_CACHE_DIR", None)
if not XDIST_WORKER:  # the workers inherit the folder, so that what one has prepared serves all
    os.environ["LLM_JAX_CACHE"] = tempfile.mkdtemp(prefix="llm_jax_tests_")

import hypothesis
import jax
import pytest

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

# Compiling makes the first example slow, and a failure on one machine should be one on all.
hypothesis.settings.register_profile("llm_jax", deadline=None, derandomize=True, database=None, max_examples=30)
hypothesis.settings.load_profile("llm_jax")


MAPS = Path("/proc/self/maps")  # of Linux: a line for each of the process's memory maps
MANY = 16_000


@pytest.fixture(autouse=True, scope="module")
def programs_are_given_back() -> Iterator[None]:
    """A compiled program takes three memory maps, and a process may have 65,530: beyond that the compiler crashes."""
    yield
    if MAPS.exists() and MAPS.read_bytes().count(b"\n") > MANY:
        jax.clear_caches()


def pytest_unconfigure() -> None:
    if not XDIST_WORKER:
        shutil.rmtree(os.environ["LLM_JAX_CACHE"], ignore_errors=True)
