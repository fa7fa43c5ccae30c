"""How likely texts are: float64 sums over the model's scores, however they are batched."""

from __future__ import annotations

import flax.linen as nn
import jax
import numpy as np
import pytest

from llm_jax.core.errors import InputError
from llm_jax.inference.likelihood import likelihoods
from llm_jax.layers.attention import Attention
from llm_jax.layers.block import Block
from llm_jax.layers.embedding import Embed
from llm_jax.layers.feedforward import FeedForward
from llm_jax.layers.positions import Learned
from llm_jax.models.decoder import Decoder
from llm_jax.models.stack import Stack

MODEL = Decoder(Embed(8, 23), Stack((Block(Attention(1, 2, 8), FeedForward(8)),), 1), Learned(40))


@pytest.fixture(scope="module")
def params():
    drawn = jax.jit(lambda key: nn.meta.unbox(MODEL.begin(key)))(jax.random.key(0))
    return jax.tree.map(lambda x: 3 * x, drawn)


def scores(params, ids: list[int]) -> np.ndarray:
    """float64 [T, V]; texts are padded to one length, so that one program is compiled."""
    padded = np.zeros((1, 40), np.int32)
    padded[0, : len(ids)] = ids
    return np.asarray(jax.jit(MODEL.apply)({"params": params}, padded)[0][0, : len(ids)], np.float64)


def test_sums_and_what_is_greedy(params):
    rng = np.random.default_rng(0)
    texts = [
        (rng.integers(23, size=size).tolist(), count) for size, count in ((41, 40), (17, 3), (5, 1), (2, 1), (30, 9))
    ]
    best = rng.integers(23, size=4).tolist()
    for _ in range(5):
        best.append(int(scores(params, best)[-1].argmax()))
    texts += [(best, 5), (best, 4), ([*best[:-1], (best[-1] + 1) % 23], 5), ([*best[:4], (best[4] + 1) % 23, 0], 1)]
    told: list[int] = []
    found = likelihoods(MODEL, params, texts, rows=4, advance=told.append)
    assert told == [4, 4, 1] and [greedy for _, greedy in found[5:8]] == [True, True, False]
    for (ids, count), (logp, greedy) in zip(texts, found, strict=True):
        score_TV = scores(params, ids[:-1])[-count:]
        logp_T = score_TV[range(count), ids[-count:]] - np.log(np.exp(score_TV).sum(-1))
        assert logp == pytest.approx(logp_T.sum(), abs=1e-4)
        assert greedy == (score_TV.argmax(-1) == ids[-count:]).all()
    alone = likelihoods(MODEL, params, texts, rows=1)
    assert [logp for logp, _ in alone] == pytest.approx([logp for logp, _ in found], abs=1e-4)


def test_a_likelihood_that_is_no_number_is_refused(params):
    damaged = jax.tree.map(lambda x: x.at[..., 0].set(np.nan), params)
    with pytest.raises(InputError, match="the likelihood of text 0 is no number: the model's parameters hold NaN"):
        likelihoods(MODEL, damaged, [([1, 2, 3], 2)])


@pytest.mark.parametrize(
    ("text", "message"),
    [(([1, 2], 2), "the last 2 of the 2 tokens of text 1 cannot be scored"), (([1, 2], 0), "the last 0 of the 2"),
     (([], 1), "the last 1 of the 0"), (([1] * 42, 1), "text 1 has 42 tokens, and the model reads 40")],
)  # fmt: skip
def test_the_first_token_of_a_text_and_what_does_not_fit_are_refused(params, text, message):
    with pytest.raises(InputError, match=message):
        likelihoods(MODEL, params, [([1, 2], 1), text])
