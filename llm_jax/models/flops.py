"""How many floating-point operations a token costs, from the letters of the parameters."""

from __future__ import annotations

from math import prod
from typing import Any

import jax

from llm_jax.core.alphabet import is_lettered
from llm_jax.models.decoder import Decoder

CONVENTION = (
    "PaLM's (Chowdhery et al. 2022, appendix B): 6 a matrix weight + 12 x layers x heads x head width x context"
)


def count(boxed: Any) -> int:
    return sum(prod(leaf.shape) for leaf in jax.tree.leaves(boxed))


def matrix_weights(model: Decoder, boxed: Any) -> int:
    """The weights that a token is multiplied with: kernels, and the embedding where it also gives the scores."""
    total = 0
    for path, leaf in jax.tree_util.tree_leaves_with_path(boxed, is_leaf=is_lettered):
        if path[-1].key == "kernel":
            total += prod(leaf.value.shape)
    tied = "head" not in boxed
    return total + (model.embed.vocabulary * model.embed.width if tied else 0)


def training_flops_per_token(model: Decoder, boxed: Any, length: int) -> float:
    """Forward and backward, without recomputation, by `CONVENTION`: attention counts as if nothing were masked."""
    heads = sum(b.attention.key_heads * b.attention.group * b.attention.head for b in model.stack.pattern)
    return 6 * matrix_weights(model, boxed) + 12 * model.stack.repeats * heads * length
