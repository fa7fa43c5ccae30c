"""Dropout that depends on the seed and the place alone."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from llm_jax.core.errors import InputError
from llm_jax.layers.dropout import dropout, keep, line

ONES = jnp.ones((64, 50, 40))
drop = jax.jit(dropout, static_argnums=1)


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_the_rate_and_the_mean_hold_along_every_axis(rate):
    x = np.asarray(drop(ONES, rate, jax.random.key(3)))
    np.testing.assert_allclose(np.unique(x), [0, 1 / (1 - rate)], rtol=1e-6)
    for axes in ((1, 2), (0, 2), (0, 1)):
        share = (x == 0).mean(axes)
        spread = (rate * (1 - rate) / (x.size / share.size)) ** 0.5
        assert np.abs(share - rate).max() < 4.5 * spread
    assert x.mean() == pytest.approx(1, abs=5 * (rate / (1 - rate) / x.size) ** 0.5)


def test_neighbours_keys_and_places_are_independent():
    keys = [
        jax.random.key(0),
        jax.random.key(1),
        jax.random.fold_in(jax.random.key(0), 1),
        jax.random.split(jax.random.key(9))[1],
    ]
    drawn = [np.asarray(drop(ONES, 0.5, key)) - 1 for key in keys]
    pairs = [(a, b) for i, a in enumerate(drawn) for b in drawn[:i]]
    pairs += [(np.moveaxis(drawn[0], axis, 0)[:-1], np.moveaxis(drawn[0], axis, 0)[1:]) for axis in range(3)]
    for a, b in pairs:
        assert abs((a * b).mean()) < 5 / a.size**0.5


def test_it_is_repeated_exactly_and_differs_by_key():
    key = jax.random.key(7)
    np.testing.assert_array_equal(drop(ONES, 0.3, key), drop(ONES, 0.3, key))
    assert (drop(ONES, 0.3, key) != drop(ONES, 0.3, jax.random.key(8))).any()


def test_without_a_key_or_a_rate_it_is_the_identity():
    assert dropout(ONES, 0.5, None) is ONES and dropout(ONES, 0.0, jax.random.key(0)) is ONES
    assert dropout(jnp.bfloat16(ONES), 0.5, jax.random.key(0)).dtype == jnp.bfloat16


def test_sharding_changes_nothing():
    mesh = jax.make_mesh((4, 2), ("data", "tensor"), axis_types=(AxisType.Auto,) * 2)
    split = jax.device_put(ONES, NamedSharding(mesh, PartitionSpec("data", None, "tensor")))
    found = drop(split, 0.5, jax.random.key(5))
    assert not found.sharding.is_fully_replicated
    np.testing.assert_array_equal(found, drop(ONES, 0.5, jax.random.key(5)))


def test_a_block_drops_what_the_whole_drops():
    key = jax.random.key(2)
    whole = keep(key, 0.5, line(20, 0, 2), line(30, 1, 2))
    np.testing.assert_array_equal(keep(key, 0.5, line(5, 0, 2, 10), line(7, 1, 2, 20)), whole[10:15, 20:27])


@pytest.mark.parametrize("rate", [1.0, -0.1, 2.0])
def test_a_rate_is_a_share(rate):
    with pytest.raises(InputError, match="dropout must be from 0 to below 1"):
        dropout(ONES, rate, jax.random.key(0))
