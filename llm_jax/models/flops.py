"""How many floating-point operations a token costs, from the letters of the parameters."""

from __future__ import annotations

from math import prod
from typing import Any

import jax

from llm_jax.core.dims import Lettered, is_lettered
from llm_jax.layers.masks import Mask
from llm_jax.models.stack import Stack

CONVENTION = (
    "PaLM's (Chowdhery et al. 2022, appendix B): 6 a matrix weight + 12 x layers x heads x head width x context, "
    "or a layer's window where that is shorter"
)


def count(boxed: Any) -> int:
    return sum(prod(leaf.shape) for leaf in jax.tree.leaves(boxed))


def active(boxed: Any) -> int:
    """The parameters that one token is worked with: all, but for the experts that it does not go to."""
    return sum(_used(leaf) for leaf in jax.tree.leaves(boxed, is_leaf=is_lettered))


def matrix_weights(boxed: Any) -> int:
    """The weights that a token is multiplied with: kernels (a lookup in a table is no product)."""
    return sum(_used(leaf) for leaf in jax.tree.leaves(boxed, is_leaf=is_lettered) if leaf.role == "kernel")


def _used(leaf: Lettered) -> int:
    return round(prod(leaf.value.shape) * leaf.active)


def attention_flops(stack: Stack, length: int) -> int:
    """Of scores and of gathered values, forward and backward, for each token: as if all within reach were seen.

    A window's reach is its size; any other mask's is the row. A source that is consulted counts as having `length`
    tokens too.
    """
    attentions = [a for b in stack.pattern for a in (b.attention, b.cross) if a is not None]
    return 12 * stack.repeats * sum(a.key_heads * a.group * a.head * _seen(a.mask, length) for a in attentions)


def _seen(mask: Mask, length: int) -> int:
    """How many tokens of a row a query can see at most, past and future."""
    reach = mask.reach()
    return length if reach is None else min(length, reach)
