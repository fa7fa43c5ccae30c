"""The strict settings that every test runs under, on eight virtual devices and with caches of its own."""

from __future__ import annotations

import importlib.machinery
import importlib.metadata
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import types
from collections.abc import Iterator, Sequence
from pathlib import Path

import hypothesis
import pytest

XDIST_WORKER = "PYTEST_XDIST_WORKER" in os.environ
# tests compile more than they compute: a third of the compiler's time
QUICK = ("backend_optimization_level=0", "cpu_use_fusion_emitters=false", "cpu_parallel_codegen_split_count=1")
if importlib.metadata.version("jax").startswith("0.7."):
    QUICK += ("cpu_use_xnnpack=false",)  # as `llm_jax.core.runtime` has it


def known_flags(flags: Sequence[str]) -> list[str]:
    """Those of `flags` that the installed jaxlib knows. XLA aborts a process over any other."""
    probe = [sys.executable, "-c", "import jax; jax.devices()"]
    tried = subprocess.run(
        probe, env={**os.environ, "XLA_FLAGS": " ".join(flags)}, capture_output=True, text=True, check=False
    )
    if tried.returncode == 0:
        return list(flags)
    unknown = re.search(r"Unknown flags? in XLA_FLAGS: (.*)", tried.stderr)
    assert unknown, f"XLA does not start with {flags}: {tried.stderr}"
    return [flag for flag in flags if flag not in unknown[1].split()]


os.environ["JAX_PLATFORMS"] = os.environ.get("TEST_PLATFORMS", "cpu")  # make test-gpu asks for another
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "1"  # no chatter, but the partitioner's warnings still reach stderr
os.environ["OMP_NUM_THREADS"] = "1"  # PyTorch's threads spin, which is slow where the workers share the cores
os.environ.pop("JAX_COMPILATION_CACHE_DIR", None)
if not XDIST_WORKER:  # the workers inherit both
    if os.environ["JAX_PLATFORMS"] == "cpu":
        os.environ["XLA_FLAGS"] = " ".join(known_flags([f"--xla_{setting}" for setting in QUICK]))
    os.environ["LLM_JAX_CACHE"] = tempfile.mkdtemp(prefix="llm_jax_tests_")

import jax

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

# Compiling makes the first example slow, and a failure on one machine should be one on all.
hypothesis.settings.register_profile("llm_jax", deadline=None, derandomize=True, database=None, max_examples=30)
hypothesis.settings.load_profile("llm_jax")


class Absent(types.ModuleType):
    """Stands for a package that this environment does without: a test that uses it is skipped."""

    def __getattr__(self, name: str) -> object:
        if name.startswith("__"):  # the import machinery asks for these
            raise AttributeError(name)
        pytest.skip(f"needs {self.__name__.partition('.')[0]}", allow_module_level=True)


class Absentees:
    """Imports an `Absent` for each package that $TEST_WITHOUT names; `make test-colab` sets it."""

    packages = frozenset(os.environ.get("TEST_WITHOUT", "").split(",")) - {""}

    def find_spec(self, name: str, path: object = None, target: object = None) -> importlib.machinery.ModuleSpec | None:
        ours = name.partition(".")[0] in self.packages
        return importlib.machinery.ModuleSpec(name, self, is_package=True) if ours else None  # pyright: ignore[reportArgumentType]

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> Absent:
        return Absent(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        """An absent package has nothing to run."""


for package in Absentees.packages:
    assert importlib.machinery.PathFinder.find_spec(package) is None, f"{package} is installed: run its tests"
if Absentees.packages:
    sys.meta_path.insert(0, Absentees())  # pyright: ignore[reportArgumentType]


for number, handler in (
    (signal.SIGINT, signal.default_int_handler), (signal.SIGTERM, signal.SIG_DFL), (signal.SIGHUP, signal.SIG_DFL)
):  # fmt: skip
    if signal.getsignal(number) is signal.SIG_IGN:  # of a background job of a shell, or below nohup
        signal.signal(number, handler)

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
