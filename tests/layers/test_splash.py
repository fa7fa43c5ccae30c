"""Splash attention on several devices, over several blocks, and as a program for a TPU."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm_jax.core.dims import shard
from llm_jax.layers import kernels
from llm_jax.layers.kernels import Dense, Scoring, Splash
from llm_jax.layers.masks import Causal, SlidingWindow
from llm_jax.layers.tokens import Tokens
from llm_jax.parallel.layout import Layout

# These programs run once: compiling them is the cost.
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def draw(batch: int, length: int, key_heads: int, group: int, head: int, dtype=jnp.float32):
    keys = jax.random.split(jax.random.key(0), 4)
    q, k = (batch, length, key_heads, group, head), (batch, length, key_heads, head)
    return [jax.random.normal(key, shape).astype(dtype) for key, shape in zip(keys, (q, k, k, q), strict=True)]


def run(kernel, mask, q, k, v, d_o):
    length = q.shape[1]
    segment = jnp.broadcast_to((jnp.arange(length) >= length // 3).astype(jnp.int32)[None], q.shape[:2])
    at = Tokens(Tokens.of(q.shape[:2]).position_BT - segment * (length // 3), segment)

    def attend(q, k, v):
        q, k, v = shard(q, "BTKGH"), shard(k, "B.KH"), shard(v, "B.KH")
        return kernel(q, k, v, Scoring(at, at, None, None, mask, q.shape[-1] ** -0.5, aligned=True))

    out, pull = jax.vjp(attend, q, k, v)
    return out, pull(d_o)


@pytest.mark.parametrize("mask", [Causal(), SlidingWindow(150)], ids=str)
def test_several_blocks(mask):
    arrays = draw(1, 300, 1, 2, 8)
    found, wanted = (jit(functools.partial(run, kernel, mask))(*arrays) for kernel in (Splash(128, True), Dense()))
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_rows_over_devices_and_one_key_head_for_all():
    """Heads that devices share are in tests/parallel/test_layout.py."""
    arrays = draw(4, 20, 1, 2, 8)
    wanted = jit(functools.partial(run, Dense(), Causal()))(*arrays)
    with jax.set_mesh(Layout(2, 2, 2).mesh()):
        found = jit(functools.partial(run, Splash(128, True), Causal()))(*arrays)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.parametrize("head", [64, 128])
def test_it_lowers_for_a_tpu(head, monkeypatch):
    """Forward and backward, in the form that a TPU's compiler gets: three Mosaic kernels."""
    monkeypatch.setattr(kernels, "platform", lambda: "tpu")
    arrays = draw(2, 700, 2, 2, head, jnp.bfloat16)
    lowered = jax.jit(functools.partial(run, Splash(), Causal())).trace(*arrays).lower(lowering_platforms=("tpu",))
    assert lowered.as_text().count("tpu_custom_call") >= 3
