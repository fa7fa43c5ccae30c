"""The encoder: a set without positions, documents that keep to themselves, how it begins; and heads that judge."""

from __future__ import annotations

import functools
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from llm_jax.core.errors import InputError
from llm_jax.layers.attention import Attention, CrossAttention
from llm_jax.layers.block import Block, PostNorm
from llm_jax.layers.embedding import Embed, Head, Tied, Transformed
from llm_jax.layers.feedforward import FeedForward
from llm_jax.layers.masks import Full
from llm_jax.layers.norms import LayerNorm, NoNorm, RMSNorm
from llm_jax.layers.pooling import First, Last, Mean, Normalized, Pooler, Pooling
from llm_jax.layers.positions import Learned, NoPositions, Positions, RelativeBias, Rope
from llm_jax.layers.tokens import PADDING, Tokens
from llm_jax.models.decoder import Decoder
from llm_jax.models.encoder import Encoder
from llm_jax.models.encoder_decoder import EncoderDecoder
from llm_jax.models.heads import Classifier, Scorer
from llm_jax.models.stack import Stack
from llm_jax.models.transformer import Side

# These programs run once: compiling them is the cost.
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})

V, T = 40, 9
IDS = jnp.asarray(np.random.default_rng(0).integers(0, V, (2, T)), jnp.int32)
TYPES = jnp.asarray(np.random.default_rng(1).integers(0, 2, (2, T)), jnp.int32)


def make(positions: Positions | None = None, pooling: Pooling | None = None, **settings: Any) -> Encoder:
    block = Block(Attention(2, 2, 4, mask=Full(), bias=True, out_bias=True), FeedForward(20), LayerNorm(), PostNorm())
    settings = dict(types=2, head=Transformed()) | settings
    return Encoder(
        Embed(12, V), Stack((block,), 2), positions or Learned(length=20), pooling=pooling or Mean(), **settings
    )


def begin(model: Any) -> Any:
    """Parameters under which every part of the model matters."""
    params = jit(lambda key: nn.meta.unbox(model.begin(key)))(jax.random.key(0))
    return jax.tree.map(
        lambda p: p * 3 if p.ndim > 2 else p + 0.2 * jnp.cos(jnp.arange(p.size, dtype=jnp.float32).reshape(p.shape)),
        params,
    )


KINDS = [Learned(length=20), Rope(), RelativeBias(buckets=8, farthest=10, both_ways=True)]


@pytest.mark.parametrize("positions", KINDS, ids=lambda p: type(p).__name__)
def test_documents_alone_padded_and_packed_agree(positions):
    model = make(positions, Normalized(Mean()))
    params = begin(model)

    @jit
    def vectors(params, ids_BT, at, types_BT):
        x_BTD = model.apply({"params": params}, ids_BT, at, types_BT)
        return x_BTD, model.apply({"params": params}, x_BTD, at, method="pooled")

    whole = Tokens.of((2, T))
    alone, pooled = vectors(params, IDS, whole, TYPES)
    assert alone.shape == (2, T, 12) and pooled.shape == (2, 12)
    np.testing.assert_allclose(jnp.linalg.norm(pooled, axis=-1), 1.0, atol=1e-6)
    moved, _ = vectors(params, IDS.at[:, -1].set((IDS[:, -1] + 1) % V), whole, TYPES)
    assert (jnp.abs(moved - alone).max(-1) > 1e-4).all()  # every token reads all of its document

    at = Tokens.of((2, T + 3))
    at = Tokens(at.position_BT, at.segment_BT.at[:, T:].set(PADDING))
    longer = jnp.pad(IDS, ((0, 0), (0, 3)), constant_values=5)
    padded, pooled_padded = vectors(params, longer, at, jnp.pad(TYPES, ((0, 0), (0, 3))))
    np.testing.assert_allclose(padded[:, :T], alone, atol=1e-5)
    np.testing.assert_allclose(pooled_padded, pooled, atol=1e-5)

    at = Tokens(jnp.tile(jnp.arange(T, dtype=jnp.int32), 2)[None], jnp.repeat(jnp.arange(2, dtype=jnp.int32), T)[None])
    packed, _ = vectors(params, IDS.reshape(1, -1), at, TYPES.reshape(1, -1))
    np.testing.assert_allclose(packed[0], alone.reshape(-1, 12), atol=1e-5)


def test_without_positions_it_sees_a_set():
    order = np.random.default_rng(1).permutation(T)
    for positions, close in ((NoPositions(), True), (Rope(), False)):
        model = make(positions)
        run = jit(lambda p, ids, types, model=model: model.apply({"params": p}, ids, None, types))
        params = begin(model)
        moved, straight = run(params, IDS[:, order], TYPES[:, order]), run(params, IDS, TYPES)[:, order]
        assert np.allclose(moved, straight, atol=1e-5) is close
        assert np.abs(moved - straight).max() < 1e-5 or not close


@pytest.mark.parametrize("head", [Transformed(), Tied(bias=True)], ids=lambda head: type(head).__name__)
def test_the_first_loss_is_that_of_a_guess(head: Head):
    model = make(head=head).clone(embed=Embed(width=64, vocabulary=1000))
    ids = jnp.asarray(np.random.default_rng(2).integers(0, 1000, (8, 20)), jnp.int32)

    def loss(params):
        score_BTV: Any = model.apply({"params": params}, ids, method="all_scores")
        log_BTV = jax.nn.log_softmax(score_BTV)
        return -jnp.take_along_axis(log_BTV, jnp.roll(ids, 1, 1)[..., None], -1).mean()

    params = jit(lambda key: nn.meta.unbox(model.begin(key)))(jax.random.key(1))
    value, gradients = jit(jax.value_and_grad(loss))(params)
    assert value == pytest.approx(math.log(1000), rel=0.01)
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(gradients))
    unused = {jax.tree_util.keystr(path) for path, g in jax.tree_util.tree_leaves_with_path(gradients) if not g.any()}
    assert all("key']['bias" in path for path in unused)  # it moves all scores of a query alike


def test_the_masked_token_head_is_pytorch_s():
    """Dense, GELU, LayerNorm, then the embedding's own vectors and a bias: BERT's."""
    width, epsilon = 12, 1e-12
    embed, head = Embed(width, V), Transformed(norm=LayerNorm(epsilon))

    class Both(nn.Module):
        def setup(self):
            self.embed, self.head = embed.copy(), head.copy()

        def __call__(self, x_BTD):
            return self.head(x_BTD, self.embed)

    x_BTD = np.random.default_rng(3).normal(size=(2, 3, width)).astype(np.float32)
    params = jax.tree.map(
        lambda p: p + 0.3 * np.random.default_rng(p.size).normal(size=p.shape).astype(np.float32),
        nn.meta.unbox(Both().init(jax.random.key(0), x_BTD))["params"],
    )
    t = jax.tree.map(lambda p: torch.tensor(np.asarray(p)), params)
    dense, norm = t["head"]["transform"], t["head"]["transform_norm"]
    h = torch.nn.functional.gelu(torch.tensor(x_BTD) @ dense["kernel"] + dense["bias"])
    h = torch.nn.functional.layer_norm(h, (width,), norm["scale"], norm["bias"], epsilon)
    wanted = h @ t["embed"]["table"].T + t["head"]["bias"]
    ours: Any = Both().apply({"params": params}, x_BTD)
    np.testing.assert_allclose(ours, wanted.numpy(), atol=1e-5)


@pytest.mark.parametrize("pooling", [First(), Last(), Mean(), Pooler()], ids=lambda p: type(p).__name__)
def test_pooling_takes_what_it_says_and_no_padding(pooling):
    x_BTD = np.random.default_rng(4).normal(size=(2, 5, 6)).astype(np.float32)
    segment = jnp.asarray([[0, 0, 0, PADDING, PADDING], [PADDING, 0, 0, 0, 0]], jnp.int32)
    at = Tokens(jnp.zeros((2, 5), jnp.int32), segment)
    pooled, variables = pooling.init_with_output(jax.random.key(0), x_BTD, at)
    first, last = x_BTD[[0, 1], [0, 1]], x_BTD[[0, 1], [2, 4]]
    mean = np.stack([x_BTD[0, :3].mean(0), x_BTD[1, 1:].mean(0)])
    wanted = dict(First=first, Last=last, Mean=mean)
    if isinstance(pooling, Pooler):
        wanted["Pooler"] = np.tanh(first @ nn.meta.unbox(variables)["params"]["dense"]["kernel"])
    np.testing.assert_allclose(pooled, wanted[type(pooling).__name__], atol=1e-6)


def test_a_part_given_twice_is_two():
    norm, positions = LayerNorm(), Learned(length=20)
    block = Block(Attention(2, 1, 4), FeedForward(20), norm)
    side = Side(Stack((block,), 1), positions, norm, norm)
    model = EncoderDecoder(Embed(8, V), side, side.clone(stack=Stack((block.clone(cross=CrossAttention(2, 1, 4)),), 1)))
    params = jax.eval_shape(model.begin, jax.random.key(0))
    assert params["encoder"].keys() == params["decoder"].keys() == {"stack", "positions", "norm", "embed_norm"}
    model = make(norm=norm, embed_norm=norm)
    assert jax.eval_shape(model.begin, jax.random.key(0)).keys() >= {"norm", "embed_norm"}
    assert model == make(norm=LayerNorm(), embed_norm=LayerNorm())


def decoder() -> Decoder:
    return Decoder(Embed(12, V), Stack((Block(Attention(2, 1, 4), FeedForward(20)),), 2), Rope(), RMSNorm())


def test_a_scorer_values_each_text_so_far_and_rewards_the_whole():
    model = Scorer(decoder())
    params = begin(model)
    assert params["backbone"].keys() == {"embed", "stack", "norm"}  # a language model's own, but for its head
    at = Tokens.of((2, T))
    at = Tokens(at.position_BT, at.segment_BT.at[1, 6:].set(PADDING))

    @jit
    def run(params, ids):
        return model.apply({"params": params}, ids, at), model.apply({"params": params}, ids, at, method="reward")

    value_BT, reward_B = run(params, IDS)
    assert value_BT.shape == (2, T) and value_BT.dtype == reward_B.dtype == jnp.float32
    np.testing.assert_array_equal(reward_B, value_BT[jnp.arange(2), jnp.array([T - 1, 5])])
    later, _ = run(params, IDS.at[:, 4:].set((IDS[:, 4:] + 1) % V))
    np.testing.assert_array_equal(later[:, :4], value_BT[:, :4])
    hidden = jit(lambda p: decoder().apply({"params": p}, IDS, at, method="vectors"))(params["backbone"])
    head = params["head"]
    np.testing.assert_allclose(value_BT, hidden @ head["kernel"][:, 0] + head["bias"][0], atol=1e-5)


@pytest.mark.parametrize(
    "model", [Classifier(make(), 3), Classifier(decoder(), 5, Last(), bias=False)], ids=["encoder", "decoder"]
)
def test_a_classifier_scores_documents_and_learns(model):
    params = begin(model)
    at = Tokens.of((2, T))
    at = Tokens(at.position_BT, at.segment_BT.at[1, 6:].set(PADDING))

    def loss(params, ids):
        score_BO = model.apply({"params": params}, ids, at, dropout_key=jax.random.key(0))
        return -jax.nn.log_softmax(score_BO)[:, 1].mean(), score_BO

    run = jit(jax.value_and_grad(loss, has_aux=True))
    (_, score_BO), gradients = run(params, IDS)
    assert score_BO.shape == (2, model.classes) and score_BO.dtype == jnp.float32
    np.testing.assert_array_equal(run(params, IDS.at[1, 6:].set(0))[0][1], score_BO)  # padding says nothing
    assert jnp.abs(run(params, IDS.at[:, 0].set((IDS[:, 0] + 1) % V))[0][1] - score_BO).min() > 1e-5
    gradient: Any
    for path, gradient in jax.tree_util.tree_leaves_with_path(gradients):
        assert np.isfinite(gradient).all(), jax.tree_util.keystr(path)
    assert model.filled(V, 20).backbone.context == 20


def test_what_cannot_be_is_refused_in_one_line():
    def refuses(model: Any, words: str, *arguments: Any, method: str | None = None):
        with pytest.raises(InputError, match=words):
            jax.eval_shape(lambda key: model.init(key, *arguments, method=method), jax.random.key(0))

    refuses(make(types=0), "tells no kinds of text apart: set model.types", IDS, None, TYPES)
    refuses(make(head=None), "scores no tokens: give it model.head", IDS, method="all_scores")
    refuses(make(Learned(length=T - 1)), "9 tokens, but Learned", IDS)
    refuses(Classifier(decoder()), "Decoder tells no kinds of text apart", IDS, None, TYPES)
    cross = Block(Attention(2, 1, 4), FeedForward(8), cross=CrossAttention(2, 1, 4))
    reading, writing = (
        Side(Stack((block,), 1), Rope(), RMSNorm(), NoNorm()) for block in (cross.clone(cross=None), cross)
    )
    refuses(Scorer(EncoderDecoder(Embed(8, V), reading, writing)), "EncoderDecoder is no backbone of a head", IDS)
    refuses(Scorer(Classifier(decoder())), "Classifier is no backbone of a head", IDS)
