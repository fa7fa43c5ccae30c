"""Every variant of every layer within an encoder, an encoder-decoder and a judge: shape, gradients, cached as full.

Model number i takes the i-th entry of every table, so an entry is enrolled by its line in the table.
"""

from __future__ import annotations

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm_jax.layers.attention import ATTENTIONS, Attention, CrossAttention
from llm_jax.layers.block import PLACEMENTS, Block
from llm_jax.layers.embedding import HEADS, Embed
from llm_jax.layers.feedforward import FEEDFORWARDS
from llm_jax.layers.kernels import KERNELS
from llm_jax.layers.masks import Full
from llm_jax.layers.norms import NORMS
from llm_jax.layers.pooling import POOLINGS
from llm_jax.layers.positions import POSITIONS
from llm_jax.layers.scoring import FEATURES
from llm_jax.models import decoder, encoder, encoder_decoder, heads
from llm_jax.models.decoder import Decoder
from llm_jax.models.encoder import Encoder
from llm_jax.models.encoder_decoder import EncoderDecoder
from llm_jax.models.heads import Classifier, Scorer
from llm_jax.models.stack import Stack
from llm_jax.models.transformer import Side

# These programs run once: compiling them is the cost.
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})

WHOLE = {name: kernel for name, kernel in KERNELS.items() if kernel.takes == frozenset(FEATURES)}
LAYERS = [PLACEMENTS, HEADS, FEEDFORWARDS, WHOLE, NORMS, POSITIONS, POOLINGS]
T, S, VOCABULARY = 5, 4, 19


def pick(table: dict, number: int) -> Any:
    return list(table.values())[number % len(table)]


def block(number: int, **settings: Any) -> Block:
    ways = dict(kernel=pick(WHOLE, number)(), norm=pick(NORMS, number)())
    cross = CrossAttention(2, 2, 4, **ways) if settings.pop("cross", False) else None
    ffn = pick(FEEDFORWARDS, number)(hidden=10)
    return Block(
        Attention(2, 1, 4, **ways, **settings), ffn, pick(NORMS, number)(), pick(PLACEMENTS, number)(), cross=cross
    )


def positions(number: int, both_ways: bool = False) -> Any:
    cls = pick(POSITIONS, number)
    return cls(both_ways=True) if both_ways and hasattr(cls, "both_ways") else cls()


def read(number: int) -> Encoder:
    return Encoder(
        Embed(8, VOCABULARY), Stack((block(number, mask=Full()),), 1), positions(number, True), pick(NORMS, number)(),
        pick(HEADS, number)(), types=number % 3, pooling=pick(POOLINGS, number)(),
    )  # fmt: skip


def translate(number: int) -> EncoderDecoder:
    def side(one: Block, both_ways: bool) -> Side:
        return Side(Stack((one,), 1), positions(number, both_ways), pick(NORMS, number)(), pick(NORMS, number + 1)())

    reading, writing = side(block(number, mask=Full()), True), side(block(number, cross=True), False)
    return EncoderDecoder(Embed(8, VOCABULARY), reading, writing, pick(HEADS, number)(soft_cap=20.0), start=1)


def judge(number: int) -> Classifier | Scorer:
    backbone = Decoder(Embed(8, VOCABULARY), Stack((block(number),), 1), positions(number), pick(NORMS, number)())
    return Scorer(backbone) if number % 2 else Classifier(backbone, 3, pick(POOLINGS, number)())


def finite(gradients: Any) -> None:
    for path, gradient in jax.tree_util.tree_leaves_with_path(gradients):
        assert np.isfinite(gradient).all(), jax.tree_util.keystr(path)


IDS = jnp.asarray(np.random.default_rng(0).integers(0, VOCABULARY, (2, T)), jnp.int32)


@pytest.mark.parametrize("number", range(max(map(len, LAYERS))))
def test_a_variant_within_an_encoder_and_a_judge(number):
    model, other = read(number), judge(number)

    @jit
    def everything(key):
        params, more = nn.meta.unbox(model.begin(key)), nn.meta.unbox(other.begin(key))

        def loss(params, more):
            x_BTD: Any = model.apply({"params": params}, IDS)
            pooled: Any = model.apply({"params": params}, x_BTD, method="pooled")
            score: Any = model.apply({"params": params}, x_BTD, method="score")
            judged: Any = other.apply({"params": more}, IDS)
            return (score**2).mean() + (pooled**2).sum() + (judged**2).sum(), (pooled, score, judged)

        return jax.value_and_grad(loss, (0, 1), has_aux=True)(params, more)

    (value, (pooled, score, judged)), gradients = everything(jax.random.key(0))
    assert pooled.shape == (2, 8) and score.shape == (2, T, VOCABULARY) and score.dtype == jnp.float32
    assert judged.shape == ((2, T) if isinstance(other, Scorer) else (2, 3)) and judged.dtype == jnp.float32
    assert np.isfinite(value)
    finite(gradients)


@pytest.mark.parametrize("number", range(max(map(len, LAYERS))))
def test_a_variant_within_an_encoder_decoder(number):
    model = translate(number)
    begun_BT = IDS.at[:, 0].set(model.start)
    batch = dict(tokens_BT=begun_BT, source_BS=IDS[:, :S])
    for name, ids in (("", IDS), ("source_", IDS[:, :S])):
        letters = "BS" if name else "BT"
        batch[f"{name}position_{letters}"] = jnp.broadcast_to(jnp.arange(ids.shape[1])[None], ids.shape)
        batch[f"{name}segment_{letters}"] = jnp.zeros_like(ids)

    @jit
    def everything(key):
        params = nn.meta.unbox(model.begin(key))

        def loss(params):
            score: Any = model.apply({"params": params}, batch, jax.random.key(1), method="predict")
            return (score**2).mean(), score

        source: Any = model.apply({"params": params}, IDS[:, :S], method="encode")
        caches, scores = model.empty_cache(2, T, jnp.float32), []
        for low, high in ((0, T - 1), (T - 1, T)):
            at = type(source.tokens)(batch["position_BT"][:, low:high], batch["segment_BT"][:, low:high])
            given = source if not low else None  # once read, the source is in the caches
            here = model.apply({"params": params}, begun_BT[:, low:high], at, caches=caches, start=low, source=given)
            scores, caches = [*scores, here[0]], here[1]
        return jax.value_and_grad(loss, has_aux=True)(params), jnp.concatenate(scores, 1)

    ((value, full), gradients), cached = everything(jax.random.key(0))
    assert full.shape == (2, T, VOCABULARY) and full.dtype == jnp.float32 and np.isfinite(value)
    np.testing.assert_allclose(cached, full, atol=1e-5)
    finite(gradients)


def test_every_family_and_attention_is_tried_here():
    tried = {Decoder, Encoder, EncoderDecoder, Classifier, Scorer}
    assert {cls for file in (decoder, encoder, encoder_decoder, heads) for cls in file.MODELS.values()} == tried
    assert set(ATTENTIONS.values()) == {Attention, CrossAttention}
