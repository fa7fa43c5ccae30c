"""The cache: what queries can reach in it is what they would see without one."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm_jax.layers.cache import Cache, Memory
from llm_jax.layers.kernels import Dense, Scoring
from llm_jax.layers.masks import Causal, SlidingWindow
from llm_jax.layers.tokens import Tokens

# These programs run once: compiling them is the cost.
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})

LENGTH, K, H = 13, 2, 4


@pytest.mark.parametrize("calls", [(1,) * LENGTH, (9, 1, 3), (LENGTH,), (4, 4, 4, 1)], ids=str)
@pytest.mark.parametrize("mask", [Causal(), SlidingWindow(4)], ids=str)
def test_calls_in_a_row_see_what_one_call_sees(mask, calls):
    """Full and rolling caches; prompts longer than the window; several tokens at a time."""
    q, k, v = (jax.random.normal(key, (2, LENGTH, K, H)) for key in jax.random.split(jax.random.key(0), 3))
    padding = jnp.asarray([0, 4], jnp.int32)[:, None]  # the second prompt is shorter: padded on the left
    slot = Tokens.of((2, LENGTH)).position_BT
    at = Tokens(jnp.maximum(slot - padding, 0), jnp.where(slot < padding, -1, 0))

    def attend(q, memory: Memory, at):
        return Dense()(
            q[:, :, :, None], memory.k_BSKH, memory.v_BSKH, Scoring(at, memory.tokens, None, None, mask, 0.5)
        )

    @jit
    def in_calls(q, k, v):
        cache, start, out = Cache.empty(2, 16, K, H, jnp.float32, mask.reach()), 0, []
        for count in calls:
            here = slice(start, start + count)
            memory, cache = cache.extend(Memory(k[:, here], v[:, here], at.cut(start, start + count)), start)
            out.append(attend(q[:, here], memory, at.cut(start, start + count)))
            start += count
        return jnp.concatenate(out, axis=1), cache

    found, cache = in_calls(q, k, v)
    np.testing.assert_allclose(found, attend(q, Memory(k, v, at), at), atol=1e-5)
    assert cache.rolling == isinstance(mask, SlidingWindow)
    assert cache.k_BKSH.shape[2] == (4 if cache.rolling else 16)


def test_a_window_as_long_as_the_cache_needs_no_rolling():
    assert not Cache.empty(1, 8, 1, 1, jnp.float32, 8).rolling
    empty = Cache.empty(1, 8, 1, 1, jnp.bfloat16, 3)
    assert empty.k_BKSH.shape == (1, 1, 3, 1) and empty.v_BKSH.dtype == jnp.bfloat16
    assert (empty.tokens.segment_BT == -1).all()


@pytest.mark.parametrize(("reach", "size", "rolling"), [(None, 8, False), (9, 8, False), (8, 8, False), (5, 5, True)])
def test_a_longer_cache_is_one_that_was_long_from_the_beginning(reach, size, rolling):
    k, at = jax.random.normal(jax.random.key(0), (2, 3, K, H)), Tokens.of((2, 3))
    short, long = (Cache.empty(2, n, K, H, jnp.float32, reach).extend(Memory(k, -k, at), 0)[1] for n in (4, 8))
    grown = short.longer(4)
    assert grown.k_BKSH.shape[2] == size and grown.rolling == rolling
    same = functools.partial(jax.tree.map, np.testing.assert_array_equal)  # of the settings too
    same(grown, long)
    same(jax.tree.map(lambda x: x[1], jax.tree.map(lambda x: jnp.stack([x, x]), short).longer(4)), long)  # scanned
    assert long.longer(4).k_BKSH.shape[2] == min(12, reach or 12)
