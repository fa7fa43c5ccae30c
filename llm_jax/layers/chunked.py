"""Attention in blocks: a loop over blocks of queries, and in it one over the blocks of keys that they might see.

The program has one size, whatever the length of the row. Which blocks a mask rules out is known before it runs, and
those are not visited.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp

from llm_jax.core.dims import contract
from llm_jax.layers.scoring import NEVER, Scoring
from llm_jax.layers.tokens import PADDING, Tokens

cut = jax.lax.dynamic_slice_in_dim


@dataclasses.dataclass(frozen=True)
class Tour:
    """The blocks to visit: of each block of queries its first slot, the first key's, and how many blocks of keys."""

    queries: int  # in a block
    keys: int
    visits: tuple[tuple[int, int, int], ...]

    @classmethod
    def of(cls, scoring: Scoring, queries: int, keys: int) -> Tour:
        length = scoring.queries.segment_BT.shape[1]
        queries = min(queries, length)
        rows = [slice(i, min(i + queries, length)) for i in range(0, length, queries)]
        spans = [scoring.span(row) for row in rows]
        keys = min(keys, max(span.stop - span.start for span in spans))  # a window takes no more than it sees
        counts = [math.ceil((span.stop - span.start) / keys) for span in spans]
        firsts = [(row.start, span.start) for row, span in zip(rows, spans, strict=True)]
        return cls(queries, keys, tuple((*first, count) for first, count in zip(firsts, counts, strict=True)))

    def slots(self) -> tuple[int, int]:
        """How many queries and keys there have to be, so that every block is whole."""
        return len(self.visits) * self.queries, max(first + count * self.keys for _, first, count in self.visits)

    def block(self, scoring: Scoring, row: jax.Array, column: jax.Array) -> Scoring:
        """How the queries from `row` on score the keys from `column` on."""
        queries = jax.tree.map(lambda x: cut(x, row, self.queries, 1), scoring.queries)
        keys = jax.tree.map(lambda x: cut(x, column, self.keys, 1), scoring.keys)
        return dataclasses.replace(scoring, queries=queries, keys=keys)

    def scores(self, scoring: Scoring, q_row: jax.Array, k_block: jax.Array, bias: Any) -> jax.Array:
        return scoring.scores(q_row, k_block, bias, slice(0, self.queries), slice(0, self.keys))


def attend(
    q_BTKGH: jax.Array, k_BSKH: jax.Array, v_BSKH: jax.Array, scoring: Scoring, queries: int, keys: int
) -> jax.Array:
    """[B, T, K, G, H]. Padding fills the last blocks: nobody sees it, and it sees nobody."""
    length, tour = q_BTKGH.shape[1], Tour.of(scoring, queries, keys)
    rows, columns = tour.slots()
    padded = dataclasses.replace(
        scoring, queries=_padded(scoring.queries, rows), keys=_padded(scoring.keys, columns), bias=None
    )
    q_BTKGH, k_BSKH, v_BSKH = _pad(q_BTKGH, rows), _pad(k_BSKH, columns), _pad(v_BSKH, columns)
    o_BTKGH: Any = _attend(tour, q_BTKGH, k_BSKH, v_BSKH, scoring.bias, padded)
    return o_BTKGH[:, :length]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(tour: Tour, q_BTKGH, k_BSKH, v_BSKH, bias, scoring: Scoring):
    return _forward(tour, q_BTKGH, k_BSKH, v_BSKH, bias, scoring)[0]


def _forward(tour: Tour, q_BTKGH, k_BSKH, v_BSKH, bias, scoring: Scoring):
    batch, _, key_heads, group, head = q_BTKGH.shape

    def row(_, visit: jax.Array):
        first, key, count = visit
        q_row = cut(q_BTKGH, first, tour.queries, 1)

        def step(number: jax.Array, running: tuple[jax.Array, ...]):
            before, total, mixed = running
            column = key + number * tour.keys
            score = tour.scores(tour.block(scoring, first, column), q_row, cut(k_BSKH, column, tour.keys, 1), bias)
            top = jnp.maximum(before, score.max(-1, keepdims=True))
            shrink, weight = jnp.exp(before - top), jnp.exp(score - top)
            total = total * shrink + weight.sum(-1, keepdims=True)
            if (kept := scoring.kept(weight.shape, first, column)) is not None:
                weight = weight * kept
            v_block = cut(v_BSKH, column, tour.keys, 1)
            return top, total, mixed * shrink + contract("BKGTS,BSKH->BKGTH", weight.astype(v_block.dtype), v_block)

        zeros = jnp.zeros((batch, key_heads, group, tour.queries, head + 1), jnp.float32)
        begun = zeros[..., :1] + NEVER / 10, zeros[..., :1], zeros[..., 1:]  # maximum, sum of weights, mix of values
        top, total, mixed = jax.lax.fori_loop(0, count, step, begun)
        total = jnp.maximum(total, 1e-30)
        o_row = jnp.einsum("BKGTH->BTKGH", mixed / total).astype(q_BTKGH.dtype)
        return None, (o_row, top + jnp.log(total))

    _, (rows, log_sums) = jax.lax.scan(row, None, jnp.asarray(tour.visits, jnp.int32))
    o_BTKGH = _joined(rows)
    return o_BTKGH, (q_BTKGH, k_BSKH, v_BSKH, bias, scoring, o_BTKGH, log_sums)


def _backward(tour: Tour, saved, do_BTKGH):
    q_BTKGH, k_BSKH, v_BSKH, bias, scoring, o_BTKGH, log_sums = saved
    do_BTKGH = do_BTKGH.astype(q_BTKGH.dtype)
    delta_BKGT = jnp.einsum("BTKGH,BTKGH->BKGT", do_BTKGH, o_BTKGH, preferred_element_type=jnp.float32)

    def row(sums, here):
        (first, key, count), log_sum = here
        q_row, do_row = cut(q_BTKGH, first, tour.queries, 1), cut(do_BTKGH, first, tour.queries, 1)
        delta = cut(delta_BKGT, first, tour.queries, 3)[..., None]

        def step(number: jax.Array, sums):
            d_row, dk_BSKH, dv_BSKH, d_bias = sums
            column = key + number * tour.keys
            k_block, v_block = cut(k_BSKH, column, tour.keys, 1), cut(v_BSKH, column, tour.keys, 1)
            scores, pull = jax.vjp(
                functools.partial(tour.scores, tour.block(scoring, first, column)), q_row, k_block, bias
            )
            weight = jnp.exp(scores - log_sum)
            d_weight = contract("BTKGH,BSKH->BKGTS", do_row, v_block)
            used = weight
            if (kept := scoring.kept(weight.shape, first, column)) is not None:
                used, d_weight = weight * kept, d_weight * kept
            dv = contract("BKGTS,BTKGH->BSKH", used.astype(v_block.dtype), do_row)
            dq, dk, db = pull(weight * (d_weight - delta))
            d_row = d_row + dq.astype(jnp.float32)
            return d_row, _add(dk_BSKH, dk, column), _add(dv_BSKH, dv, column), jax.tree.map(jnp.add, d_bias, db)

        d_row, *sums = jax.lax.fori_loop(0, count, step, (jnp.zeros(q_row.shape, jnp.float32), *sums))
        return tuple(sums), d_row.astype(q_row.dtype)

    zeros_BSKH = jnp.zeros(k_BSKH.shape, jnp.float32)
    zeros = zeros_BSKH, zeros_BSKH, jax.tree.map(jnp.zeros_like, bias)
    (dk_BSKH, dv_BSKH, d_bias), rows = jax.lax.scan(row, zeros, (jnp.asarray(tour.visits, jnp.int32), log_sums))
    return _joined(rows), dk_BSKH.astype(k_BSKH.dtype), dv_BSKH.astype(v_BSKH.dtype), d_bias, None


_attend.defvjp(_forward, _backward)


def _add(sum_BSKH: jax.Array, block: jax.Array, column: jax.Array) -> jax.Array:
    """With `block` added to the keys from `column` on."""
    old = cut(sum_BSKH, column, block.shape[1], 1)
    return jax.lax.dynamic_update_slice_in_dim(sum_BSKH, old + block.astype(jnp.float32), column, 1)


def _joined(rows: jax.Array) -> jax.Array:
    """[N, B, t, ...], blocks of queries -> [B, T, ...]."""
    rows = jnp.moveaxis(rows, 0, 1)
    return rows.reshape(rows.shape[0], -1, *rows.shape[3:])


def _padded(tokens: Tokens, slots: int) -> Tokens:
    return Tokens(_pad(tokens.position_BT, slots), _pad(tokens.segment_BT, slots, PADDING))


def _pad(x: jax.Array, slots: int, value: int = 0) -> jax.Array:
    """`x` with its second axis filled up."""
    more = slots - x.shape[1]
    return jnp.pad(x, [(0, 0), (0, more)] + [(0, 0)] * (x.ndim - 2), constant_values=value) if more > 0 else x
