"""One vector for a document, from the vectors of its tokens."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from llm_jax.core.dims import Einsum, FanIn, Init
from llm_jax.layers.tokens import PADDING, Tokens


class Pooling(nn.Module):
    """`pooling(x_BTD, at) -> [B, D]`. A row holds one document; its padding does not count."""

    def __call__(self, x_BTD: jax.Array, at: Tokens) -> jax.Array:
        raise NotImplementedError


class First(Pooling):
    """The first token's (BERT's [CLS], before its pooler)."""

    def __call__(self, x_BTD, at):
        return _at(x_BTD, (at.segment_BT != PADDING).argmax(1))


class Last(Pooling):
    """The last token's: the only one that has read all of the text, where attention is causal."""

    def __call__(self, x_BTD, at):
        length = x_BTD.shape[1]
        return _at(x_BTD, length - 1 - (at.segment_BT != PADDING)[:, ::-1].argmax(1))


class Mean(Pooling):
    """The mean over the tokens (Reimers & Gurevych 2019), in float32."""

    def __call__(self, x_BTD, at):
        real_BT1 = (at.segment_BT != PADDING)[..., None].astype(jnp.float32)
        total_BD = (x_BTD.astype(jnp.float32) * real_BT1).sum(1)
        return (total_BD / jnp.maximum(real_BT1.sum(1), 1.0)).astype(x_BTD.dtype)


class Pooler(Pooling):
    """The first token's through a layer and a tanh (BERT)."""

    init: Init = FanIn()

    @nn.compact
    def __call__(self, x_BTD, at):
        first_BD = First(parent=None)(x_BTD, at)
        return jnp.tanh(Einsum("BD,DF->BF", dict(F=x_BTD.shape[-1]), True, self.init, name="dense")(first_BD))


class Normalized(Pooling):
    """What another pooling gives, divided by its length: products of two such vectors are their cosine."""

    pooling: Pooling = Mean()

    @nn.compact
    def __call__(self, x_BTD, at):
        wide_BD = self.pooling(x_BTD, at).astype(jnp.float32)
        length_B1 = jnp.sqrt((wide_BD * wide_BD).sum(-1, keepdims=True))
        return (wide_BD / jnp.maximum(length_B1, 1e-12)).astype(x_BTD.dtype)


def _at(x_BTD: jax.Array, index_B: jax.Array) -> jax.Array:
    return jnp.take_along_axis(x_BTD, index_B[:, None, None], axis=1)[:, 0]


POOLINGS = dict(First=First, Last=Last, Mean=Mean, Pooler=Pooler, Normalized=Normalized)
