"""Heads that judge in place of writing: a class for a document, or a number for each token."""

from __future__ import annotations

from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp

from llm_jax.core.dims import FanIn, Fill, Init, contract, weigh
from llm_jax.core.parts import Rate, Size, replace, walk
from llm_jax.layers.dropout import dropout
from llm_jax.layers.pooling import Last, Mean, Pooling
from llm_jax.layers.tokens import Tokens
from llm_jax.models.flops import attention_flops, matrix_weights
from llm_jax.models.model import Model
from llm_jax.models.stack import Stack


class Scores(nn.Module):
    """Vectors [..., D] -> `count` numbers for each [..., O], in float32."""

    count: Size
    bias: bool = True
    init: Init = FanIn()

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        sizes, before = dict(D=x.shape[-1], O=self.count), "BT"[: x.ndim - 1]
        score = contract(f"{before}D,DO->{before}O", x, weigh(self, "kernel", "DO", sizes, self.init, sizes["D"]))
        if self.bias:
            bias_O = weigh(self, "bias", "O", sizes, Fill(0.0), 1).astype(jnp.float32)
            score = score + bias_O.reshape((1,) * len(before) + (self.count,))
        return score


class _Judge(Model):
    """A model that puts numbers on what a `backbone`, an Encoder or a Decoder, makes of a text."""

    backbone: Model

    def filled(self, vocabulary, context, source=0, start=None):
        return replace(self, backbone=self.backbone.filled(vocabulary, context))

    def trunks(self):
        return ("backbone",)

    def prepared(self, params):
        return {**params, "backbone": self.backbone.prepared(params["backbone"])}

    def limit(self):
        return self.backbone.limit()

    def words(self):
        return self.backbone.words()

    def flops_per_token(self, boxed, length):
        stacks = [part for _, part in walk(self.backbone) if isinstance(part, Stack)]
        return 6 * matrix_weights(boxed) + sum(attention_flops(stack, length) for stack in stacks)


class Classifier(_Judge):
    """Token ids [B, T] -> a score for each class of a row's document [B, O] in float32.

    `pooling` makes one vector of the backbone's: `First`, `Mean` or BERT's `Pooler` where it is an Encoder, `Last`
    where it is a Decoder. An Encoder's own pooling and head are not used.
    """

    classes: Size = 2
    pooling: Pooling = Mean()
    bias: bool = True
    dropout: Rate = 0.0  # of the pooled vector

    @nn.compact
    def __call__(
        self, tokens_BT: jax.Array, at: Tokens | None = None, types_BT: jax.Array | None = None, *,
        dropout_key: jax.Array | None = None,
    ) -> jax.Array:  # fmt: skip
        at = Tokens.of(tokens_BT.shape) if at is None else at
        first, second = (None, None) if dropout_key is None else jax.random.split(dropout_key)
        x_BTD = self.backbone.vectors(tokens_BT, at, types_BT, dropout_key=first)
        pooled_BD = dropout(self.pooling(x_BTD, at), self.dropout, second)
        return Scores(self.classes, self.bias, name="head")(pooled_BD)

    def classify(self, batch: Mapping[str, jax.Array], dropout_key: jax.Array | None) -> jax.Array:
        """[B, O]: the scores of a batch's texts. A backbone that tells no kinds of text apart reads no `types_BT`."""
        at = Tokens(batch["position_BT"], batch["segment_BT"])
        types_BT = batch.get("types_BT") if getattr(self.backbone, "types", 0) > 1 else None
        return self(batch["tokens_BT"], at, types_BT, dropout_key=dropout_key)


class Scorer(_Judge):
    """Token ids [B, T] -> a number for each token [B, T] in float32: the value of the text so far.

    The last token's is a score of the whole text, `reward` (Stiennon et al. 2020). With `head_init=Fill(0.0)` every
    score is 0 at first.
    """

    bias: bool = True
    head_init: Init = FanIn()

    @nn.compact
    def __call__(
        self, tokens_BT: jax.Array, at: Tokens | None = None, *, dropout_key: jax.Array | None = None
    ) -> jax.Array:
        at = Tokens.of(tokens_BT.shape) if at is None else at
        x_BTD = self.backbone.vectors(tokens_BT, at, dropout_key=dropout_key)
        return Scores(1, self.bias, self.head_init, name="head")(x_BTD)[..., 0]

    def reward(
        self, tokens_BT: jax.Array, at: Tokens | None = None, *, dropout_key: jax.Array | None = None
    ) -> jax.Array:
        """[B] float32: the value at the last token of each row's document, the whole text's score."""
        at = Tokens.of(tokens_BT.shape) if at is None else at
        return Last(parent=None)(self(tokens_BT, at, dropout_key=dropout_key)[..., None], at)[:, 0]


MODELS = dict(Classifier=Classifier, Scorer=Scorer)
