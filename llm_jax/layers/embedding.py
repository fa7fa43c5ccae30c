"""From token ids to vectors, and back to scores of tokens."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from llm_jax.core.dims import Einsum, FanIn, Fill, Init, Normal, contract, lookup, shard, weigh
from llm_jax.core.errors import InputError
from llm_jax.core.parts import Count, NonNegative, Positive, Rate, Size
from llm_jax.layers.dropout import dropout
from llm_jax.layers.feedforward import Activation, Gelu
from llm_jax.layers.norms import LayerNorm, Norm


class Embed(nn.Module):
    """A learned vector for each of V tokens. `vocabulary` 0 stands for the tokenizer's, filled in when a run begins."""

    width: Size
    vocabulary: Count = 0
    scale: Positive = 1.0  # on the vectors that enter the model (the original Transformer and Gemma: sqrt(width))
    dropout: Rate = 0.0  # of what enters the stack: with its positions
    init: Init = Normal(0.02)

    def setup(self):
        if self.vocabulary < 1:
            raise InputError("model.embed.vocabulary is not filled in: set it, or let a run take it from its tokenizer")
        self.table_VD = weigh(self, "table", "VD", dict(V=self.vocabulary, D=self.width), self.init, self.width)

    def __call__(self, tokens_BT: jax.Array) -> jax.Array:
        table_VD = shard(self.table_VD, "V.")  # gathered over fsdp: a lookup in a table split twice is copied whole
        x_BTD = shard(lookup(table_VD, tokens_BT), "BTD")
        if self.scale != 1.0:
            x_BTD = x_BTD * jnp.asarray(self.scale, x_BTD.dtype)
        return x_BTD

    def drop(self, x_BTD: jax.Array, dropout_key: jax.Array | None) -> jax.Array:
        return dropout(x_BTD, self.dropout, dropout_key)

    def scores(self, x_BTD: jax.Array) -> jax.Array:
        """[B, T, V] float32: how well each vector matches each token's."""
        return contract("BTD,VD->BTV", x_BTD, self.table_VD)


class Head(nn.Module):
    """The last layer: from vectors [B, T, D] to a score for each token [B, T, V], in float32."""

    soft_cap: NonNegative = 0.0  # scores are kept within +- soft_cap by a tanh (Gemma 2)
    bias: bool = False  # a number for each token, added to its score

    def scores(self, x_BTD: jax.Array, embed: Embed) -> jax.Array:
        raise NotImplementedError

    def ties(self) -> bool:
        """Whether scores are products with the embedding's own vectors."""
        return True

    @nn.compact
    def __call__(self, x_BTD: jax.Array, embed: Embed) -> jax.Array:
        score_BTV = self.scores(x_BTD, embed)
        if self.bias:
            bias_V = weigh(self, "bias", "V", dict(V=embed.vocabulary), Fill(0.0), 1)
            score_BTV = score_BTV + bias_V[None, None].astype(jnp.float32)
        score_BTV = shard(score_BTV, "BTV")
        return self.soft_cap * jnp.tanh(score_BTV / self.soft_cap) if self.soft_cap else score_BTV


class Tied(Head):
    """Scores are products with the embedding's own vectors (Press & Wolf 2017), of the model's vectors times `scale`.

    (T5 multiplies by 1 / sqrt(width).)
    """

    scale: Positive = 1.0

    def scores(self, x_BTD, embed):
        return embed.scores(x_BTD * jnp.asarray(self.scale, x_BTD.dtype) if self.scale != 1.0 else x_BTD)


class Transformed(Head):
    """A layer, an activation and a norm, then products with the embedding's vectors (BERT's masked-token head)."""

    bias: bool = True
    activation: Activation = Gelu()
    norm: Norm = LayerNorm(1e-12)
    init: Init = FanIn()

    def scores(self, x_BTD, embed):
        h_BTF = Einsum("BTD,DF->BTF", dict(F=embed.width), True, self.init, name="transform")(x_BTD)
        return embed.scores(self.norm.copy(name="transform_norm")(self.activation(h_BTF), "D"))


class Untied(Head):
    """Scores come from a matrix of their own."""

    init: Init = FanIn()

    def ties(self):
        return False

    def scores(self, x_BTD, embed):
        sizes = dict(V=embed.vocabulary, D=embed.width)
        return contract("BTD,DV->BTV", x_BTD, weigh(self, "kernel", "DV", sizes, self.init, embed.width))


HEADS = dict(Tied=Tied, Untied=Untied, Transformed=Transformed)
