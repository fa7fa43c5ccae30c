"""Attention: gathers values from the tokens that a mask allows."""

from __future__ import annotations

from typing import Literal

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from llm_jax.core.dims import Einsum, FanIn, Init
from llm_jax.core.errors import InputError
from llm_jax.core.parts import NonNegative, Positive, Rate, Size
from llm_jax.layers.cache import Cache, Memory
from llm_jax.layers.dropout import dropout
from llm_jax.layers.kernels import Dense, Kernel, Scoring
from llm_jax.layers.masks import Causal, Full, Mask
from llm_jax.layers.norms import NoNorm, Norm
from llm_jax.layers.positions import Positions
from llm_jax.layers.tokens import Tokens


@flax.struct.dataclass
class Source:
    """What an encoder made of the text that a decoder consults."""

    x_BSD: jax.Array
    tokens: Tokens


@flax.struct.dataclass
class View:
    """What every layer of a model shares about one call: who asks, and how order is known."""

    tokens: Tokens
    start: int | jax.Array  # how many slots of a cache were filled before this call
    bias: object  # None, or what `Positions.bias` returned
    dropout_key: jax.Array | None  # None: evaluation, nothing is dropped
    positions: Positions = flax.struct.field(pytree_node=False)
    source: Source | None = None  # None: there is none, or the caches hold what was read of it

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
    key_bias: bool = True  # without it (Whisper) `bias` leaves the keys alone
    out_bias: bool = False
    norm: Norm = NoNorm()  # of queries and keys (Henry et al. 2020)
    norm_over: Literal["head", "heads"] = "head"  # each head alone, or all of them together (OLMo 2)
    scale: Positive | None = None
    soft_cap: NonNegative = 0.0
    dropout: Rate = 0.0  # of the attention weights
    init: Init = FanIn()
    out_init: Init = FanIn()

    @nn.compact
    def __call__(self, x_BTD: jax.Array, view: View, cache: Cache | None = None) -> tuple[jax.Array, Cache | None]:
        q_BTKGH, (k_BTKH, v_BTKH) = self._queries(x_BTD), self._keys_and_values(x_BTD, "T")
        q_BTKGH = view.positions.rotate(q_BTKGH, view.tokens)
        memory = Memory(view.positions.rotate(k_BTKH, view.tokens), v_BTKH, view.tokens)
        aligned = cache is None
        if cache is not None:
            memory, cache = cache.extend(memory, view.start)
        return self._gather(x_BTD, q_BTKGH, memory, view, view.bias, aligned), cache

    def _queries(self, x_BTD: jax.Array) -> jax.Array:
        heads = dict(K=self.key_heads, G=self.group, H=self.head)
        q_BTKGH = Einsum("BTD,DKGH->BTKGH", heads, self.bias, self.init, name="query")(x_BTD)
        return self.norm.copy(name="query_norm")(q_BTKGH, "H" if self.norm_over == "head" else "KGH")

    def _keys_and_values(self, x_BSD: jax.Array, time: Literal["T", "S"]) -> tuple[jax.Array, jax.Array]:
        heads, equation = dict(K=self.key_heads, H=self.head), f"B{time}D,DKH->B{time}KH"
        k_BSKH = Einsum(equation, heads, self.bias and self.key_bias, self.init, name="key")(x_BSD)
        v_BSKH = Einsum(equation, heads, self.bias, self.init, name="value")(x_BSD)
        return self.norm.copy(name="key_norm")(k_BSKH, "H" if self.norm_over == "head" else "KH"), v_BSKH

    def _gather(
        self, x_BTD: jax.Array, q_BTKGH: jax.Array, memory: Memory, view: View, bias: object, aligned: bool
    ) -> jax.Array:
        scoring = Scoring(
            view.tokens, memory.tokens, bias, view.key(0) if self.dropout else None, self.mask,
            self.head**-0.5 if self.scale is None else self.scale, self.soft_cap, self.dropout, aligned,
        )  # fmt: skip
        o_BTKGH = self.kernel(q_BTKGH, memory.k_BSKH, memory.v_BSKH, scoring)
        return Einsum("BTKGH,KGHD->BTD", dict(D=x_BTD.shape[-1]), self.out_bias, self.out_init, name="out")(o_BTKGH)

    def empty_cache(self, batch: int, length: int, dtype) -> Cache:
        return Cache.empty(batch, length, self.key_heads, self.head, dtype, self.mask.reach())


class CrossAttention(Attention):
    """Gathers from an encoder's vectors: every token of the source whose segment is the query's own.

    What it reads of the source is kept in the cache, so generation reads it once. No positions are involved.
    """

    mask: Mask = Full()

    @nn.compact
    def __call__(self, x_BTD: jax.Array, view: View, cache: Memory | None = None) -> tuple[jax.Array, Memory | None]:
        q_BTKGH = self._queries(x_BTD)
        if view.source is not None:
            memory = Memory(*self._keys_and_values(view.source.x_BSD, "S"), view.source.tokens)
        elif cache is not None:
            memory = cache
        else:
            raise InputError("cross-attention has no source: this stack belongs in an EncoderDecoder's decoder")
        return self._gather(x_BTD, q_BTKGH, memory, view, None, False), memory if cache is not None else None

    def empty_memory(self, batch: int, length: int, dtype) -> Memory:
        zeros = jnp.zeros((batch, length, self.key_heads, self.head), dtype)
        return Memory(zeros, zeros, Tokens.none((batch, length)))


ATTENTIONS = dict(Attention=Attention, CrossAttention=CrossAttention)
