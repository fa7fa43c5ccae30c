"""The gradient of a summed loss over a batch, in one piece or in several: the same, in less memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from llm_jax.objectives.objective import Sums


def gradients(
    sums: Callable[[Any, Any, jax.Array], Sums], params: Any, batch: Any, key: jax.Array, count: int
) -> tuple[Any, Sums]:
    """The gradient, in float32, of `sums(params, batch, key)`'s loss and what is auxiliary to it; and all sums."""

    def loss(params: Any, batch: Any, key: jax.Array):
        return _lowered(sums(params, batch, key))

    def one(batch: Any, key: jax.Array):
        slopes, found = jax.grad(loss, has_aux=True)(params, batch, key)
        return jax.tree.map(lambda g: g.astype(jnp.float32), slopes), found

    if count == 1:
        return one(batch, key)

    def add(total: Any, each: Any):
        return jax.tree.map(jnp.add, total, one(*each)), None

    each = pieces(batch, count), jax.random.split(key, count)
    shapes = jax.eval_shape(one, *jax.tree.map(lambda x: x[0], each))
    return jax.lax.scan(add, _zeros(shapes), each)[0]


def related(
    represent: Callable[[Any, Any, jax.Array], Any], relate: Callable[[Any, Any, jax.Array], Sums],
    params: Any, batch: Any, key: jax.Array, count: int,
) -> tuple[Any, Sums]:  # fmt: skip
    """As `gradients`, where rows are compared: the vectors of all pieces, then the gradient by these, and with it each
    piece's own, which is gone through again (Gao et al. 2021, "Scaling Deep Contrastive Learning ...").
    """
    each = pieces(batch, count), jax.random.split(key, count)
    by_piece = jax.lax.map(lambda each: represent(params, *each), each)
    vectors = jax.tree.map(lambda x: x.swapaxes(0, 1).reshape(-1, *x.shape[2:]), by_piece)
    slopes, sums = jax.grad(lambda vectors: _lowered(relate(vectors, batch, each[1][0])), has_aux=True)(vectors)

    def add(total: Any, each: Any):
        piece, key, slope = each
        (found,) = jax.vjp(lambda params: represent(params, piece, key), params)[1](slope)
        return jax.tree.map(lambda sum, g: sum + g.astype(jnp.float32), total, found), None

    return jax.lax.scan(add, _zeros(params), (*each, pieces(slopes, count)))[0], sums


def pieces(batch: Any, count: int) -> Any:
    """Rows i, i + count, ...: so every device keeps its own rows."""
    return jax.tree.map(lambda x: x.reshape(-1, count, *x.shape[1:]).swapaxes(0, 1), batch)


def _lowered(sums: Sums) -> tuple[jax.Array, Sums]:
    """What training lowers, and the sums."""
    return sums["loss"] + sums.get("auxiliary", 0.0), sums


def _zeros(shapes: Any) -> Any:
    return jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), shapes)
