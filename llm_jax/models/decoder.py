"""The generator: a causal language model."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax

from llm_jax.core.parts import Count, replace, show
from llm_jax.core.tables import InputError
from llm_jax.layers.attention import View
from llm_jax.layers.embedding import Embed, Head, Tied
from llm_jax.layers.norms import Norm, RMSNorm
from llm_jax.layers.positions import Positions, Rope
from llm_jax.layers.tokens import Tokens
from llm_jax.models.stack import Stack


class Decoder(nn.Module):
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

    def __call__(
        self, tokens_BT: jax.Array, at: Tokens | None = None, *, caches: Any = None, start: int | jax.Array = 0,
        dropout_key: jax.Array | None = None,
    ):  # fmt: skip
        """Scores, and the caches after this call (None without caches).

        Args:
          at: where the tokens stand; by default one document a row, from its start.
          caches: what `empty_cache` or an earlier call returned; `start` tokens have gone in before.
          dropout_key: None for evaluation.
        """
        x_BTD, caches = self.hidden(tokens_BT, at, caches=caches, start=start, dropout_key=dropout_key)
        return self.score(x_BTD), caches

    def hidden(
        self, tokens_BT: jax.Array, at: Tokens | None = None, *, caches: Any = None, start: int | jax.Array = 0,
        dropout_key: jax.Array | None = None,
    ):  # fmt: skip
        """The last layer's vectors [B, T, D], normalised, in place of scores."""
        at = Tokens.of(tokens_BT.shape) if at is None else at
        keys = (None, None) if dropout_key is None else jax.random.split(dropout_key)
        x_BTD = self.positions.embed(self.embed(tokens_BT, keys[0]), at)
        attentions = [block.attention for block in self.stack.pattern if block.positions is None]
        heads = [(a.key_heads, a.group) for a in attentions] or [(1, 1)]
        bias = self.positions.bias(*heads[0])
        if bias is not None and len(set(heads)) > 1:
            raise InputError(
                "model.positions has a bias for each head, but the blocks of model.stack.pattern differ "
                "in heads: give the odd ones positions of their own"
            )
        # unbound: `rotate` has no parameters, so it may go into every layer
        view = View(at, start, bias, keys[1], self.positions.clone(parent=None))
        x_BTD, caches = self.stack(x_BTD, view, caches)
        return self.norm(x_BTD), caches

    def score(self, x_BTD: jax.Array) -> jax.Array:
        return self.head(x_BTD, self.embed)

    def filled(self, vocabulary: int, context: int) -> Decoder:
        """The model with what its settings leave to the data filled in.

        Raises:
          InputError: the vocabulary is too small for the tokenizer, or there are fewer positions than the data needs.
        """
        if 0 < self.embed.vocabulary < vocabulary:
            has = self.embed.vocabulary
            raise InputError(f"model.embed.vocabulary={has} is less than the tokenizer's {vocabulary}")
        limit = self.positions.limit()
        if limit is not None and limit < max(context, self.context):
            raise InputError(
                f"model.positions has {limit} positions, fewer than the {max(context, self.context)} "
                "of the data's rows: raise its length, or lower data.length"
            )
        embed = replace(self.embed, vocabulary=self.embed.vocabulary or vocabulary)
        return replace(self, embed=embed, context=self.context or context)

    def ahead(self) -> int:
        """How many of a document's first tokens are seen by tokens before them (`Mask.ahead`).

        Raises:
          InputError: any token may be, so that the model cannot predict one from those before it.
        """
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

    def empty_cache(self, batch: int, length: int, dtype) -> Any:
        """Caches for `length` tokens of each of `batch` rows."""
        return self.stack.empty_cache(batch, length, dtype)


MODELS = dict(Decoder=Decoder)
