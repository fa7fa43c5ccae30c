"""Tokens per second and MFU: how fast a training goes, and what share of the device it uses."""

from __future__ import annotations

import contextlib
import functools
import json
import math
import os
import platform
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from llm_jax.core.errors import InputError
from llm_jax.core.files import cache_folder, digest, read_json, write_atomically
from llm_jax.engine.step import Program, TrainState
from llm_jax.models.flops import CONVENTION, count

PEAKS = {  # published dense bfloat16 FLOP/s of one device, by words of its name
    "TPU v2": 22.5e12, "TPU v3": 61.5e12, "TPU v4": 275e12, "TPU v5 lite": 197e12, "TPU v5e": 197e12, "TPU v5p": 459e12,
    "TPU v5": 459e12, "TPU v6 lite": 918e12, "TPU v6e": 918e12,
    "H100": 989e12, "H200": 989e12, "A100": 312e12, "L4": 121e12, "T4": 65e12,
}  # fmt: skip


SIZES = (1024, 2048)  # of the products that are timed: which is the faster one differs between machines
READINGS = 3


@functools.cache
def peak_flops(dtype: str) -> tuple[float, str]:
    """The FLOP/s that MFU is measured against, and where the number is from: of one device, or of a CPU as a whole.

    On a CPU, or an unknown device, that is the best matrix product of `dtype` that was ever timed on such a machine.
    """
    kind = jax.devices()[0].device_kind
    for name, peak in PEAKS.items():
        if re.search(rf"\b{name}\b", kind):  # an L40 is no L4
            narrower = "" if dtype == "bfloat16" else f" (this run computes in {dtype})"
            return peak, f"the published bfloat16 peak of {name}{narrower}"
    best = timed_now(dtype)
    known = keep_best(best, dtype)
    if known > best:
        return known, f"the best {dtype} matrix product ever timed on this machine ({best:.3g} just now)"
    return best, f"a {dtype} matrix product on this machine, timed at start: the best so far"


def timed_now(dtype: str) -> float:
    """The FLOP/s of the best of a few matrix products."""
    return max(2 * size**3 / seconds for size in SIZES for seconds in _product(size, dtype))


def _product(size: int, dtype: str) -> list[float]:
    """Seconds of a few products of matrices of this size."""
    a = jnp.ones((size, size), dtype)
    product = jax.jit(lambda a: jnp.matmul(a, a, preferred_element_type=jnp.float32))
    product(a).block_until_ready()
    return [_timed(product, a) for _ in range(READINGS)]


def keep_best(flops: float, dtype: str) -> float:
    """The best FLOP/s that was seen on such a machine, this one too, which is kept in the cache folder.

    A single reading beside other work is too low. Such a machine: the same device or processor, as many cores that we
    may use, the same jax.
    """
    machine = [_device(), str(_cores()), dtype, jax.__version__]
    path = cache_folder("peaks") / f"{digest(*machine)}.json"
    try:
        known = float(read_json(path)["flops"]) if path.exists() else 0.0
    except (InputError, KeyError, TypeError, ValueError):
        known = 0.0
    known = known if math.isfinite(known) else 0.0  # damaged: measured anew
    if flops > known:
        with contextlib.suppress(OSError):  # a full disk is no reason not to train
            write_atomically(path, json.dumps(dict(flops=flops, machine=machine)) + "\n")
    return max(known, flops)


def _device() -> str:
    kind = jax.devices()[0].device_kind
    if kind != "cpu":
        return kind
    info = Path("/proc/cpuinfo")
    found = re.search(r"^model name\s*:\s*(.*)$", info.read_text(errors="replace"), re.M) if info.exists() else None
    return found[1] if found else f"{platform.machine()} {platform.processor()}"


def _cores() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _timed(function: Any, a: jax.Array) -> float:
    begun = time.perf_counter()
    function(a).block_until_ready()
    return time.perf_counter() - begun


def processors(mesh: jax.sharding.Mesh) -> int:
    """How many times `peak_flops` a mesh has: its devices; of CPUs its hosts, since virtual devices share one."""
    devices = list(mesh.devices.flat)
    return len({device.process_index for device in devices}) if devices[0].platform == "cpu" else len(devices)


class Speed:
    """Counts steps and the seconds that they took, without the first (it compiles) and without pauses."""

    def __init__(self, program: Program):
        data = program.experiment.data
        precision = program.experiment.precision
        self._tokens = data.batch * data.length
        model = program.experiment.model
        self._flops = self._tokens * model.flops_per_token(program.boxed, data.length)
        self._dtype, self._processors = precision.compute, processors(program.mesh)
        peak, self._source = peak_flops(self._dtype)
        self._peak = peak * self._processors
        self._parameters = count(program.boxed)
        self._begun: float | None = None
        self._paused = 0.0
        self._steps = 0
        self._latest: jax.Array | None = None  # the newest step's

    def introduction(self) -> str:
        """What is trained, and what MFU will mean."""
        size = f"{self._parameters:,} parameters"
        if not self._flops:
            return size
        return (
            f"{size}, {self._flops / self._tokens:.3g} FLOPs a token by {CONVENTION}; "
            f"MFU is against {self._peak:.3g} FLOP/s, {self._source}"
        )

    def step(self, state: TrainState) -> None:
        """A step was asked for, `state` is what it gives."""
        self._latest = state.step
        if self._begun is None:
            jax.block_until_ready(state.step)
            self._begun = time.perf_counter()
        else:
            self._steps += 1

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Around what is not training, before the next step: the steps under way are waited for first, and count."""
        jax.block_until_ready(self._latest)
        begun = time.perf_counter()
        yield
        self._paused += time.perf_counter() - begun

    def since_last(self) -> dict[str, float]:
        """`tokens_per_second` (of the batch's positions, padding too) and `mfu` since the last call; {} at the start.

        An `mfu` above 1 is left out: the peak is wrong, or the model's arithmetic is less than the convention says. The
        peak is timed again, and for the rest of the session it is at least what was reached.
        The caller must have waited for the last step's results.
        """
        if self._begun is None or not self._steps:
            return {}
        now = time.perf_counter()
        each = max(now - self._begun - self._paused, 1e-9) / self._steps
        self._begun, self._paused, self._steps = now, 0.0, 0
        found = dict(tokens_per_second=self._tokens / each)
        reached = self._flops / each
        if reached > self._peak:
            with self.paused():
                # what was reached counts here alone: by convention it is more than was computed (frozen weights, say)
                self._peak = max(keep_best(timed_now(self._dtype), self._dtype) * self._processors, reached)
        elif self._flops:
            found["mfu"] = reached / self._peak
        return found
