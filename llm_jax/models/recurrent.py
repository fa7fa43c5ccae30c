"""Recurrent language models, and translation by them: without attention, and with the first kinds of it."""

from __future__ import annotations

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from llm_jax.core.dims import Einsum
from llm_jax.core.parts import Count, Rate, Size, replace
from llm_jax.layers.dropout import dropout
from llm_jax.layers.embedding import Embed, Head, Tied
from llm_jax.layers.tokens import Tokens
from llm_jax.models.alignments import Alignment, Bahdanau, Read, summary
from llm_jax.models.cells import GRU, Cell, State
from llm_jax.models.flops import matrix_weights
from llm_jax.models.model import Generator, Translator
from llm_jax.models.transformer import fit_vocabulary, keys


class RecurrentDecoder(Generator):
    """Token ids [B, T] -> a score for each next token [B, T, V] in float32, by layers of a recurrent cell.

    What it knows of a text is the state of each layer, so a text may be of any length. `dropout` is of what each layer
    passes on to the next.
    """

    embed: Embed
    cell: Cell = GRU()
    layers: Size = 1
    head: Head = Tied()
    dropout: Rate = 0.0

    def setup(self):
        self.cells = [self.cell.copy() for _ in range(self.layers)]

    def hidden(self, tokens_BT, at=None, *, caches=None, start=0, dropout_key=None):
        at = Tokens.of(tokens_BT.shape) if at is None else at
        first, *later = keys(dropout_key, 1 + self.layers)
        x_BTD, states = self.embed.drop(self.embed(tokens_BT), first), []
        for number, (cell, key) in enumerate(zip(self.cells, later, strict=True)):
            x_BTD, state = cell(x_BTD, at, None if caches is None else caches[number])
            x_BTD, states = dropout(x_BTD, self.dropout, key), [*states, state]
        return x_BTD, None if caches is None else tuple(states)

    def score(self, x_BTD: jax.Array) -> jax.Array:
        return self.head(x_BTD, self.embed)

    def filled(self, vocabulary, context, source=0, start=None):
        return replace(self, embed=fit_vocabulary(self.embed, vocabulary))

    def empty_cache(self, batch, length, dtype):
        return tuple(self.cell.empty(batch, self.embed.width, dtype) for _ in range(self.layers))

    def limit(self):
        return None

    def words(self):
        return self.embed.vocabulary

    def flops_per_token(self, boxed, length):
        tied = self.embed.vocabulary * self.embed.width if self.head.ties() else 0
        return 6 * (matrix_weights(boxed) + tied)


@flax.struct.dataclass
class Writing:
    """What a translation under way knows: the state of each layer of the decoder, and the source."""

    states: tuple[State, ...]
    source: Read


class RecurrentEncoderDecoder(Translator):
    """Source ids [B, S] and target ids [B, T] -> a score for each next target token [B, T, V] in float32.

    The decoder's layers begin from what the encoder's end with (Sutskever et al. 2014, Cho et al. 2014); `alignment` is
    how they consult the source after that. A bidirectional encoder gives half of its width to each direction.
    `start` is as `EncoderDecoder`'s.
    """

    embed: Embed
    cell: Cell = GRU()
    layers: Size = 1
    alignment: Alignment = Bahdanau()
    bidirectional: bool = True
    head: Head = Tied()
    dropout: Rate = 0.0
    start: Count | None = None

    def setup(self):
        width = self.embed.width
        self.forward = [self.cell.copy() for _ in range(self.layers)]
        self.backward = [self.cell.copy() for _ in range(self.layers)] if self.bidirectional else []
        self.decoder = [self.cell.copy() for _ in range(self.layers)]
        self.begins = [Einsum("BTD,DF->BTF", dict(F=width), True) for _ in range(self.layers * self.cell.parts())]
        self.consult = self.alignment.clone(width=self.alignment.width or width)

    def __call__(
        self, tokens_BT: jax.Array, at: Tokens | None = None, *, caches: Any = None, start: int | jax.Array = 0,
        dropout_key: jax.Array | None = None, source: Read | None = None,
    ):  # fmt: skip
        """As `Generator`'s; `source` is what `encode` gave, and None only once the caches have read it."""
        if source is None and self.is_initializing():
            source = self.encode(tokens_BT)
        x_BTD, caches = self.hidden(tokens_BT, at, caches=caches, start=start, dropout_key=dropout_key, source=source)
        return self.score(x_BTD), caches

    def encode(self, source_BS, at=None, dropout_key=None) -> Read:
        at = Tokens.of(source_BS.shape) if at is None else at
        first, *later = keys(dropout_key, 1 + self.layers)
        x_BSD = self.embed.drop(self.embed(source_BS), first)
        width = self.embed.width // 2 if self.bidirectional else self.embed.width
        back = jax.tree.map(lambda x: x[:, ::-1], at)
        for number, key in enumerate(later):
            y_BSD, _ = self.forward[number](x_BSD, at, width=width)
            if self.bidirectional:
                z_BSD, _ = self.backward[number](x_BSD[:, ::-1], back, width=self.embed.width - width)
                y_BSD = jnp.concatenate([y_BSD, z_BSD[:, ::-1]], -1)
            x_BSD = dropout(y_BSD, self.dropout, key)
        return Read(x_BSD, self.consult.keys(x_BSD), at, width)

    def hidden(
        self, tokens_BT: jax.Array, at: Tokens | None = None, *, caches: Writing | None = None,
        start: int | jax.Array = 0, dropout_key: jax.Array | None = None, source: Read | None = None,
    ) -> tuple[jax.Array, Writing | None]:  # fmt: skip
        at = Tokens.of(tokens_BT.shape) if at is None else at
        if source is None:
            assert caches is not None, "without a source, the caches hold one"
            source = caches.source
        first, *later = keys(dropout_key, 1 + self.layers)
        x_BTD, states = self.embed.drop(self.embed(tokens_BT), first), []
        summary_BTD = summary(source, at.segment_BT)
        x_BTD = self.consult.enter(x_BTD, summary_BTD)
        for number, key in enumerate(later):
            parts = self.cell.parts()
            begins = self.begins[number * parts : (number + 1) * parts]
            begin = tuple(jnp.tanh(begin(summary_BTD)) for begin in begins)
            state = None if caches is None else caches.states[number]
            feed = self.consult.feed(source) if number == 0 else None
            x_BTD, state = self.decoder[number](x_BTD, at, state, begin=begin, feed=feed)
            x_BTD, states = dropout(x_BTD, self.dropout, key), [*states, state]
        x_BTD = self.consult.combine(x_BTD, at, source)
        return x_BTD, None if caches is None else Writing(tuple(states), source)

    def score(self, x_BTD: jax.Array) -> jax.Array:
        return self.head(x_BTD, self.embed)

    def read(self, tokens_BT, at, slots, dtype):
        batch, length = tokens_BT.shape
        source = self.encode(tokens_BT, at)
        begun_B1 = jnp.full((batch, 1), self.opening()[0], jnp.int32)
        x_BTD, caches = self.hidden(begun_B1, None, caches=self.empty_cache(batch, length, dtype), source=source)
        return self.score(x_BTD)[:, -1], caches

    def empty_cache(self, batch, length, dtype):
        """The states, and room for a source of `length` tokens."""
        width = self.embed.width
        states = tuple(self.cell.empty(batch, width, dtype) for _ in range(self.layers))
        x_BSD = jnp.zeros((batch, length, width), dtype)
        compared = (batch, length, self.alignment.width or width)
        key_BSF = jnp.zeros(compared, dtype) if self.alignment.compares else None
        forward = width // 2 if self.bidirectional else width
        return Writing(states, Read(x_BSD, key_BSF, Tokens.none((batch, length)), forward))

    def filled(self, vocabulary, context, source=0, start=None):
        embed = fit_vocabulary(self.embed, vocabulary)
        return replace(self, embed=embed, start=start if self.start is None else self.start)

    def limit(self):
        return None

    def words(self):
        return self.embed.vocabulary

    def flops_per_token(self, boxed, length):
        tied = self.embed.vocabulary * self.embed.width if self.head.ties() else 0
        return 6 * (matrix_weights(boxed) + tied)


MODELS = dict(RecurrentDecoder=RecurrentDecoder, RecurrentEncoderDecoder=RecurrentEncoderDecoder)
