"""A transformer block: attention, then feed-forward, each beside a residual stream."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import flax.linen as nn
import jax

from llm_jax.core.alphabet import shard
from llm_jax.core.parts import Part, Rate
from llm_jax.core.tables import InputError
from llm_jax.layers.attention import Attention, View
from llm_jax.layers.cache import Cache
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


class Block(nn.Module):
    """Attention and feed-forward. The parts are templates: each use is a copy, so nothing is shared by accident.

    `positions` overrides the model's for this block alone (Gemma 3's local and global layers differ).
    """

    attention: Attention
    ffn: FeedForward
    norm: Norm = RMSNorm()
    placement: Placement = PreNorm()
    dropout: Rate = 0.0  # of what each branch adds
    positions: Positions | None = None

    @nn.compact
    def __call__(self, x_BTD: jax.Array, view: View, cache: Cache | None = None) -> tuple[jax.Array, Cache | None]:
        if self.positions is not None:
            if type(self.positions).embed is not Positions.embed:
                name = type(self.positions).__name__
                raise InputError(f"{name} is added to the embedding: it can be model.positions, but not one block's")
            bias = self.positions.bias(self.attention.key_heads, self.attention.group)
            view = dataclasses.replace(view, bias=bias, positions=self.positions.clone(parent=None))
        after = cache

        def attend(y_BTD: jax.Array) -> jax.Array:
            nonlocal after
            y_BTD, after = self.attention(y_BTD, view, cache)
            return y_BTD

        for number, (name, branch) in enumerate((("attention", attend), ("ffn", self.ffn)), start=1):
            x_BTD = self.placement(
                x_BTD, branch,
                norm=lambda use, name=name: self.norm.copy(name=f"{name}_{use}"),
                drop=lambda y_BTD, number=number: view.drop(y_BTD, self.dropout, number),
            )  # fmt: skip
        return shard(x_BTD, "BTD"), after


PLACEMENTS = dict(PreNorm=PreNorm, PostNorm=PostNorm, SandwichNorm=SandwichNorm)
