"""Attention kernels: the same sum, organised differently. Each is exact.

    kernel(q_BTKGH, k_BSKH, v_BSKH, scoring) -> o_BTKGH

`Scoring` says how a query scores a key; a kernel asks it for the block of scores at hand. A query that may see no key
at all (padding) gets zeros.
"""

from __future__ import annotations

import dataclasses
import functools

import flax.struct
import jax
import jax.numpy as jnp

from llm_jax.core.alphabet import contract
from llm_jax.core.parts import Part, Size
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

    def kept(self, shape_BKGTS: tuple[int, ...], rows: slice, columns: slice) -> jax.Array | None:
        """The dropout factors of that block, or None: no dropout."""
        if self.dropout_key is None or not self.dropout:
            return None
        batch, key_heads, group, _, _ = shape_BKGTS
        return keep(
            self.dropout_key, self.dropout, line(batch, 0, 5), line(key_heads, 1, 5), line(group, 2, 5),
            line(rows.stop - rows.start, 3, 5, rows.start), line(columns.stop - columns.start, 4, 5, columns.start),
        )  # fmt: skip

    def span(self, rows: slice) -> slice:
        """The keys that those queries might see, when slots tell (self-attention without a cache); else all."""
        length = self.keys.segment_BT.shape[1]
        return slice(*self.mask.span(rows.start, rows.stop, length)) if self.aligned else slice(0, length)


class Kernel(Part):
    """How attention is computed."""

    def __call__(self, q_BTKGH: jax.Array, k_BSKH: jax.Array, v_BSKH: jax.Array, scoring: Scoring) -> jax.Array:
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class Dense(Kernel):
    """The reference: every score at once. Memory grows with T x S."""

    def __call__(self, q_BTKGH, k_BSKH, v_BSKH, scoring):
        rows, columns = slice(0, q_BTKGH.shape[1]), slice(0, k_BSKH.shape[1])
        score = scoring.scores(q_BTKGH, k_BSKH, scoring.bias, rows, columns)
        top = jax.lax.stop_gradient(jnp.maximum(score.max(-1, keepdims=True), NEVER / 10))
        weight = jnp.exp(score - top)
        total_BTKG = jnp.einsum("BKGTS->BTKG", weight)
        if (kept := scoring.kept(weight.shape, rows, columns)) is not None:
            weight = weight * kept
        o_BTKGH = contract("BKGTS,BSKH->BTKGH", weight.astype(v_BSKH.dtype), v_BSKH)
        return (o_BTKGH / jnp.maximum(total_BTKG, 1e-30)[..., None]).astype(q_BTKGH.dtype)


@dataclasses.dataclass(frozen=True)
class Chunked(Kernel):
    """Blocks of queries against blocks of keys, with the softmax kept as running sums (Rabe & Staats 2021; Dao 2022).

    Blocks that the mask rules out are skipped. Memory grows with `queries` x `keys`, also backward, where scores are
    computed again from the saved log-sums.
    """

    queries: Size = 128
    keys: Size = 1024

    def __call__(self, q_BTKGH, k_BSKH, v_BSKH, scoring):
        return _chunked(self, q_BTKGH, k_BSKH, v_BSKH, scoring.bias, dataclasses.replace(scoring, bias=None))

    def rows(self, length: int) -> list[slice]:
        return [slice(i, min(i + self.queries, length)) for i in range(0, length, self.queries)]

    def columns(self, span: slice) -> list[slice]:
        return [slice(i, min(i + self.keys, span.stop)) for i in range(span.start, span.stop, self.keys)]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _chunked(kernel: Chunked, q_BTKGH, k_BSKH, v_BSKH, bias, scoring: Scoring):
    return _chunked_forward(kernel, q_BTKGH, k_BSKH, v_BSKH, bias, scoring)[0]


def _chunked_forward(kernel: Chunked, q_BTKGH, k_BSKH, v_BSKH, bias, scoring: Scoring):
    out, log_sums = [], []
    for rows in kernel.rows(q_BTKGH.shape[1]):
        running = None  # maximum, sum of weights [B, K, G, t, 1], and mix of values [B, K, G, t, H]
        for columns in kernel.columns(scoring.span(rows)):
            score = scoring.scores(q_BTKGH, k_BSKH, bias, rows, columns)
            top = jnp.maximum(score.max(-1, keepdims=True), NEVER / 10)
            top = top if running is None else jnp.maximum(running[0], top)
            weight = jnp.exp(score - top)
            total = weight.sum(-1, keepdims=True)
            if (kept := scoring.kept(weight.shape, rows, columns)) is not None:
                weight = weight * kept
            mixed = contract("BKGTS,BSKH->BKGTH", weight.astype(v_BSKH.dtype), v_BSKH[:, columns])
            if running is not None:
                shrink = jnp.exp(running[0] - top)
                total, mixed = total + running[1] * shrink, mixed + running[2] * shrink
            running = top, total, mixed
        assert running is not None, "a span is never empty"
        top, total, mixed = running
        total = jnp.maximum(total, 1e-30)
        out.append(jnp.einsum("BKGTH->BTKGH", mixed / total))
        log_sums.append(top + jnp.log(total))
    o_BTKGH = jnp.concatenate(out, axis=1).astype(q_BTKGH.dtype)
    return o_BTKGH, (q_BTKGH, k_BSKH, v_BSKH, bias, scoring, o_BTKGH, log_sums)


def _chunked_backward(kernel: Chunked, saved, do_BTKGH):
    q_BTKGH, k_BSKH, v_BSKH, bias, scoring, o_BTKGH, log_sums = saved
    do_BTKGH = do_BTKGH.astype(q_BTKGH.dtype)
    dq, dk_BSKH, dv_BSKH = [], jnp.zeros(k_BSKH.shape, jnp.float32), jnp.zeros(v_BSKH.shape, jnp.float32)
    d_bias = jax.tree.map(jnp.zeros_like, bias)
    delta_BKGT = jnp.einsum("BTKGH,BTKGH->BKGT", do_BTKGH, o_BTKGH, preferred_element_type=jnp.float32)
    for rows, log_sum in zip(kernel.rows(q_BTKGH.shape[1]), log_sums, strict=True):
        d_row = jnp.zeros(q_BTKGH[:, rows].shape, jnp.float32)
        do_row = do_BTKGH[:, rows]
        for columns in kernel.columns(scoring.span(rows)):

            def score(q_row, k_block, bias, rows=rows, columns=columns):
                here = dataclasses.replace(
                    scoring,
                    queries=scoring.queries.cut(rows.start, rows.stop),
                    keys=scoring.keys.cut(columns.start, columns.stop),
                )
                all_rows, all_columns = slice(0, q_row.shape[1]), slice(0, k_block.shape[1])
                return here.scores(q_row, k_block, bias, all_rows, all_columns)

            scores, pull = jax.vjp(score, q_BTKGH[:, rows], k_BSKH[:, columns], bias)
            weight = jnp.exp(scores - log_sum)
            d_weight = contract("BTKGH,BSKH->BKGTS", do_row, v_BSKH[:, columns])
            kept = scoring.kept(weight.shape, rows, columns)
            used = weight if kept is None else weight * kept
            d_weight = d_weight if kept is None else d_weight * kept
            dv = contract("BKGTS,BTKGH->BSKH", used.astype(v_BSKH.dtype), do_row)
            d_q, d_k, d_b = pull(weight * (d_weight - delta_BKGT[:, :, :, rows, None]))
            d_row = d_row + d_q.astype(jnp.float32)
            dk_BSKH = dk_BSKH.at[:, columns].add(d_k.astype(jnp.float32))
            dv_BSKH = dv_BSKH.at[:, columns].add(dv)
            d_bias = jax.tree.map(jnp.add, d_bias, d_b)
        dq.append(d_row)
    dq_BTKGH = jnp.concatenate(dq, axis=1).astype(q_BTKGH.dtype)
    return dq_BTKGH, dk_BSKH.astype(k_BSKH.dtype), dv_BSKH.astype(v_BSKH.dtype), d_bias, None


_chunked.defvjp(_chunked_forward, _chunked_backward)


@dataclasses.dataclass(frozen=True)
class Auto(Kernel):
    """`Dense` for calls of few queries (so every step of generation, however many keys), else `Chunked`."""

    few: int = 512  # queries

    def __call__(self, q_BTKGH, k_BSKH, v_BSKH, scoring):
        return self.choice(q_BTKGH.shape[1])(q_BTKGH, k_BSKH, v_BSKH, scoring)

    def choice(self, queries: int) -> Kernel:
        return Dense() if queries <= self.few else Chunked()


KERNELS = dict(Dense=Dense, Chunked=Chunked, Auto=Auto)
