"""The encoder-decoder: what a target may know of its source, packing, and generation that reads the source once."""

from __future__ import annotations

import functools
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm_jax.core.errors import InputError
from llm_jax.inference.generate import Generation, prepare, row_keys
from llm_jax.inference.sampling import Sampling
from llm_jax.layers.attention import Attention, CrossAttention
from llm_jax.layers.block import Block
from llm_jax.layers.embedding import Embed
from llm_jax.layers.feedforward import FeedForward
from llm_jax.layers.masks import Full
from llm_jax.layers.norms import NoNorm, RMSNorm
from llm_jax.layers.positions import Learned, Positions, RelativeBias, Rope, Sinusoidal
from llm_jax.layers.tokens import Tokens
from llm_jax.models.encoder_decoder import EncoderDecoder
from llm_jax.models.stack import Stack
from llm_jax.models.transformer import Side

jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})

V, S, T = 30, 7, 5
KINDS = [
    (Learned(length=20), Learned(length=20)),
    (Sinusoidal(), Sinusoidal()),
    (Rope(), Rope()),
    (RelativeBias(buckets=8, farthest=10, both_ways=True), RelativeBias(buckets=8, farthest=10)),
]


def make(encoder: Positions, decoder: Positions, run: Literal["loop", "scan"] = "loop") -> EncoderDecoder:
    ffn = FeedForward(hidden=24)
    reading = Block(Attention(2, 1, 8, mask=Full()), ffn)
    writing = Block(Attention(2, 1, 8), ffn, cross=CrossAttention(2, 2, 4))

    def side(block: Block, positions: Positions) -> Side:
        return Side(Stack((block,), 2, run=run), positions, RMSNorm(), NoNorm())

    embed = Embed(width=16, vocabulary=V)
    return EncoderDecoder(embed, side(reading, encoder), side(writing, decoder), start=1, context=20, source_context=20)


def begin(model: EncoderDecoder):
    params = jit(lambda key: nn.meta.unbox(model.begin(key)))(jax.random.key(0))
    return jax.tree.map(lambda p: p * 3 if p.ndim > 2 else p + 0.2, params)


SOURCE = jnp.asarray(np.random.default_rng(0).integers(0, V, (2, S)), jnp.int32)
TARGET = jnp.asarray(np.random.default_rng(1).integers(0, V, (2, T)), jnp.int32)


def scores(model: EncoderDecoder, params, source, target, source_at=None, at=None):
    @jit
    def run(params):
        read = model.apply({"params": params}, source, source_at, method="encode")
        return model.apply({"params": params}, target, at, source=read)[0]

    return run(params)


@pytest.mark.parametrize("kinds", KINDS, ids=lambda kinds: type(kinds[0]).__name__)
def test_targets_are_causal_and_read_all_of_the_source(kinds):
    model = make(*kinds)
    params = begin(model)
    before = scores(model, params, SOURCE, TARGET)
    assert before.shape == (2, T, V) and before.dtype == jnp.float32
    later = scores(model, params, SOURCE, TARGET.at[:, 3].add(1) % V)
    np.testing.assert_array_equal(later[:, :3], before[:, :3])
    other = scores(model, params, SOURCE.at[:, -1].add(1) % V, TARGET)
    assert (jnp.abs(other - before).max(-1) > 1e-4).all()


def test_packed_pairs_are_as_if_alone():
    model = make(*KINDS[3])
    params = begin(model)
    alone = [scores(model, params, SOURCE[i : i + 1], TARGET[i : i + 1])[0] for i in range(2)]

    def packed(length):
        position = jnp.tile(jnp.arange(length, dtype=jnp.int32), 2)[None]
        return Tokens(position, jnp.repeat(jnp.arange(2, dtype=jnp.int32), length)[None])

    both: Any = scores(model, params, SOURCE.reshape(1, -1), TARGET.reshape(1, -1), packed(S), packed(T))
    np.testing.assert_allclose(both[0], jnp.concatenate(alone), atol=2e-6)


@pytest.mark.parametrize("run", ["loop", "scan"])
@pytest.mark.parametrize("kinds", KINDS, ids=lambda kinds: type(kinds[0]).__name__)
def test_generation_is_the_uncached_argmax(kinds, run):
    model = make(*kinds, run=run)
    params: Any = begin(model)
    prompts = [SOURCE[0].tolist(), SOURCE[1, :4].tolist()]
    generation = Generation(
        model, prepare(model, params, jnp.float32), prompts, max_tokens=6, sampler=Sampling(temperature=0.0),
        key_B=row_keys(0, range(2)), stops=(), vocabulary=V, dtype=jnp.float32,
    )  # fmt: skip
    written: list[list[int]] = [[], []]
    while not generation.finished:
        for row, new in enumerate(generation.advance()):
            written[row] += new
    for prompt, text in zip(prompts, written, strict=True):
        source, target = jnp.asarray([prompt], jnp.int32), [model.start]
        for token in text:
            best = scores(model, params, source, jnp.asarray([target], jnp.int32))[0, -1]
            assert best.max() - best[token] < 1e-5
            target.append(token)


def test_cross_attention_without_a_source_is_refused():
    model = make(*KINDS[2])
    with pytest.raises(InputError, match="cross-attention has no source"):
        model.apply({"params": begin(model)}, TARGET, source=None)
