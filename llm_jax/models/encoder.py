"""The encoder: every token reads all of its document, before and after (BERT)."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from llm_jax.core.dims import Init, Normal, lookup, weigh
from llm_jax.core.errors import InputError
from llm_jax.core.parts import Count, Size, replace
from llm_jax.layers.embedding import Embed, Head
from llm_jax.layers.norms import LayerNorm, NoNorm, Norm
from llm_jax.layers.pooling import Mean, Pooling
from llm_jax.layers.positions import Learned, Positions
from llm_jax.layers.tokens import Tokens
from llm_jax.models.flops import attention_flops, matrix_weights
from llm_jax.models.model import Model
from llm_jax.models.stack import Stack
from llm_jax.models.transformer import check_length, fit_vocabulary, keys, placed, through


class Types(nn.Module):
    """A learned vector for each kind of text in a row: BERT's first and second sentence."""

    kinds: Size
    init: Init = Normal(0.02)

    @nn.compact
    def __call__(self, x_BTD: jax.Array, types_BT: jax.Array | None) -> jax.Array:
        table_PD = weigh(self, "table", "PD", dict(P=self.kinds, D=x_BTD.shape[-1]), self.init, 1)
        types_BT = jnp.zeros(x_BTD.shape[:2], jnp.int32) if types_BT is None else types_BT
        return x_BTD + lookup(table_PD, types_BT).astype(x_BTD.dtype)


class Encoder(Model):
    """Token ids [B, T] -> a vector for each, [B, T, D]. The blocks' masks are usually `Full()`.

    `score` gives each token's scores [B, T, V] where there is a `head` (of masked tokens), `pooled` one vector [B, D] a
    document. `types` is how many kinds of text a row may have (BERT: 2). `context` is as `Decoder`'s.
    """

    embed: Embed
    stack: Stack
    positions: Positions = Learned()
    norm: Norm = NoNorm()
    head: Head | None = None
    context: Count = 0
    embed_norm: Norm = LayerNorm(1e-12)
    types: Count = 0
    pooling: Pooling = Mean()

    def setup(self):
        if self.types:
            self.type_table = Types(self.types)

    def __call__(
        self, tokens_BT: jax.Array, at: Tokens | None = None, types_BT: jax.Array | None = None, *,
        dropout_key: jax.Array | None = None,
    ) -> jax.Array:  # fmt: skip
        """The vectors [B, T, D]. `types_BT` says which kind of text each token is of; by default all of the first."""
        x_BTD = self.vectors(tokens_BT, at, types_BT, dropout_key=dropout_key)
        if self.is_initializing():
            self.pooled(x_BTD, at)
            if self.head is not None:
                self.score(x_BTD)
        return x_BTD

    def vectors(self, tokens_BT, at=None, types_BT=None, *, dropout_key=None):
        at = Tokens.of(tokens_BT.shape) if at is None else at
        first, second = keys(dropout_key, 2)
        x_BTD = self.embed(tokens_BT)
        if self.types:
            x_BTD = self.type_table(x_BTD, types_BT)
        elif types_BT is not None:
            raise InputError("the encoder tells no kinds of text apart: set model.types")
        x_BTD = placed(x_BTD, self.embed, self.positions, self.embed_norm, at, first)
        return self.norm(through(self.stack, self.positions, x_BTD, at, dropout_key=second)[0])

    def score(self, x_BTD: jax.Array) -> jax.Array:
        """[B, T, V] float32: which token stands at each place.

        Raises:
          InputError: there is no head.
        """
        if self.head is None:
            raise InputError("this encoder scores no tokens: give it model.head, such as Transformed()")
        return self.head(x_BTD, self.embed)

    def all_scores(self, tokens_BT):
        return self.score(self(tokens_BT))

    def pooled(self, x_BTD: jax.Array, at: Tokens | None = None) -> jax.Array:
        """[B, D]: a vector for each row's document."""
        return self.pooling(x_BTD, Tokens.of(x_BTD.shape[:2]) if at is None else at)

    def filled(self, vocabulary, context, source=0, start=None):
        check_length(self.positions, max(context, self.context))
        return replace(self, embed=fit_vocabulary(self.embed, vocabulary), context=self.context or context)

    def prepared(self, params):
        return {**params, "stack": self.stack.prepared(params["stack"])}

    def limit(self):
        return self.context or self.positions.limit()

    def words(self):
        return self.embed.vocabulary

    def flops_per_token(self, boxed, length):
        tied = self.embed.vocabulary * self.embed.width if self.head is not None and self.head.ties() else 0
        each = matrix_weights({room: part for room, part in boxed.items() if room != "pooling"})  # once a document
        return 6 * (each + tied) + attention_flops(self.stack, length)


MODELS = dict(Encoder=Encoder)
