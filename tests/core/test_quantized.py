"""Weights in few bits: NumPy's own derivation of the codes, the bounds of the error, and what they weigh."""

from __future__ import annotations

from statistics import NormalDist

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm_jax.core.errors import InputError
from llm_jax.core.quantized import FORMATS, NORMAL_FLOAT, Int8, Nf4, Quantized, plain

SHAPE = (3, 10, 2, 7)  # 3 layers of 140 numbers, which fill no whole block


def drawn(scale: float = 1.0) -> np.ndarray:
    x = scale * np.random.default_rng(0).standard_normal(SHAPE).astype(np.float32)
    x[1, :5] = 0.0  # whole blocks of zeros
    return x


def blocks(x: np.ndarray, block: int) -> tuple[np.ndarray, np.ndarray]:
    """[layers, blocks, block] in float64 with zeros at the end, and each block's greatest absolute value."""
    flat = x.reshape(len(x), -1).astype(np.float64)
    found = np.pad(flat, ((0, 0), (0, -flat.shape[1] % block))).reshape(len(x), -1, block)
    return found, np.abs(found).max(-1, keepdims=True)


def unblocked(found: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    size = int(np.prod(shape[1:]))
    return found.reshape(shape[0], -1)[:, :size].reshape(shape)


def test_the_table_is_that_of_quantiles_of_a_normal_variable():
    """Its derivation in the paper's code: 8 positive and 7 negative quantiles and a zero, from 1 - offset on."""
    offset = 0.9677083
    quantile = np.vectorize(NormalDist().inv_cdf)
    upper, lower = (quantile(np.linspace(offset, 0.5, count)[:-1]) for count in (9, 8))
    values = np.sort(np.concatenate([upper, [0.0], -lower]))
    np.testing.assert_allclose(NORMAL_FLOAT, values / values.max(), atol=1e-6)


@pytest.mark.parametrize("block", [2, 32, 64, 1000])
@pytest.mark.parametrize("format", FORMATS.values())
def test_it_is_numpys_own_and_within_the_bound(format, block):
    x = drawn()
    stored = format(block).quantize(jnp.asarray(x), before=1)
    whole, scale = blocks(x, block)
    safe = np.where(scale == 0, 1.0, scale)
    levels = np.arange(-127, 128) / 127 if format is Int8 else np.asarray(NORMAL_FLOAT)
    nearest = levels[np.abs((whole / safe)[..., None] - levels).argmin(-1)]
    found = np.asarray(stored.read())
    np.testing.assert_allclose(found, unblocked(nearest * scale, SHAPE), atol=1e-6)
    bound = np.diff(levels).max() / 2 * np.broadcast_to(scale, whole.shape)
    assert (np.abs(found - x) <= unblocked(bound, SHAPE) + 1e-6).all()
    assert found.shape == SHAPE and (found[1, :5] == 0).sum() >= 60


@pytest.mark.parametrize(("format", "bits"), [(Int8(), 8.5), (Nf4(), 4.5)])
def test_what_it_weighs(format, bits):
    stored = format.quantize(jnp.ones((2, 64, 64)), before=1)
    assert 8 * sum(leaf.nbytes for leaf in jax.tree.leaves(stored)) == bits * 2 * 64 * 64


@pytest.mark.parametrize("format", [Int8(32), Nf4(32)])
def test_layers_are_cut_apart_and_read_one_by_one(format):
    stored = format.quantize(jnp.asarray(drawn()), before=1)
    assert isinstance(stored, Quantized) and stored.shape == SHAPE[1:]
    whole = stored.read()
    _, scanned = jax.jit(lambda stored: jax.lax.scan(lambda _, one: (None, one.read()), None, stored))(stored)
    np.testing.assert_array_equal(scanned, whole)
    narrow = stored.astype(jnp.bfloat16)
    assert narrow.scales.dtype == jnp.float32 and plain(narrow).dtype == jnp.bfloat16
    np.testing.assert_array_equal(plain(narrow), whole.astype(jnp.bfloat16))


def test_a_block_of_half_a_byte_is_refused():
    with pytest.raises(InputError, match="Nf4: block=33 must be even: two codes make a byte"):
        Nf4(33).quantize(jnp.ones(66))
