"""What the three families share: embedded tokens are placed in order, and go through a stack of blocks."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax

from llm_jax.core.errors import InputError
from llm_jax.core.parts import replace
from llm_jax.layers.attention import Source, View
from llm_jax.layers.embedding import Embed
from llm_jax.layers.norms import Norm
from llm_jax.layers.positions import Positions
from llm_jax.layers.tokens import Tokens
from llm_jax.models.stack import Stack


def placed(
    x_BTD: jax.Array, embed: Embed, positions: Positions, norm: Norm, at: Tokens, dropout_key: jax.Array | None
) -> jax.Array:
    """[B, T, D]: what enters the stack, from the tokens' vectors."""
    return embed.drop(norm(positions.embed(x_BTD, at)), dropout_key)


def through(
    stack: Stack, positions: Positions, x_BTD: jax.Array, at: Tokens, *, caches: Any = None,
    start: int | jax.Array = 0, dropout_key: jax.Array | None = None, source: Source | None = None,
) -> tuple[jax.Array, Any]:  # fmt: skip
    """What leaves the stack, and the caches after it (None without caches).

    Raises:
      InputError: `positions` has a bias for each head, but the blocks differ in heads.
    """
    heads = [(b.attention.key_heads, b.attention.group) for b in stack.pattern if b.positions is None] or [(1, 1)]
    bias = positions.bias(*heads[0])
    if bias is not None and len(set(heads)) > 1:
        raise InputError(
            "model.positions has a bias for each head, but the blocks of model.stack.pattern differ "
            "in heads: give the odd ones positions of their own"
        )
    # unbound: `rotate` has no parameters, so it may go into every layer
    view = View(at, start, bias, dropout_key, positions.clone(parent=None), source)
    return stack(x_BTD, view, caches)


def keys(dropout_key: jax.Array | None, count: int) -> Any:
    """So many dropout keys, or so many times None."""
    return (None,) * count if dropout_key is None else jax.random.split(dropout_key, count)


def fit_vocabulary(embed: Embed, vocabulary: int) -> Embed:
    """The embedding with the tokenizer's vocabulary filled in.

    Raises:
      InputError: it is too small for it.
    """
    if 0 < embed.vocabulary < vocabulary:
        raise InputError(f"model.embed.vocabulary={embed.vocabulary} is less than the tokenizer's {vocabulary}")
    return replace(embed, vocabulary=embed.vocabulary or vocabulary)


def check_length(positions: Positions, needed: int, where: str = "model.positions") -> None:
    """Nothing, if there are positions enough.

    Raises:
      InputError: there are fewer than the data needs.
    """
    limit = positions.limit()
    if limit is not None and limit < needed:
        raise InputError(
            f"{where} has {limit} positions, fewer than the {needed} of the data's rows: "
            "raise its length, or lower data.length"
        )


class Side(nn.Module):
    """One side of an encoder-decoder: all but the embedding, which both share."""

    stack: Stack
    positions: Positions
    norm: Norm
    embed_norm: Norm

    def __call__(
        self, embed: Embed, tokens_BT: jax.Array, at: Tokens, *, caches: Any = None, start: int | jax.Array = 0,
        dropout_key: jax.Array | None = None, source: Source | None = None,
    ) -> tuple[jax.Array, Any]:  # fmt: skip
        first, second = keys(dropout_key, 2)
        x_BTD = placed(embed(tokens_BT), embed, self.positions, self.embed_norm, at, first)
        x_BTD, caches = through(
            self.stack, self.positions, x_BTD, at, caches=caches, start=start, dropout_key=second, source=source
        )
        return self.norm(x_BTD), caches
