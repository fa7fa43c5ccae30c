"""Tokens per second and MFU: how fast a training goes, and what share of the device it uses."""

from __future__ import annotations

import contextlib
import functools
import re
import time
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp

from llm_jax.models.flops import CONVENTION, count
from llm_jax.training.program import Program, TrainState

PEAKS = {  # published dense bfloat16 FLOP/s of one device, by words of its name
    "TPU v2": 22.5e12, "TPU v3": 61.5e12, "TPU v4": 275e12, "TPU v5 lite": 197e12, "TPU v5e": 197e12, "TPU v5p": 459e12,
    "TPU v5": 459e12, "TPU v6 lite": 918e12, "TPU v6e": 918e12,
    "H100": 989e12, "H200": 989e12, "A100": 312e12, "L4": 121e12, "T4": 65e12,
}  # fmt: skip


@functools.cache
def peak_flops(dtype: str) -> tuple[float, str]:
    """The FLOP/s that MFU is measured against, of one device, and where the number is from.

    On a CPU, or an unknown device, that is a matrix product of `dtype` timed now.
    """
    kind = jax.devices()[0].device_kind
    for name, peak in PEAKS.items():
        if re.search(rf"\b{name}\b", kind):  # an L40 is no L4
            narrower = "" if dtype == "bfloat16" else f" (this run computes in {dtype})"
            return peak, f"the published bfloat16 peak of {name}{narrower}"
    size = 1024
    a = jnp.ones((size, size), dtype)
    product = jax.jit(lambda a: jnp.matmul(a, a, preferred_element_type=jnp.float32))
    product(a).block_until_ready()
    best = min(_timed(product, a) for _ in range(5))
    # virtual devices share one processor
    share = jax.local_device_count() if kind == "cpu" else 1
    return 2 * size**3 / best / share, f"a {size} x {size} {dtype} product on this machine, timed at start"


def _timed(function: Any, a: jax.Array) -> float:
    begun = time.perf_counter()
    function(a).block_until_ready()
    return time.perf_counter() - begun


class Speed:
    """Counts steps and the seconds that they took, without the first (it compiles) and without pauses."""

    def __init__(self, program: Program):
        data: Any = program.experiment.data
        precision: Any = program.experiment.precision
        self._tokens = data.batch * data.length
        model: Any = program.experiment.model
        self._flops = self._tokens * model.flops_per_token(program.boxed, data.length)
        peak, self._source = peak_flops(precision.compute)
        self._peak = peak * program.mesh.size
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

        The caller must have waited for the last step's results.
        """
        if self._begun is None or not self._steps:
            return {}
        now = time.perf_counter()
        each = max(now - self._begun - self._paused, 1e-9) / self._steps
        self._begun, self._paused, self._steps = now, 0.0, 0
        found = dict(tokens_per_second=self._tokens / each)
        return found | dict(mfu=self._flops / each / self._peak) if self._flops else found
