"""Seeds: whole numbers of up to 63 bits, of which each draws something else."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from llm_jax.core.errors import InputError

BITS = 63  # what flags, settings and NumPy take alike


def random_key(seed: int) -> jax.Array:
    """The key of a seed. `jax.random.key` takes the low 32 bits alone, where it computes in 32 bits: these are its own.

    A seed beyond them has the key that JAX gives it where it computes in 64 bits.

    Raises:
      InputError: the seed is no whole number from 0 to 2^63 - 1.
    """
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or not 0 <= seed < 2**BITS:
        raise InputError(f"seed must be a whole number from 0 to 2^{BITS} - 1, not {seed!r}")
    high, low = divmod(int(seed), 2**32)
    key = jax.random.key(low)
    if not high:
        return key
    words = jax.random.key_data(key).at[0::2].set(jnp.uint32(high))  # pairs, high and low: threefry's one, rbg's two
    return jax.random.wrap_key_data(words, impl=jax.random.key_impl(key))
