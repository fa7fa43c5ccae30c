"""Counts by hand."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest

from llm_jax.layers.attention import Attention
from llm_jax.layers.block import Block
from llm_jax.layers.embedding import Embed, Untied
from llm_jax.layers.feedforward import FeedForward, Gelu, SwiGLU
from llm_jax.layers.masks import Causal, SlidingWindow
from llm_jax.layers.moe import MoE
from llm_jax.layers.norms import LayerNorm
from llm_jax.layers.positions import Learned
from llm_jax.models import flops, presets
from llm_jax.models.decoder import Decoder
from llm_jax.models.heads import Scorer
from llm_jax.models.recurrent import RecurrentDecoder
from llm_jax.models.stack import Stack


def test_gpt2_has_124439808_parameters():
    attention = Attention(key_heads=12, head=64, bias=True, out_bias=True)
    block = Block(attention, FeedForward(3072, Gelu(tanh=True), bias=True), LayerNorm())
    model = Decoder(Embed(768, 50257), Stack((block,), 12), Learned(1024), LayerNorm())
    boxed = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 8), jnp.int32))["params"]
    assert flops.count(boxed) == 124_439_808
    matrices = 12 * 12 * 768 * 768
    assert flops.matrix_weights(boxed) == matrices
    assert model.flops_per_token(boxed, 1024) == 6 * (matrices + 50257 * 768) + 12 * 12 * 768 * 1024


def test_of_the_experts_only_the_chosen_count():
    block = Block(Attention(key_heads=2, head=8), MoE(40, experts=6, top_k=2))
    model = Decoder(Embed(16, 100), Stack((block,), 5))
    boxed = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 8), jnp.int32))["params"]
    expert, rest = 3 * 16 * 40, 4 * 16 * 16 + 6 * 16
    assert flops.matrix_weights(boxed) == 5 * (2 * expert + rest)
    assert flops.active(boxed) == flops.count(boxed) - 5 * 4 * expert
    assert model.flops_per_token(boxed, 7) == 6 * (5 * (2 * expert + rest) + 1600) + 12 * 5 * 16 * 7


@pytest.mark.parametrize("head", [None, Untied()], ids=str)
def test_grouped_heads_gates_and_heads_of_their_own(head):
    block = Block(Attention(key_heads=2, group=3, head=8), SwiGLU(hidden=40))
    model = Decoder(Embed(16, 100), Stack((block, block), 5), **({"head": head} if head else {}))
    boxed = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 8), jnp.int32))["params"]
    layer = 16 * 48 + 2 * 16 * 16 + 48 * 16 + 3 * 16 * 40
    matrices = 10 * layer + 1600  # one of the two tables gives the scores; a lookup in the other is no product
    assert flops.matrix_weights(boxed) == matrices - (0 if head else 1600)  # the embedding's table is no kernel
    assert flops.count(boxed) == matrices + 10 * 2 * 16 + 16 + (1600 if head else 0)
    assert model.flops_per_token(boxed, 7) == 6 * matrices + 12 * 10 * 48 * 7


def test_a_head_on_any_backbone_has_a_cost():
    block = Block(Attention(key_heads=2, head=8), SwiGLU(hidden=40))
    for backbone, attention in (
        (Decoder(Embed(16, 100), Stack((block,), 5)), 12 * 5 * 16 * 7), (RecurrentDecoder(Embed(16, 100)), 0),
    ):  # fmt: skip
        model = Scorer(backbone)
        boxed = jax.eval_shape(model.begin, jax.random.key(0))
        assert model.flops_per_token(boxed, 7) == 6 * flops.matrix_weights(boxed) + attention


def test_a_window_costs_no_more_than_it_sees():
    """Three layers in four see 5 tokens, each of 2 heads of 8; the fourth sees the row."""
    local, ffn = Attention(key_heads=2, head=8, mask=SlidingWindow(5) & Causal()), SwiGLU(hidden=40)
    whole = Block(local.clone(mask=Causal()), ffn)
    model = Decoder(Embed(16, 100), Stack((Block(local, ffn),) * 3 + (whole,), 2))
    boxed = jax.eval_shape(model.begin, jax.random.key(0))
    matrices = 6 * (flops.matrix_weights(boxed) + 1600)
    assert model.flops_per_token(boxed, 7) == matrices + 12 * 2 * 16 * (3 * 5 + 7)
    assert model.flops_per_token(boxed, 4) == matrices + 12 * 2 * 16 * 4 * 4, "a row that is shorter than the window"


def test_of_gemmas_layers_fifteen_see_512_tokens():
    model = presets.gemma3_270m()
    boxed = jax.eval_shape(model.begin, jax.random.key(0))
    norms = 18 * (4 * 640 + 2 * 256) + 640
    cost = 6 * (268_098_176 - norms) + 12 * 4 * 256 * (15 * 512 + 3 * 32_768)
    assert model.flops_per_token(boxed, 32_768) == cost
