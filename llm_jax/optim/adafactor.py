"""Adafactor's second moments and clipping, for each matrix by itself: parameters of layers and experts are stacked."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from llm_jax.core.dims import Lettered, is_lettered

STACKED = "LE"  # along these a parameter is many matrices
DECAY = 0.8  # the second moment's decay in step t is 1 - t^-0.8
EPSILON = 1e-30


def scale_by_factored_rms(boxed: Any, smallest: int) -> optax.GradientTransformation:
    """As Optax's, with the same state, but rows and columns go by letters and roles: never along layers or experts.

    Args:
      boxed: the parameters with their letters.
      smallest: axes below this size are not factored.
    """
    axes = [_rows_and_columns(leaf, smallest) for leaf in jax.tree.leaves(boxed, is_leaf=is_lettered)]

    def init(params: Any) -> optax.FactoredState:
        def one(x: jax.Array, factored: tuple[int, int] | None) -> tuple[jax.Array, ...]:
            none = jnp.zeros((1,), x.dtype)
            if factored is None:
                return none, none, jnp.zeros_like(x)
            columns, rows = factored
            return _without(x, rows), _without(x, columns), none

        return _state(jnp.zeros([], jnp.int32), params, map(one, jax.tree.leaves(params), axes))

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, optax.FactoredState]:
        decay = 1.0 - (jnp.asarray(state.count, jnp.float32) + 1) ** -DECAY

        def average(old: jax.Array, new: jax.Array) -> jax.Array:
            return (decay * old + (1.0 - decay) * new).astype(old.dtype)

        def one(g: jax.Array, row: jax.Array, column: jax.Array, whole: jax.Array, factored: tuple[int, int] | None):
            square = g * g + EPSILON
            if factored is None:
                whole = average(whole, square)
                return g * whole**-0.5, (row, column, whole)
            columns, rows = factored
            row, column = average(row, square.mean(rows)), average(column, square.mean(columns))
            mean = row.mean(columns - (columns > rows), keepdims=True)
            scaled = g * jnp.expand_dims((row / mean) ** -0.5, rows) * jnp.expand_dims(column**-0.5, columns)
            return scaled, (row, column, whole)

        moments = (jax.tree.leaves(tree) for tree in (state.v_row, state.v_col, state.v))
        found = list(map(one, jax.tree.leaves(updates), *moments, axes))
        scaled = jax.tree.unflatten(jax.tree.structure(updates), [update for update, _ in found])
        return scaled, _state(state.count + 1, updates, (moment for _, moment in found))

    return optax.GradientTransformation(init, update)


def clip_by_matrix_rms(boxed: Any, most: float) -> optax.GradientTransformation:
    """Each update shrunk to a root mean square of `most`, if it is above: a layer's and an expert's by itself."""

    def one(leaf: Lettered, update: jax.Array) -> jax.Array:
        axes = tuple(i for i, a in enumerate(leaf.letters) if a not in STACKED)
        rms = jnp.sqrt(jnp.square(update).mean(axes, keepdims=True))
        return update / jnp.maximum(1.0, rms / most)

    return optax.stateless(lambda updates, params: jax.tree.map(one, boxed, updates, is_leaf=is_lettered))


def _rows_and_columns(leaf: Lettered, smallest: int) -> tuple[int, int] | None:
    """The second largest axis and the largest; None: the parameter is not factored."""
    if leaf.role not in ("kernel", "table"):
        return None
    shape = leaf.value.shape
    own = [i for i, letter in enumerate(leaf.letters) if letter not in STACKED]
    order = [own[i] for i in np.argsort([shape[i] for i in own], kind="stable")]
    return (order[-2], order[-1]) if len(order) > 1 and shape[order[-2]] >= smallest else None


def _without(x: jax.Array, axis: int) -> jax.Array:
    return jnp.zeros_like(x, shape=x.shape[:axis] + x.shape[axis + 1 :])


def _state(count: jax.Array, like: Any, moments: Iterable[tuple[jax.Array, ...]]) -> optax.FactoredState:
    tree = jax.tree.structure(like)
    row, column, whole = (jax.tree.unflatten(tree, leaves) for leaves in zip(*moments, strict=True))
    return optax.FactoredState(count=count, v_row=row, v_col=column, v=whole)
