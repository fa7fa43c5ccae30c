"""A seed has 64 bits, all of which count."""

import jax
import numpy as np
import pytest

from llm_jax.core.errors import InputError
from llm_jax.core.seeds import random_key


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg"])
@pytest.mark.parametrize("seed", [0, 7, 2**31, 2**32 - 1, 2**32, 2**32 + 7, 2**63 - 1])
def test_a_key_is_jaxs_own_of_64_bits_and_below_32_bits_of_32(seed, impl):
    words = {0: seed >> 32, 1: seed % 2**32}  # jax_threefry_partitionable or not, a key is its seed's two halves
    with jax.default_prng_impl(impl):
        for found in (random_key(seed), jax.jit(lambda: random_key(seed))()):
            data = np.asarray(jax.random.key_data(found))
            assert [int(word) for word in data] == [words[i % 2] for i in range(len(data))]
            if seed < 2**32:
                np.testing.assert_array_equal(data, jax.random.key_data(jax.random.key(seed)))


@pytest.mark.parametrize("seed", [-1, 2**63, 1.0, True, "1", None])
def test_what_is_no_seed_is_refused(seed):
    with pytest.raises(InputError, match="seed must be a whole number from 0 to"):
        random_key(seed)


def test_seeds_that_differ_in_their_high_bits_draw_differently():
    draws = {float(jax.random.uniform(random_key(seed))) for seed in (3, 3 + 2**32, 3 + 2**33, 3 + 2**62)}
    assert len(draws) == 4
