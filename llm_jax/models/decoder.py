"""The generator: a causal language model."""

from __future__ import annotations

from typing import Any

import jax

from llm_jax.core.errors import InputError
from llm_jax.core.parts import Count, replace, show
from llm_jax.layers.embedding import Embed, Head, Tied
from llm_jax.layers.norms import NoNorm, Norm, RMSNorm
from llm_jax.layers.positions import Positions, Rope
from llm_jax.layers.tokens import Tokens
from llm_jax.models.flops import attention_flops, matrix_weights
from llm_jax.models.model import Generator
from llm_jax.models.stack import Stack
from llm_jax.models.transformer import check_length, fit_vocabulary, keys, placed, through


class Decoder(Generator):
    """Token ids [B, T] -> a score for each next token [B, T, V] in float32.

    `context` is the number of positions that the model is meant for: generation does not go past it.
    0 stands for the length of the training data's rows, filled in when a run begins.
    """

    embed: Embed
    stack: Stack
    positions: Positions = Rope()
    norm: Norm = RMSNorm()
    head: Head = Tied()
    context: Count = 0
    embed_norm: Norm = NoNorm()  # of the vectors that enter the stack

    def hidden(self, tokens_BT, at=None, *, caches=None, start=0, dropout_key=None):
        at = Tokens.of(tokens_BT.shape) if at is None else at
        return self.follow(self.embed(tokens_BT), at, caches=caches, start=start, dropout_key=dropout_key)

    def follow(
        self, x_BTD: jax.Array, at: Tokens, *, caches: Any = None, start: int | jax.Array = 0,
        dropout_key: jax.Array | None = None,
    ) -> tuple[jax.Array, Any]:  # fmt: skip
        """`hidden` of vectors, which need not all be of tokens: an image may come before the text."""
        first, second = keys(dropout_key, 2)
        x_BTD = placed(x_BTD, self.embed, self.positions, self.embed_norm, at, first)
        x_BTD, caches = through(self.stack, self.positions, x_BTD, at, caches=caches, start=start, dropout_key=second)
        return self.norm(x_BTD), caches

    def score(self, x_BTD: jax.Array) -> jax.Array:
        return self.head(x_BTD, self.embed)

    def filled(self, vocabulary, context, source=0, start=None):
        check_length(self.positions, max(context, self.context))
        return replace(self, embed=fit_vocabulary(self.embed, vocabulary), context=self.context or context)

    def ahead(self):
        most = 0
        for number, block in enumerate(self.stack.pattern):
            ahead = block.attention.mask.ahead()
            if ahead is None:
                raise InputError(
                    f"model.stack.pattern.{number}.attention.mask={show(block.attention.mask)} lets a token see the "
                    "one to predict: use Causal(), SlidingWindow(...) or Prefix(...)"
                )
            most = max(most, ahead)
        return most

    def empty_cache(self, batch, length, dtype):
        return self.stack.empty_cache(batch, length, dtype)

    def prepared(self, params):
        return {**params, "stack": self.stack.prepared(params["stack"])}

    def limit(self):
        return self.context or self.positions.limit()

    def words(self):
        return self.embed.vocabulary

    def flops_per_token(self, boxed, length):
        tied = self.embed.vocabulary * self.embed.width if self.head.ties() else 0
        return 6 * (matrix_weights(boxed) + tied) + attention_flops(self.stack, length)


MODELS = dict(Decoder=Decoder)
