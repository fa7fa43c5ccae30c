"""The decoder: causality, documents that keep to themselves, caches, and how it begins."""

from __future__ import annotations

import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm_jax.core.errors import InputError
from llm_jax.layers.attention import Attention
from llm_jax.layers.block import Block
from llm_jax.layers.embedding import Embed, Untied
from llm_jax.layers.feedforward import SwiGLU
from llm_jax.layers.masks import Full, SlidingWindow
from llm_jax.layers.positions import Alibi, Learned, NoPositions, Positions, RelativeBias, Rope, Sinusoidal
from llm_jax.layers.tokens import Tokens
from llm_jax.models.decoder import Decoder
from llm_jax.models.stack import Stack

# These programs run once: compiling them is the cost.
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})

VOCABULARY, T = 50, 12
KINDS = [NoPositions(), Learned(length=T), Sinusoidal(), Rope(), Alibi(), RelativeBias(buckets=8, farthest=10)]


def make(positions: Positions | None = None, *, blocks: tuple[Block, ...] | None = None, **settings) -> Decoder:
    block = Block(Attention(key_heads=2, group=2, head=8), SwiGLU(hidden=24))
    embed, stack = Embed(width=16, vocabulary=VOCABULARY), Stack(blocks or (block,), repeats=2)
    return Decoder(embed, stack, positions or Rope(), **settings)


def begin(model: Decoder) -> dict:
    return jit(lambda key: nn.meta.unbox(model.init(key, jnp.zeros((1, 2), jnp.int32)))["params"])(jax.random.key(0))


def louder(params: dict) -> dict:
    """Parameters under which every part of the model matters: the first ones give nearly equal scores."""
    return jax.tree.map(
        lambda p: p * 3 if p.ndim > 2 else p + 0.2 * jnp.cos(jnp.arange(p.size, dtype=jnp.float32).reshape(p.shape)),
        params,
    )


IDS = jnp.asarray(np.random.default_rng(0).integers(0, VOCABULARY, (2, T)), jnp.int32)


def packed() -> Tokens:
    rows = [[(0, 5), (1, 7)], [(0, 3), (1, 6), (-1, 3)]]
    segment = [[s for s, n in row for _ in range(n)] for row in rows]
    position = [[i for s, n in row for i in (range(n) if s >= 0 else [0] * n)] for row in rows]
    return Tokens(jnp.asarray(position, jnp.int32), jnp.asarray(segment, jnp.int32))


@pytest.mark.parametrize("positions", KINDS, ids=lambda p: type(p).__name__)
def test_documents_alone_packed_later_and_cached_agree(positions):
    """One program a kind: what a document's scores are must not depend on what stands around it."""
    model = make(
        positions,
        blocks=(Block(Attention(2, 2, 8), SwiGLU(24)), Block(Attention(2, 2, 8, mask=SlidingWindow(3)), SwiGLU(24))),
    )
    params = louder(begin(model))
    calls = (5, 1, 4, 2)

    @jit
    def all_ways(params, ids_BT, at, longer_BT):
        def apply(ids_BT, at=None, **more):
            return model.apply({"params": params}, ids_BT, at, **more)

        caches, start, steps = model.empty_cache(2, T, jnp.float32), 0, []
        for count in calls:
            here = Tokens.of((2, T)).cut(start, start + count)
            scores, caches = apply(ids_BT[:, start : start + count], here, caches=caches, start=start)
            steps.append(scores)
            start += count
        # row 1 holds the second documents of `packed`, row 0 the first ones, each from its start
        return apply(ids_BT)[0], apply(ids_BT, at)[0], apply(longer_BT)[0], jnp.concatenate(steps, 1)

    later_BT = IDS.at[:, 7:].set((IDS[:, 7:] + 1) % VOCABULARY)
    whole, together, later, cached = all_ways(params, IDS, packed(), later_BT)
    assert whole.shape == (2, T, VOCABULARY) and whole.dtype == jnp.float32
    np.testing.assert_allclose(later[:, :7], whole[:, :7], atol=1e-6)  # no token is moved by later ones
    assert np.abs(later[:, 7:] - whole[:, 7:]).max() > 1e-2
    np.testing.assert_allclose(cached, whole, atol=2e-5)

    first = jnp.roll(IDS, -5, axis=1)  # row 0's second document, from the row's start
    second = jnp.roll(IDS, -3, axis=1)
    alone = all_ways(params, jnp.stack([first[0], second[1]]), packed(), later_BT)[0]
    np.testing.assert_allclose(together[0, :5], whole[0, :5], atol=1e-5)
    np.testing.assert_allclose(together[1, :3], whole[1, :3], atol=1e-5)
    np.testing.assert_allclose(together[0, 5:], alone[0, :7], atol=1e-5)
    np.testing.assert_allclose(together[1, 3:9], alone[1, :6], atol=1e-5)


def test_without_order_a_full_mask_sees_a_set():
    """Permuted tokens give permuted scores."""
    model = make(NoPositions(), blocks=(Block(Attention(2, 1, 8, mask=Full()), SwiGLU(24)),))
    params = louder(begin(model))
    order = np.random.default_rng(1).permutation(T)
    scores = jit(lambda ids: model.apply({"params": params}, ids)[0])
    np.testing.assert_allclose(scores(IDS[:, order]), scores(IDS)[:, order], atol=1e-5)
    with_order = make(Rope(), blocks=model.stack.pattern)
    moved = jit(lambda ids: with_order.apply({"params": params}, ids)[0])
    assert np.abs(moved(IDS[:, order]) - moved(IDS)[:, order]).max() > 1e-3


@pytest.mark.parametrize("head", [None, Untied()], ids=str)
def test_the_first_loss_is_that_of_a_guess(head):
    model = make(head=head) if head else make()
    model = model.clone(embed=Embed(width=64, vocabulary=1000))
    scores = jit(lambda key, ids: nn.init_with_output(lambda m: m(ids)[0], model)(key)[0])
    ids = jnp.asarray(np.random.default_rng(2).integers(0, 1000, (8, 33)), jnp.int32)
    logits = nn.meta.unbox(scores(jax.random.key(1), ids[:, :-1]))
    loss = -np.take_along_axis(np.asarray(jax.nn.log_softmax(logits)), np.asarray(ids)[:, 1:, None], -1).mean()
    if head is None:
        assert loss == pytest.approx(math.log(1000), rel=0.01)
    else:  # scores of variance 1 add half a nat, no more
        assert loss == pytest.approx(math.log(1000) + 0.5, rel=0.02)


def test_blocks_may_have_positions_of_their_own():
    """Gemma 3: local blocks turn faster than global ones. A bias may differ in heads."""
    local = Block(Attention(4, 1, 8, mask=SlidingWindow(4)), SwiGLU(24), positions=Alibi())
    model = make(RelativeBias(), blocks=(local, Block(Attention(2, 2, 8), SwiGLU(24))))
    params = begin(model)
    assert params["positions"]["table"].shape == (32, 2, 2)
    assert np.isfinite(jit(lambda p: model.apply({"params": p}, IDS)[0])(params)).all()


def test_what_cannot_be_is_refused_in_one_line():
    def refuses(model: Decoder, words: str):
        with pytest.raises(InputError, match=words):
            jax.eval_shape(model.init, jax.random.key(0), IDS)

    block = Block(Attention(2, 1, 8), SwiGLU(24))
    refuses(make(blocks=(block.clone(positions=Sinusoidal()),)), "Sinusoidal is added to the embedding")
    refuses(make(Alibi(), blocks=(block, Block(Attention(4, 1, 8), SwiGLU(24)))), "differ in heads")
    refuses(make(Learned(length=T - 1)), "12 tokens, but Learned")
    refuses(make().clone(embed=Embed(width=16)), "model.embed.vocabulary is not filled in")
    refuses(make(blocks=(Block(Attention(2, 1, 7), SwiGLU(24)),)), "must be even, not 7")


def test_filled_takes_what_is_open_from_the_data():
    open_ = make().clone(embed=Embed(width=16))
    filled = open_.filled(300, 64)
    assert (filled.embed.vocabulary, filled.context) == (300, 64) and filled.filled(300, 64) == filled
    kept = make(context=128).filled(VOCABULARY - 3, 64)  # more rows than tokens, as padded vocabularies have
    assert (kept.embed.vocabulary, kept.context) == (VOCABULARY, 128)
    with pytest.raises(InputError, match="vocabulary=50 is less than the tokenizer's 51"):
        make().filled(51, 64)
    with pytest.raises(InputError, match="12 positions, fewer than the 64"):
        make(Learned(length=12)).filled(VOCABULARY, 64)
