"""Every variant of every layer within a model: shape, finite gradients, and cached equal to full, under jit.

Model number i takes the i-th entry of every table, so an entry is enrolled by its line in the table.
"""

from __future__ import annotations

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm_jax.core.dims import INITS
from llm_jax.core.parts import override
from llm_jax.layers.attention import Attention
from llm_jax.layers.block import PLACEMENTS, Block
from llm_jax.layers.embedding import HEADS, Embed
from llm_jax.layers.feedforward import ACTIVATIONS, FEEDFORWARDS
from llm_jax.layers.kernels import KERNELS
from llm_jax.layers.masks import MASKS, Causal
from llm_jax.layers.moe import MIXTURES
from llm_jax.layers.norms import NORMS
from llm_jax.layers.positions import POSITIONS, SCALINGS, Rope
from llm_jax.layers.scoring import FEATURES
from llm_jax.layers.tokens import Tokens
from llm_jax.models.decoder import Decoder
from llm_jax.models.stack import REMAT, Stack
from llm_jax.objectives.next_token import NextToken

# These programs run once: compiling them is the cost.
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})

# kernels that take everything anywhere; test_kernels.py tries each with what it takes
WHOLE = {name: kernel for name, kernel in KERNELS.items() if kernel.takes == frozenset(FEATURES)}
LAYERS = [
    PLACEMENTS,
    HEADS,
    ACTIVATIONS,
    FEEDFORWARDS | MIXTURES,
    WHOLE,
    MASKS,
    NORMS,
    POSITIONS,
    SCALINGS,
    INITS,
    REMAT,
]
T, VOCABULARY = 6, 19


def pick(table: dict, number: int):
    return list(table.values())[number % len(table)]


def model(number: int) -> Decoder:
    """A local block with rotary positions, scaled; then one with the model's own positions and whatever comes next."""
    norm, activation = pick(NORMS, number)(), pick(ACTIVATIONS, number)()
    init = pick(INITS, number)()
    ffn = pick(FEEDFORWARDS | MIXTURES, number)(hidden=10, activation=activation, init=init)
    attention = Attention(2, 1, 4, mask=pick(MASKS, number)(), kernel=pick(WHOLE, number)(), norm=norm, soft_cap=9.0)
    placement = pick(PLACEMENTS, number)()
    scaled = Rope(scaling=pick(SCALINGS, number)(factor=2.0))
    blocks = (
        Block(attention, ffn, norm, placement),
        Block(attention.clone(mask=Causal()), ffn, norm, placement, positions=scaled),
    )
    stack = override(Stack(blocks, 1), "remat", list(REMAT)[number % len(REMAT)])
    return Decoder(
        Embed(8, VOCABULARY), stack, pick(POSITIONS, number)(), norm, head=pick(HEADS, number)(soft_cap=20.0)
    )


@pytest.mark.parametrize("number", range(max(map(len, LAYERS))))
def test_a_variant_within_a_model(number):
    made, objective = model(number), NextToken()
    mask = made.stack.pattern[0].attention.mask
    ids = jnp.asarray(np.random.default_rng(number).integers(0, VOCABULARY, (2, T)), jnp.int32)
    at = Tokens.of((2, T))
    batch = dict(tokens_BT=ids, targets_BT=jnp.roll(ids, -1, 1), weight_BT=jnp.ones((2, T)), bytes_BT=ids)
    batch |= dict(position_BT=at.position_BT, segment_BT=at.segment_BT)

    @jit
    def everything(key):
        params = nn.meta.unbox(made.init(key, ids))["params"]

        def loss(params):
            if mask.ahead() is None:  # refused by objectives that predict
                return (made.apply({"params": params}, ids, at)[0] ** 2).mean()
            sums = objective(made, params, None, batch, jax.random.key(1))
            return sums["loss"] / sums["weight"]

        caches, scores = made.empty_cache(2, T + 1, jnp.float32), []
        for low, high in ((0, 3), (3, 4), (4, T)):
            here = made.apply({"params": params}, ids[:, low:high], at.cut(low, high), caches=caches, start=low)
            scores, caches = [*scores, here[0]], here[1]
        full = made.apply({"params": params}, ids)[0]
        return jax.value_and_grad(loss)(params), full, jnp.concatenate(scores, 1)

    (loss, gradients), full, cached = everything(jax.random.key(0))
    assert full.shape == (2, T, VOCABULARY) and full.dtype == jnp.float32 and np.isfinite(full).all()
    assert np.isfinite(loss)
    for path, gradient in jax.tree_util.tree_leaves_with_path(gradients):
        assert np.isfinite(gradient).all(), jax.tree_util.keystr(path)
    allowed = mask.between(at, at)[0]
    ahead = mask.ahead()
    shown = T if ahead is None else ahead
    assert np.array_equal(np.triu(allowed, 1).any(0), (np.arange(T) > 0) & (np.arange(T) < shown)), "what ahead() says"
    if not np.triu(allowed, 1).any():  # a mask that looks ahead sees more in one call than in several
        np.testing.assert_allclose(cached, full, atol=1e-5)
