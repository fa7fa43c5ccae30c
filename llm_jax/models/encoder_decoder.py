"""The encoder-decoder: a text is read by one side, and written anew by the other (Vaswani et al. 2017, BART, T5)."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from llm_jax.core.parts import Count, replace
from llm_jax.layers.attention import Source
from llm_jax.layers.embedding import Embed, Head, Tied
from llm_jax.layers.tokens import Tokens
from llm_jax.models.flops import attention_flops, matrix_weights
from llm_jax.models.model import Model, Translator
from llm_jax.models.transformer import Side, check_length, fit_vocabulary


class EncoderDecoder(Translator):
    """Source ids [B, S] and target ids [B, T] -> a score for each next target token [B, T, V] in float32.

    Both sides share `embed`. The decoder's blocks need `cross`. Generation begins a target with the token `start`.
    `context` is the target's and `source_context` the source's. 0, and None for `start`, stand for what the data has,
    filled in when a run begins. With `forced`, every text goes on with that token whatever its score (BART's `bos`, a
    language): it stands before what is generated and before targets, and is itself never a target.
    """

    embed: Embed
    encoder: Side
    decoder: Side
    head: Head = Tied()
    context: Count = 0
    source_context: Count = 0
    start: Count | None = None
    forced: Count | None = None

    def __call__(
        self, tokens_BT: jax.Array, at: Tokens | None = None, *, caches: Any = None, start: int | jax.Array = 0,
        dropout_key: jax.Array | None = None, source: Source | None = None,
    ):  # fmt: skip
        """As `Generator`'s; `source` is what `encode` gave, and None only once the caches have read it."""
        if source is None and self.is_initializing():
            source = self.encode(tokens_BT)
        x_BTD, caches = self.hidden(tokens_BT, at, caches=caches, start=start, dropout_key=dropout_key, source=source)
        return self.score(x_BTD), caches

    def encode(self, source_BS: jax.Array, at: Tokens | None = None, dropout_key: jax.Array | None = None) -> Source:
        """What the encoder makes of source ids [B, S]."""
        at = Tokens.of(source_BS.shape) if at is None else at
        return Source(self.encoder(self.embed, source_BS, at, dropout_key=dropout_key)[0], at)

    def hidden(
        self, tokens_BT: jax.Array, at: Tokens | None = None, *, caches: Any = None, start: int | jax.Array = 0,
        dropout_key: jax.Array | None = None, source: Source | None = None,
    ):  # fmt: skip
        at = Tokens.of(tokens_BT.shape) if at is None else at
        return self.decoder(
            self.embed, tokens_BT, at, caches=caches, start=start, dropout_key=dropout_key, source=source
        )

    def score(self, x_BTD: jax.Array) -> jax.Array:
        return self.head(x_BTD, self.embed)

    def vectors(self, tokens_BT, at=None, types_BT=None, *, dropout_key=None):
        return Model.vectors(self, tokens_BT)  # refused: there are two texts

    def read(self, tokens_BT, at, slots, dtype):
        batch, length = tokens_BT.shape
        source = self.encode(tokens_BT, at)
        caches = self.decoder.stack.empty_cache(batch, slots, dtype, length)
        opening_T = jnp.array(self.opening(), jnp.int32)
        begun_BT = jnp.broadcast_to(opening_T[None], (batch, len(opening_T)))
        x_BTD, caches = self.hidden(begun_BT, None, caches=caches, start=jnp.int32(0), source=source)
        return self.score(x_BTD[:, -1:])[:, 0], caches

    def opening(self):
        return super().opening() + (() if self.forced is None else (self.forced,))

    def empty_cache(self, batch, length, dtype):
        return self.decoder.stack.empty_cache(batch, length, dtype, self.source_context or length)

    def prepared(self, params):
        def side(part: Side, params: Any) -> Any:
            return {**params, "stack": part.stack.prepared(params["stack"])}

        sides = {name: side(getattr(self, name), params[name]) for name in ("encoder", "decoder")}
        return {**params, **sides}

    def filled(self, vocabulary, context, source=0, start=None):
        opened = context + (self.forced is not None)  # a row of the data has a place for `start` alone
        check_length(self.decoder.positions, max(opened, self.context), "model.decoder.positions")
        check_length(self.encoder.positions, max(source, self.source_context), "model.encoder.positions")
        return replace(
            self, embed=fit_vocabulary(self.embed, vocabulary), context=self.context or context,
            source_context=self.source_context or source, start=start if self.start is None else self.start,
        )  # fmt: skip

    def limit(self):
        return self.context or self.decoder.positions.limit()

    def reads(self):
        return self.source_context or self.encoder.positions.limit()

    def words(self):
        return self.embed.vocabulary

    def flops_per_token(self, boxed, length):
        """Of a target token together with a source token."""
        tied = self.embed.vocabulary * self.embed.width if self.head.ties() else 0
        sides = attention_flops(self.encoder.stack, length) + attention_flops(self.decoder.stack, length)
        return 6 * (matrix_weights(boxed) + tied) + sides


MODELS = dict(EncoderDecoder=EncoderDecoder)
