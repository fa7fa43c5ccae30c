"""How a query scores a key: what every attention kernel computes, and asks for by blocks."""

from __future__ import annotations

import math
from collections.abc import Callable

import flax.struct
import jax
import jax.numpy as jnp

from llm_jax.core.dims import contract
from llm_jax.layers.dropout import keep, line
from llm_jax.layers.masks import Mask
from llm_jax.layers.tokens import Tokens

NEVER = -1e30  # the score of a key that must not be seen: finite, so that no difference of scores is NaN


@flax.struct.dataclass
class Scoring:
    """How queries score keys: scaled product, soft cap, bias, mask; then dropout on the weights."""

    queries: Tokens
    keys: Tokens
    bias: object  # None, or what `Positions.bias` returned
    dropout_key: jax.Array | None
    mask: Mask = flax.struct.field(pytree_node=False)
    scale: float = flax.struct.field(pytree_node=False)
    soft_cap: float = flax.struct.field(pytree_node=False, default=0.0)
    dropout: float = flax.struct.field(pytree_node=False, default=0.0)
    aligned: bool = flax.struct.field(pytree_node=False, default=False)  # the keys are the queries' own tokens

    def scores(self, q_BTKGH, k_BSKH, bias, rows: slice, columns: slice) -> jax.Array:
        """[B, K, G, t, s] in float32 for the queries in `rows` and the keys in `columns`."""
        queries, keys = self.queries.cut(rows.start, rows.stop), self.keys.cut(columns.start, columns.stop)
        score = contract("BTKGH,BSKH->BKGTS", q_BTKGH[:, rows], k_BSKH[:, columns]) * self.scale
        if self.soft_cap:
            score = self.soft_cap * jnp.tanh(score / self.soft_cap)
        if bias is not None:
            score = score + bias.between(queries, keys)
        return jnp.where(self.mask.between(queries, keys)[:, None, None], score, NEVER)

    def kept(self, shape_BKGTS: tuple[int, ...], row: int | jax.Array, column: int | jax.Array) -> jax.Array | None:
        """The dropout factors of a block that begins at query `row` and key `column`, or None: no dropout."""
        if self.dropout_key is None or not self.dropout:
            return None
        batch, key_heads, group, queries, keys = shape_BKGTS
        return keep(
            self.dropout_key, self.dropout, line(batch, 0, 5), line(key_heads, 1, 5), line(group, 2, 5),
            line(queries, 3, 5, row), line(keys, 4, 5, column),
        )  # fmt: skip

    def span(self, rows: slice) -> slice:
        """The keys that those queries might see, when slots tell (self-attention without a cache); else all."""
        length = self.keys.segment_BT.shape[1]
        return slice(*self.mask.span(rows.start, rows.stop, length)) if self.aligned else slice(0, length)


EVERYWHERE = (math.inf, math.inf)  # the band of a mask that leaves all to the segments

FEATURES: dict[str, Callable[[Scoring, int], bool]] = {  # what a call can ask of a kernel: (scoring, group)
    "packing": lambda scoring, group: True,  # whether a row holds several documents, or padding, only its numbers tell
    "a window": lambda scoring, group: scoring.mask.reach() is not None,
    "a prefix": lambda scoring, group: scoring.mask.band() is None,
    "a soft cap": lambda scoring, group: scoring.soft_cap > 0,
    "dropout": lambda scoring, group: scoring.dropout > 0 and scoring.dropout_key is not None,
    "grouped queries": lambda scoring, group: group > 1,
    "a bias": lambda scoring, group: scoring.bias is not None,
    "a cache": lambda scoring, group: not scoring.aligned and scoring.mask.band() != EVERYWHERE,
    "another text's keys": lambda scoring, group: not scoring.aligned and scoring.mask.band() == EVERYWHERE,
}
