"""The bag of tokens: running means of each text's own vectors, as a backbone, and from another run's vectors."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm_jax.core.errors import InputError
from llm_jax.layers.embedding import Embed
from llm_jax.layers.pooling import Last
from llm_jax.layers.tokens import PADDING, Tokens
from llm_jax.models.bag_of_tokens import BagOfTokens
from llm_jax.models.heads import Classifier, Scorer

V, D, T = 11, 4, 9
MODEL = BagOfTokens(Embed(D, V))
TOKENS = np.random.default_rng(0).integers(0, V, (2, T)).astype(np.int32)
SEGMENT = np.array([[0, 0, 0, 1, 1, 2, 2, 2, 2], [5, 5, 5, 5, 5, 5, PADDING, PADDING, PADDING]], np.int32)


def started(model):
    params = nn.meta.unbox(model.begin(jax.random.key(0)))
    return jax.tree.map(lambda x: x + jax.random.normal(jax.random.key(1), x.shape), params)


def test_each_vector_is_the_mean_of_its_text_so_far():
    """Of texts that share a row, each has its own; so a text alone has the same."""
    params = started(MODEL)
    table = np.asarray(params["embed"]["table"], np.float64)
    found: Any = MODEL.apply({"params": params}, TOKENS, Tokens(jnp.zeros_like(TOKENS), jnp.asarray(SEGMENT)))
    for row in range(2):
        for t in range(T):
            here = [s for s in range(t + 1) if SEGMENT[row, s] == SEGMENT[row, t]]
            np.testing.assert_allclose(found[row, t], table[TOKENS[row, here]].mean(0), rtol=1e-5, atol=1e-6)
    alone: Any = MODEL.apply({"params": params}, TOKENS[:1, 3:5])
    np.testing.assert_allclose(alone[0], found[0, 3:5], rtol=1e-5, atol=1e-6)


def test_it_is_a_backbone_that_forgets_the_order():
    scorer, classifier = Scorer(MODEL), Classifier(MODEL, 3, Last())
    swapped = TOKENS[:, ::-1].copy()
    for model, method in ((scorer, "reward"), (classifier, "__call__")):
        params, of = started(model), dict[str, Any](method=method)
        one, other = (np.asarray(model.apply({"params": params}, tokens, **of)) for tokens in (TOKENS, swapped))
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)
        assert np.ptp(one) > 1e-2 and model.limit() is None and model.words() == V
    with pytest.raises(InputError, match="tells no kinds of text apart"):
        MODEL.apply({"params": started(MODEL)}, TOKENS, None, TOKENS, method="vectors")


def test_dropout_is_of_the_vectors():
    model = BagOfTokens(Embed(D, V, dropout=0.5))
    params = started(model)
    dropped: Any = [model.apply({"params": params}, TOKENS, dropout_key=jax.random.key(k)) for k in range(2)]
    assert not np.allclose(dropped[0], dropped[1])
    np.testing.assert_array_equal(model.apply({"params": params}, TOKENS), MODEL.apply({"params": params}, TOKENS))
