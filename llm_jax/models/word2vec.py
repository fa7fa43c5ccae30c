"""Word vectors: a table of vectors of words, and a table of what is predicted with them (Mikolov et al. 2013)."""

from __future__ import annotations

import jax

from llm_jax.core.dims import Fill, lookup, weigh
from llm_jax.core.parts import replace
from llm_jax.layers.embedding import Embed
from llm_jax.models.model import Model
from llm_jax.models.transformer import fit_vocabulary


class Word2Vec(Model):
    """Token ids [B, T] -> the words' vectors [B, T, D]; trained by the objectives `SkipGram` and `Cbow`."""

    embed: Embed

    def setup(self):
        sizes = dict(V=self.embed.vocabulary, D=self.embed.width)
        self.decisions_VD = weigh(self, "decisions", "VD", sizes, Fill(0.0), 1, role="table")

    def __call__(self, tokens_BT: jax.Array) -> jax.Array:
        return self.embed(tokens_BT)

    def decide(self, rows_BTM: jax.Array) -> jax.Array:
        """[B, T, M, D]: the vectors of M binary decisions for each word, which may be words or nodes of a tree."""
        return lookup(self.decisions_VD, rows_BTM)

    def filled(self, vocabulary, context, source=0, start=None):
        return replace(self, embed=fit_vocabulary(self.embed, vocabulary))


MODELS = dict(Word2Vec=Word2Vec)
