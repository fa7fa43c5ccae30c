"""Whether all numbers of an array are numbers, wherever one is not and in every dtype of weights."""

import ml_dtypes
import numpy as np
import pytest

from llm_jax.core.finite import is_finite


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_one_of_many_is_found(dtype, value):
    x = np.random.default_rng(0).normal(size=(7, 9)).astype(dtype)
    assert is_finite(x)
    for at in ((0, 0), (3, 4), (6, 8)):
        damaged = x.copy()
        damaged[at] = value
        assert not is_finite(damaged)


def test_whole_numbers_and_nothing_are_finite():
    assert is_finite(np.arange(9, dtype=np.uint8)) and is_finite(np.zeros((0, 3), np.float32))
