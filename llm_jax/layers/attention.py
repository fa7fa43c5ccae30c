"""Attention: gathers values from the tokens that a mask allows."""

from __future__ import annotations

import flax.linen as nn
import flax.struct
import jax

from llm_jax.core.alphabet import Einsum, FanIn, Init
from llm_jax.core.parts import Rate, Size
from llm_jax.layers.cache import Cache, Memory
from llm_jax.layers.dropout import dropout
from llm_jax.layers.kernels import Dense, Kernel, Scoring
from llm_jax.layers.masks import Causal, Mask
from llm_jax.layers.norms import NoNorm, Norm
from llm_jax.layers.positions import Positions
from llm_jax.layers.tokens import Tokens


@flax.struct.dataclass
class View:
    """What every layer of a model shares about one call: who asks, and how order is known."""

    tokens: Tokens
    start: int | jax.Array  # how many slots of a cache were filled before this call
    bias: object  # None, or what `Positions.bias` returned
    dropout_key: jax.Array | None  # None: evaluation, nothing is dropped
    positions: Positions = flax.struct.field(pytree_node=False)

    def key(self, number: int | jax.Array) -> jax.Array | None:
        """A dropout key of its own for each use in a layer."""
        return None if self.dropout_key is None else jax.random.fold_in(self.dropout_key, number)

    def drop(self, x: jax.Array, rate: float, number: int) -> jax.Array:
        return dropout(x, rate, self.key(number)) if rate else x


class Attention(nn.Module):
    """Each of K key heads serves G queries: G == 1 is multi-head, K == 1 multi-query attention, by one formula.

    Vaswani et al. 2017; grouped queries: Ainslie et al. 2023. Scores are scaled by `scale`, or 1 / sqrt(head).
    """

    key_heads: Size
    group: Size = 1
    head: Size = 64
    mask: Mask = Causal()
    kernel: Kernel = Dense()
    bias: bool = False  # of the query, key and value projections
    out_bias: bool = False
    norm: Norm = NoNorm()  # of queries and keys, over the head width (Henry et al. 2020)
    scale: float | None = None
    soft_cap: float = 0.0
    dropout: Rate = 0.0  # of the attention weights
    init: Init = FanIn()
    out_init: Init = FanIn()

    @nn.compact
    def __call__(self, x_BTD: jax.Array, view: View, cache: Cache | None = None) -> tuple[jax.Array, Cache | None]:
        heads = dict(K=self.key_heads, G=self.group, H=self.head)
        q_BTKGH = Einsum("BTD,DKGH->BTKGH", heads, self.bias, self.init, name="query")(x_BTD)
        k_BTKH = Einsum("BTD,DKH->BTKH", heads, self.bias, self.init, name="key")(x_BTD)
        v_BTKH = Einsum("BTD,DKH->BTKH", heads, self.bias, self.init, name="value")(x_BTD)

        q_BTKGH = view.positions.rotate(self.norm.copy(name="query_norm")(q_BTKGH, "H"), view.tokens)
        k_BTKH = view.positions.rotate(self.norm.copy(name="key_norm")(k_BTKH, "H"), view.tokens)
        memory = Memory(k_BTKH, v_BTKH, view.tokens)
        aligned = cache is None
        if cache is not None:
            memory, cache = cache.extend(memory, view.start)

        scoring = Scoring(
            view.tokens, memory.tokens, view.bias, view.key(0) if self.dropout else None, self.mask,
            self.head**-0.5 if self.scale is None else self.scale, self.soft_cap, self.dropout, aligned,
        )  # fmt: skip
        o_BTKGH = self.kernel(q_BTKGH, memory.k_BSKH, memory.v_BSKH, scoring)
        out = Einsum("BTKGH,KGHD->BTD", dict(D=x_BTD.shape[-1]), self.out_bias, self.out_init, name="out")
        return out(o_BTKGH), cache

    def empty_cache(self, batch: int, length: int, dtype) -> Cache:
        return Cache.empty(batch, length, self.key_heads, self.head, dtype, self.mask.reach())
