"""What every model promises: a part that stands in two places has parameters in each, whoever made it."""

from __future__ import annotations

import json
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm_jax.core import serialization
from llm_jax.core.errors import InputError
from llm_jax.layers.attention import Attention, CrossAttention
from llm_jax.layers.block import Block
from llm_jax.layers.embedding import Embed, Transformed
from llm_jax.layers.feedforward import SwiGLU
from llm_jax.layers.masks import Causal, Full, Prefix, SlidingWindow
from llm_jax.layers.norms import RMSNorm
from llm_jax.layers.pooling import Mean
from llm_jax.layers.positions import Learned, Rope
from llm_jax.layers.tokens import Tokens
from llm_jax.models.decoder import Decoder
from llm_jax.models.encoder import Encoder
from llm_jax.models.encoder_decoder import EncoderDecoder
from llm_jax.models.model import Generator, Model
from llm_jax.models.stack import Stack
from llm_jax.models.transformer import Side

NORM, PLACES = RMSNorm(), Learned(9)
EMBED = Embed(8, 20)
READING = Block(Attention(2, 1, 4, mask=Full()), SwiGLU(6), NORM)
WRITING = Block(Attention(2, 1, 4), SwiGLU(6), NORM, cross=CrossAttention(2, 1, 4))


def sided() -> EncoderDecoder:
    reader, writer = (Side(Stack((block,), 2), PLACES, NORM, NORM) for block in (READING, WRITING))
    return EncoderDecoder(EMBED, reader, writer, context=5, source_context=7)


MODELS = [
    Decoder(EMBED, Stack((WRITING.clone(cross=None),), 2), PLACES, NORM, embed_norm=NORM),
    Encoder(EMBED, Stack((READING,), 2), PLACES, NORM, Transformed(norm=NORM), embed_norm=NORM),
    sided(),
]


def shapes(model: Any) -> Any:
    boxed = jax.eval_shape(model.begin, jax.random.key(0))
    return jax.tree.map(lambda leaf: leaf.shape, boxed)


@pytest.mark.parametrize("model", MODELS, ids=lambda model: type(model).__name__)
def test_a_part_in_two_places_is_two_parts(model):
    """As it is in the manifest, from which checkpoints are restored."""
    again = serialization.from_json(json.loads(json.dumps(serialization.to_json(model))))
    assert again == model and shapes(again) == shapes(model) == shapes(model.clone())
    found = shapes(model)
    if isinstance(model, EncoderDecoder):
        places = [found[side][part] for side in ("encoder", "decoder") for part in ("norm", "embed_norm", "positions")]
    else:
        places = [found["norm"], found["embed_norm"]]
    assert all(places)


def test_a_bound_model_keeps_its_parameters():
    model, ids = MODELS[0], jnp.asarray([[3, 1, 4]], jnp.int32)

    @jax.jit
    def both(key):
        params = nn.meta.unbox(model.begin(key))
        return model.bind({"params": params})(ids)[0], model.apply({"params": params}, ids)[0]

    np.testing.assert_array_equal(*both(jax.random.key(0)))


def test_limits():
    assert Decoder(EMBED, Stack((READING,), 1), Rope()).limit() is None
    assert Decoder(EMBED, Stack((READING,), 1), PLACES).limit() == 9
    assert Decoder(EMBED, Stack((READING,), 1), PLACES, context=4).limit() == 4
    assert Encoder(EMBED, Stack((READING,), 1), PLACES).limit() == 9
    model = sided()
    assert (model.limit(), model.reads()) == (5, 7) and model.clone(source_context=0).reads() == 9
    assert MODELS[0].reads() == MODELS[0].limit()
    assert Model().flops_per_token({}, 3) == 0 and Generator().opening() is None
    assert model.clone(start=0).opening() == (0,) and model.clone(start=0, forced=2).opening() == (0, 2)


def test_what_a_generator_sees_ahead():
    def ahead(*masks):
        blocks = tuple(Block(Attention(2, 1, 4, mask=mask), SwiGLU(6)) for mask in masks)
        return Decoder(EMBED, Stack(blocks, 1)).ahead()

    assert ahead(Causal(), SlidingWindow(3)) == 0 and ahead(Causal(), Prefix(4), Prefix(2)) == 4
    with pytest.raises(InputError, match=r"model.stack.pattern.1.attention.mask=Full\(\) lets a token see the one"):
        ahead(Causal(), Full())


def test_an_encoder_says_what_it_lacks():
    model, ids = Encoder(EMBED, Stack((READING,), 1), PLACES), np.zeros((1, 3), np.int32)
    with pytest.raises(InputError, match=r"scores no tokens: give it model\.head"):
        jax.eval_shape(lambda key: model.init(key, np.zeros((1, 3, 8), np.float32), method="score"), jax.random.key(0))
    with pytest.raises(InputError, match=r"tells no kinds of text apart: set model\.types"):
        jax.eval_shape(lambda key: model.init(key, ids, None, ids), jax.random.key(0))


def test_a_document_is_pooled_without_its_padding():
    """Its vectors, and their mean, do not depend on where in the row it stands."""
    model: Any = MODELS[1].clone(pooling=Mean(), types=2)
    alone = np.asarray([[3, 1, 4]], np.int32)
    padded = np.asarray([[0, 0, 3, 1, 4, 0]], np.int32)
    at = Tokens(jnp.asarray([[0, 0, 0, 1, 2, 0]]), jnp.asarray([[-1, -1, 0, 0, 0, -1]]))
    kinds = jnp.asarray([[0, 1, 1]])

    @jax.jit
    def vectors(key):
        params = model.init(key, alone)

        def read(ids, at, kinds):
            x_BTD = model.apply(params, ids, at, kinds)
            return x_BTD, model.apply(params, x_BTD, at, method="pooled")

        wide = jnp.pad(kinds, ((0, 0), (2, 1)))
        return read(alone, Tokens.of((1, 3)), kinds), read(padded, at, wide), read(alone, Tokens.of((1, 3)), None)

    (x_BTD, pooled_BD), (wide_BTD, wide_BD), (first_BTD, _) = vectors(jax.random.key(0))
    np.testing.assert_allclose(wide_BTD[:, 2:5], x_BTD, atol=1e-5)
    np.testing.assert_allclose(wide_BD, pooled_BD, atol=1e-5)
    np.testing.assert_allclose(pooled_BD, np.asarray(x_BTD).mean(1), atol=1e-6)
    assert np.abs(first_BTD[:, 1:] - x_BTD[:, 1:]).max() > 1e-4, "the second kind of text has a vector of its own"


def test_filled_takes_both_lengths_from_the_data():
    model: Any = sided().clone(embed=Embed(8), context=0, source_context=0)
    filled = model.filled(30, 8, source=8)
    assert (filled.embed.vocabulary, filled.context, filled.source_context) == (30, 8, 8)
    with pytest.raises(InputError, match=r"model\.decoder\.positions has 9 positions, fewer than the 10"):
        model.filled(30, 10)
    encoder: Any = MODELS[1].clone(embed=Embed(8))
    assert (encoder.filled(30, 8).embed.vocabulary, encoder.filled(30, 8).context) == (30, 8)
    with pytest.raises(InputError, match="vocabulary=20 is less than the tokenizer's 30"):
        MODELS[1].filled(30, 8)
