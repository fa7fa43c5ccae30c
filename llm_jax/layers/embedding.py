"""From token ids to vectors, and back to scores of tokens."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from llm_jax.core.alphabet import FanIn, Fill, Init, Normal, contract, lookup, shard, weigh
from llm_jax.core.parts import Count, Rate, Size
from llm_jax.core.tables import InputError
from llm_jax.layers.dropout import dropout


class Embed(nn.Module):
    """A learned vector for each of V tokens. `vocabulary` 0 stands for the tokenizer's, filled in when a run begins."""

    width: Size
    vocabulary: Count = 0
    scale: float = 1.0  # on the vectors that enter the model (the original Transformer and Gemma: sqrt(width))
    dropout: Rate = 0.0
    init: Init = Normal(0.02)

    def setup(self):
        if self.vocabulary < 1:
            raise InputError("model.embed.vocabulary is not filled in: set it, or let a run take it from its tokenizer")
        self.table_VD = weigh(self, "table", "VD", dict(V=self.vocabulary, D=self.width), self.init, self.width)

    def __call__(self, tokens_BT: jax.Array, dropout_key: jax.Array | None = None) -> jax.Array:
        table_VD = shard(self.table_VD, "V.")  # gathered over fsdp: a lookup in a table split twice is copied whole
        x_BTD = shard(lookup(table_VD, tokens_BT), "BTD")
        if self.scale != 1.0:
            x_BTD = x_BTD * jnp.asarray(self.scale, x_BTD.dtype)
        return dropout(x_BTD, self.dropout, dropout_key)

    def scores(self, x_BTD: jax.Array) -> jax.Array:
        """[B, T, V] float32: how well each vector matches each token's."""
        return contract("BTD,VD->BTV", x_BTD, self.table_VD)


class Head(nn.Module):
    """The last layer: from vectors [B, T, D] to a score for each token [B, T, V], in float32."""

    soft_cap: float = 0.0  # scores are kept within +- soft_cap by a tanh (Gemma 2)

    def scores(self, x_BTD: jax.Array, embed: Embed) -> jax.Array:
        raise NotImplementedError

    def __call__(self, x_BTD: jax.Array, embed: Embed) -> jax.Array:
        score_BTV = shard(self.scores(x_BTD, embed), "BTV")
        return self.soft_cap * jnp.tanh(score_BTV / self.soft_cap) if self.soft_cap else score_BTV


class Tied(Head):
    """Scores are products with the embedding's own vectors (Press & Wolf 2017)."""

    def scores(self, x_BTD, embed):
        return embed.scores(x_BTD)


class Untied(Head):
    """Scores come from a matrix of their own."""

    bias: bool = False
    init: Init = FanIn()

    @nn.compact
    def scores(self, x_BTD, embed):
        sizes = dict(V=embed.vocabulary, D=embed.width)
        score_BTV = contract("BTD,DV->BTV", x_BTD, weigh(self, "kernel", "DV", sizes, self.init, embed.width))
        if self.bias:
            score_BTV += weigh(self, "bias", "V", sizes, Fill(0.0), 1)[None, None].astype(jnp.float32)
        return score_BTV


HEADS = dict(Tied=Tied, Untied=Untied)
