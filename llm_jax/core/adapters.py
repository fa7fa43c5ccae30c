"""Low-rank adapters: two thin kernels beside one, whose product is added to it.

The letters of a kernel are `before`, those that it has for each expert and layer, then those it sums, then those it
produces; `down` has before + summed + Z, `up` before + Z + produced. So shapes alone say which axes are which.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

ADAPTER = ("down", "up", "magnitude")  # the names of an adapter's parameters, beside "kernel"


def summed(kernel: jax.Array, down: jax.Array, up: jax.Array) -> range:
    """Which axes of the kernel are summed."""
    return range(down.ndim + up.ndim - kernel.ndim - 2, down.ndim - 1)


def product(kernel: jax.Array, down: jax.Array, up: jax.Array) -> jax.Array:
    """What is added to the kernel, in float32."""
    down, up = _matrices(down, up, summed(kernel, down, up).start)
    return jnp.matmul(down, up, preferred_element_type=jnp.float32).reshape(kernel.shape)


def magnification(
    kernel: jax.Array, down: jax.Array, up: jax.Array, norm: jax.Array, magnitude: jax.Array
) -> jax.Array:
    """magnitude / |kernel + down up|, [before, produced] in float32: by which DoRA multiplies what is produced.

    The length is over the summed letters, and no gradient flows through it (Liu et al. 2024, section 4.3). It comes
    from `norm`, that of the kernel alone, and from what the adapter adds to its square: the sum of the kernels is never
    made, and where `up` is 0 and `magnitude` is `norm` the result is 1 to the bit, in every precision.
    """
    before = summed(kernel, down, up).start
    down, up = _matrices(down, up, before)
    kernel = kernel.reshape((*down.shape[:-1], -1))
    wide: Any = dict(preferred_element_type=jnp.float32)
    twice = 2.0 * jnp.matmul(down.mT, kernel, **wide)
    square = jnp.matmul(jnp.matmul(down.mT, down, **wide).astype(up.dtype), up, **wide)
    added = (up.astype(jnp.float32) * (twice + square)).sum(-2).reshape(norm.shape)
    norm, magnitude = norm.astype(jnp.float32), magnitude.astype(jnp.float32)
    return magnitude / norm / jax.lax.stop_gradient(jnp.sqrt(1.0 + added / norm**2))


def lengths(kernel: jax.Array, summed: range) -> jax.Array:
    """The norm of a kernel over its `summed` axes: [before, produced]."""
    return jnp.sqrt(jnp.square(kernel).sum(tuple(summed)))


def _matrices(down: jax.Array, up: jax.Array, before: int) -> tuple[jax.Array, jax.Array]:
    """[before, summed, Z] and [before, Z, produced], with the summed axes as one, and the produced."""
    rank = down.shape[-1]
    return down.reshape((*down.shape[:before], -1, rank)), up.reshape((*up.shape[: before + 1], -1))
