"""A transformer block: attention, then feed-forward, each beside a residual stream."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax

from llm_jax.core.dims import shard
from llm_jax.core.errors import InputError
from llm_jax.core.parts import Part, Rate
from llm_jax.layers.attention import Attention, CrossAttention, View
from llm_jax.layers.cache import Cache, Memory
from llm_jax.layers.feedforward import FeedForward
from llm_jax.layers.norms import Norm, RMSNorm
from llm_jax.layers.positions import Positions


class Placement(Part):
    """Where a branch is normalised: `placement(x_BTD, branch, norm, drop)`; `norm(name)` makes a norm of its own."""

    def __call__(self, x_BTD: jax.Array, branch: Callable, norm: Callable[[str], Norm], drop: Callable) -> jax.Array:
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class PreNorm(Placement):
    """Normalises what enters the branch: the stream itself stays free (Xiong et al. 2020)."""

    def __call__(self, x_BTD, branch, norm, drop):
        return x_BTD + drop(branch(norm("norm")(x_BTD)))


@dataclasses.dataclass(frozen=True)
class PostNorm(Placement):
    """Normalises the stream after each sum (Vaswani et al. 2017): the model needs no last norm then."""

    def __call__(self, x_BTD, branch, norm, drop):
        return norm("norm")(x_BTD + drop(branch(x_BTD)))


@dataclasses.dataclass(frozen=True)
class SandwichNorm(Placement):
    """Normalises what enters and what leaves the branch (Ding et al. 2021; Gemma 2)."""

    def __call__(self, x_BTD, branch, norm, drop):
        return x_BTD + drop(norm("out_norm")(branch(norm("norm")(x_BTD))))


@dataclasses.dataclass(frozen=True)
class OutNorm(Placement):
    """Normalises what leaves the branch only (Liu et al. 2022, Swin v2's res-post-norm; OLMo 2)."""

    def __call__(self, x_BTD, branch, norm, drop):
        return x_BTD + drop(norm("out_norm")(branch(x_BTD)))


Caches = Cache | tuple[Cache, Memory]  # of one block: of its attention, and what its cross-attention reads


class Block(nn.Module):
    """Attention and feed-forward. The parts are templates: each use is a copy, so nothing is shared by accident.

    With `cross`, attention to an encoder's source comes between the two (Vaswani et al. 2017).
    `positions` overrides the model's for this block alone (Gemma 3's local and global layers differ).
    """

    attention: Attention
    ffn: FeedForward
    norm: Norm = RMSNorm()
    placement: Placement = PreNorm()
    dropout: Rate = 0.0  # of what each branch adds
    positions: Positions | None = None
    cross: CrossAttention | None = None

    @nn.compact
    def __call__(self, x_BTD: jax.Array, view: View, cache: Caches | None = None) -> tuple[jax.Array, Caches | None]:
        if self.positions is not None:
            if type(self.positions).embed is not Positions.embed:
                name = type(self.positions).__name__
                raise InputError(f"{name} is added to the embedding: it can be model.positions, but not one block's")
            bias = self.positions.bias(self.attention.key_heads, self.attention.group)
            view = dataclasses.replace(view, bias=bias, positions=self.positions.clone(parent=None))
        own, read = cache if isinstance(cache, tuple) else (cache, None)

        def attend(y_BTD: jax.Array) -> jax.Array:
            nonlocal own
            y_BTD, own = self.attention(y_BTD, view, own)
            return y_BTD

        def consult(y_BTD: jax.Array) -> jax.Array:
            nonlocal read
            assert self.cross is not None
            y_BTD, read = self.cross(y_BTD, dataclasses.replace(view, dropout_key=view.key(4)), read)
            return y_BTD

        def feed(y_BTD: jax.Array) -> jax.Array:
            return self.ffn(y_BTD, view.tokens)

        branches = [(1, "attention", attend), (3, "cross", consult), (2, "ffn", feed)]
        for number, name, branch in branches if self.cross is not None else branches[::2]:
            x_BTD = self.placement(
                x_BTD, branch,
                norm=lambda use, name=name: self.norm.copy(name=f"{name}_{use}"),
                drop=lambda y_BTD, number=number: view.drop(y_BTD, self.dropout, number),
            )  # fmt: skip
        after: Any = own if self.cross is None or cache is None else (own, read)
        return shard(x_BTD, "BTD"), after

    def empty_cache(self, batch: int, length: int, dtype, source: int = 0) -> Caches:
        """For `length` tokens of each of `batch` rows, and a source of so many tokens where there is `cross`."""
        own = self.attention.empty_cache(batch, length, dtype)
        return own if self.cross is None else (own, self.cross.empty_memory(batch, source, dtype))


PLACEMENTS = dict(PreNorm=PreNorm, PostNorm=PostNorm, SandwichNorm=SandwichNorm, OutNorm=OutNorm)
