"""The mean of a text's word vectors: what can be known of a text without the order of its words."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from llm_jax.core.errors import InputError
from llm_jax.core.parts import replace
from llm_jax.layers.embedding import Embed
from llm_jax.layers.tokens import Tokens
from llm_jax.models.flops import matrix_weights
from llm_jax.models.model import Model
from llm_jax.models.transformer import fit_vocabulary


class BagOfTokens(Model):
    """Token ids [B, T] -> the mean of the vectors of each text's tokens so far [B, T, D].

    A backbone for a `Classifier` with the pooling `Last()`, which makes it fastText's without n-grams (Joulin et al.
    2017), and for a `Scorer`. It reads texts of any length, and from few examples learns by heart less than a
    transformer does. Under a head `init_from` takes the vectors of a Decoder's or an Encoder's run.
    """

    embed: Embed

    @nn.compact
    def __call__(
        self, tokens_BT: jax.Array, at: Tokens | None = None, *, dropout_key: jax.Array | None = None
    ) -> jax.Array:
        return self.vectors(tokens_BT, at, dropout_key=dropout_key)

    def vectors(self, tokens_BT, at=None, types_BT=None, *, dropout_key=None):
        if types_BT is not None:
            raise InputError("BagOfTokens tells no kinds of text apart: use an Encoder with types")
        at = Tokens.of(tokens_BT.shape) if at is None else at
        x_BTD = self.embed.drop(self.embed(tokens_BT), dropout_key)
        total_BTD = jnp.cumsum(x_BTD.astype(jnp.float32), 1)
        before_BTD = jnp.pad(total_BTD, ((0, 0), (1, 0), (0, 0)))
        place_BT = jnp.arange(tokens_BT.shape[1])[None]
        opens_BT = jnp.diff(at.segment_BT, axis=1, prepend=at.segment_BT[:, :1] - 1) != 0
        opens_BT = jnp.broadcast_to(opens_BT, tokens_BT.shape)
        first_BT = jax.lax.cummax(jnp.where(opens_BT, place_BT, 0), axis=1)
        sum_BTD = total_BTD - jnp.take_along_axis(before_BTD, first_BT[..., None], 1)
        return (sum_BTD / (place_BT - first_BT + 1)[..., None].astype(jnp.float32)).astype(x_BTD.dtype)

    def filled(self, vocabulary, context, source=0, start=None):
        return replace(self, embed=fit_vocabulary(self.embed, vocabulary))

    def limit(self):
        return None

    def words(self):
        return self.embed.vocabulary

    def flops_per_token(self, boxed, length):
        return 6 * matrix_weights(boxed)


MODELS = dict(BagOfTokens=BagOfTokens)
