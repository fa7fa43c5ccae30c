"""Images: patches become tokens, for a classifier or as a prefix that a generator reads (Dosovitskiy et al. 2021)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from llm_jax.core.dims import Einsum, FanIn, Fill, Init, Normal, contract, shard, weigh
from llm_jax.core.errors import InputError
from llm_jax.core.parts import Count, Rate, Size, replace
from llm_jax.layers.dropout import dropout
from llm_jax.layers.norms import LayerNorm, Norm
from llm_jax.layers.pooling import First, Pooling
from llm_jax.layers.positions import Learned, Positions
from llm_jax.layers.tokens import PADDING, Tokens
from llm_jax.models.decoder import Decoder
from llm_jax.models.flops import attention_flops, matrix_weights
from llm_jax.models.heads import Scores
from llm_jax.models.model import Generator, Model
from llm_jax.models.stack import Stack
from llm_jax.models.transformer import check_length, keys, through


class Patches(nn.Module):
    """Images [B, Y, X, A] -> a vector for each square of `patch` x `patch` pixels [B, T, D], row by row.

    It is the convolution whose stride is the size of its kernel, as one product of matrices.
    """

    width: Size
    image: tuple[Size, Size] = (224, 224)  # pixels: rows, columns
    patch: Size = 16
    channels: Size = 3
    bias: bool = True
    dropout: Rate = 0.0  # of what enters the stack: with its positions
    init: Init = FanIn()

    def shape(self) -> tuple[int, int, int]:
        """Of an image: rows, columns, channels."""
        return *self.image, self.channels

    def count(self) -> int:
        """How many patches an image has.

        Raises:
          InputError: the patches do not divide it.
        """
        rows, columns = self.image
        if rows % self.patch or columns % self.patch:
            raise InputError(f"patches of {self.patch} pixels a side do not divide images of {rows} x {columns}")
        return (rows // self.patch) * (columns // self.patch)

    @nn.compact
    def __call__(self, image_BYXA: jax.Array) -> jax.Array:
        count, size = self.count(), self.patch
        if image_BYXA.shape[1:] != self.shape():
            raise InputError(
                f"images have {image_BYXA.shape[1:]} rows, columns and channels, but the model reads {self.shape()}: "
                "set image and channels of its patches"
            )
        batch, rows, columns, channels = image_BYXA.shape
        cut = image_BYXA.reshape(batch, rows // size, size, columns // size, size, channels).swapaxes(2, 3)
        x_BTYXA = cut.reshape(batch, count, size, size, channels)
        sizes = dict(Y=size, X=size, A=channels, D=self.width)
        kernel = weigh(self, "kernel", "YXAD", sizes, self.init, size * size * channels)
        x_BTD = contract("BTYXA,YXAD->BTD", x_BTYXA.astype(kernel.dtype), kernel)  # pixels are data, of another dtype
        if self.bias:
            x_BTD = x_BTD + weigh(self, "bias", "D", sizes, Fill(0.0), 1)[None, None].astype(jnp.float32)
        return shard(x_BTD.astype(kernel.dtype), "BTD")


class ImageEncoder(Model):
    """Images [B, Y, X, A] -> a vector for each token, [B, T, D]. The blocks' masks are usually `Full()`.

    `leading` learned vectors come before the patches: one is ViT's [CLS], more are registers (Darcet et al. 2024).
    """

    patches: Patches
    stack: Stack
    positions: Positions = Learned()
    norm: Norm = LayerNorm(1e-12)
    leading: Count = 1
    leading_init: Init = Normal(0.02)

    @nn.compact
    def __call__(self, image_BYXA: jax.Array, *, dropout_key: jax.Array | None = None) -> jax.Array:
        x_BTD = self.patches(image_BYXA)
        if self.leading:
            sizes = dict(P=self.leading, D=self.patches.width)
            first_PD = weigh(self, "leading_vectors", "PD", sizes, self.leading_init, 1, role="table").astype(
                x_BTD.dtype
            )
            first_BTD = jnp.broadcast_to(first_PD[None], (x_BTD.shape[0], *first_PD.shape))
            x_BTD = jnp.concatenate([first_BTD, x_BTD], axis=1)
        at = Tokens.of(x_BTD.shape[:2])
        first, second = keys(dropout_key, 2)
        x_BTD = dropout(self.positions.embed(x_BTD, at), self.patches.dropout, first)
        return self.norm(through(self.stack, self.positions, x_BTD, at, dropout_key=second)[0])

    def blank(self, length):
        return self.nothing(1)

    def nothing(self, rows: int) -> jax.Array:
        """So many images that show nothing."""
        return jnp.zeros((rows, *self.patches.shape()))

    def tokens(self) -> int:
        """How many vectors come of an image."""
        return self.leading + self.patches.count()

    def filled(self, vocabulary, context, source=0, start=None):
        check_length(self.positions, self.tokens(), "the image's positions")
        return self

    def limit(self):
        return self.tokens()

    def flops(self, boxed: Any) -> float:
        """Of an image, forward and backward."""
        tokens = self.tokens()
        return tokens * (6 * matrix_weights(boxed) + attention_flops(self.stack, tokens))

    def flops_per_token(self, boxed, length):
        """Those of an image, spread over the `length` tokens of text that the data counts beside it."""
        return self.flops(boxed) / length


class ImageClassifier(Model):
    """Images [B, Y, X, A] -> a score for each class [B, O] in float32."""

    image: ImageEncoder
    classes: Size
    pooling: Pooling = First()

    def setup(self):
        self.scores = Scores(self.classes)

    def __call__(self, image_BYXA: jax.Array, *, dropout_key: jax.Array | None = None) -> jax.Array:
        x_BTD = self.image(image_BYXA, dropout_key=dropout_key)
        return self.scores(self.pooling(x_BTD, Tokens.of(x_BTD.shape[:2])))

    def classify(self, batch: Mapping[str, jax.Array], dropout_key: jax.Array | None) -> jax.Array:
        """[B, O]: the scores of a batch's images."""
        return self(batch["image_BYXA"], dropout_key=dropout_key)

    def blank(self, length):
        return self.image.blank(length)

    def filled(self, vocabulary, context, source=0, start=None):
        return replace(self, image=self.image.filled(vocabulary, context))

    def limit(self):
        return self.image.limit()

    def flops_per_token(self, boxed, length):
        return self.image.flops_per_token(boxed["image"], length)


class Captioner(Generator):
    """An image and a text's tokens -> a score for each next token [B, T, V] in float32.

    The image's vectors, projected to the generator's width, come before the text in one row (Tsimpoukelli et al. 2021,
    "Frozen"; Liu et al. 2023, "LLaVA"). With `Prefix(n)` in the blocks of `text` the n vectors of an image see each
    other. `text.context` counts them too.
    """

    image: ImageEncoder
    text: Decoder

    def setup(self):
        self.project = Einsum("BTD,DF->BTF", dict(F=self.text.embed.width), bias=True)

    def __call__(
        self, tokens_BT: jax.Array, at: Tokens | None = None, *, caches: Any = None, start: int | jax.Array = 0,
        dropout_key: jax.Array | None = None, image_BYXA: jax.Array | None = None,
    ):  # fmt: skip
        """As `Generator`'s; `image_BYXA` is None only once the caches have read it."""
        if image_BYXA is None and self.is_initializing():
            image_BYXA = self.image.nothing(tokens_BT.shape[0])
        x_BTD, caches = self.hidden(
            tokens_BT, at, caches=caches, start=start, dropout_key=dropout_key, image_BYXA=image_BYXA
        )
        return self.score(x_BTD), caches

    def hidden(
        self, tokens_BT: jax.Array, at: Tokens | None = None, *, caches: Any = None, start: int | jax.Array = 0,
        dropout_key: jax.Array | None = None, image_BYXA: jax.Array | None = None,
    ):  # fmt: skip
        """The vectors of the text alone. `at` and `start` count its own tokens: the image before it is not its affair.

        Raises:
          InputError: there is no image, and no caches that have read one.
        """
        at, count = Tokens.of(tokens_BT.shape) if at is None else at, self.image.tokens()
        behind = Tokens(at.position_BT + count, at.segment_BT)
        if image_BYXA is None:
            if caches is None:
                raise InputError("a Captioner reads an image before its text: give it image_BYXA")
            return self.text.hidden(tokens_BT, behind, caches=caches, start=start + count, dropout_key=dropout_key)
        first, second = keys(dropout_key, 2)
        seen_BTD = shard(self.project(self.image(image_BYXA, dropout_key=first)), "BTD")
        joined = jax.tree.map(lambda *x: jnp.concatenate(x, axis=1), Tokens.of(seen_BTD.shape[:2]), behind)
        x_BTD = jnp.concatenate([seen_BTD, self.text.embed(tokens_BT)], axis=1)
        if caches is not None:
            x_BTD, joined = _closed_up(x_BTD, joined, count)
        x_BTD, caches = self.text.follow(x_BTD, joined, caches=caches, start=start, dropout_key=second)
        return x_BTD[:, count:], caches

    def score(self, x_BTD: jax.Array) -> jax.Array:
        return self.text.score(x_BTD)

    def predict(self, batch, dropout_key):
        if "image_BYXA" not in batch:
            raise InputError("a Captioner needs images: set data=Images(...)")
        at = Tokens(batch["position_BT"], batch["segment_BT"])
        return self(batch["tokens_BT"], at, dropout_key=dropout_key, image_BYXA=batch["image_BYXA"])[0]

    def beside(self):
        return ("image_BYXA",)

    def read(self, tokens_BT, at, slots, dtype, *, image_BYXA: jax.Array):
        caches = self.empty_cache(tokens_BT.shape[0], slots, dtype)
        x_BTD, caches = self.hidden(tokens_BT, at, caches=caches, start=jnp.int32(0), image_BYXA=image_BYXA)
        return self.score(x_BTD[:, -1:])[:, 0], caches

    def empty_cache(self, batch, length, dtype):
        return self.text.empty_cache(batch, self.image.tokens() + length, dtype)

    def prepared(self, params):
        return {**params, "text": self.text.prepared(params["text"])}

    def filled(self, vocabulary, context, source=0, start=None):
        image, behind = self.image.filled(vocabulary, context), self.image.tokens()
        return replace(self, image=image, text=self.text.filled(vocabulary, behind + context))

    def limit(self):
        whole = self.text.limit()
        return None if whole is None else whole - self.image.tokens()

    def ahead(self):
        return max(0, self.text.ahead() - self.image.tokens())

    def words(self):
        return self.text.words()

    def flops_per_token(self, boxed, length):
        row = self.image.tokens() + length
        text = row * self.text.flops_per_token(boxed["text"], row)
        projected = 6 * matrix_weights(boxed["project"]) * self.image.tokens()
        return (self.image.flops(boxed["image"]) + projected + text) / length


def _closed_up(x_BTD: jax.Array, at: Tokens, count: int) -> tuple[jax.Array, Tokens]:
    """With the padding on the left of a text moved before its `count` vectors of an image.

    A cache that rolls keeps the latest slots, so those of a row must be in a piece.
    """
    place_BT = jnp.arange(x_BTD.shape[1], dtype=jnp.int32)[None]
    padding_B1 = (at.segment_BT[:, count:] != PADDING).argmax(1).astype(jnp.int32)[:, None]
    shifted_BT = jnp.where(place_BT < padding_B1, place_BT + count, place_BT - padding_B1)
    from_BT = jnp.where(place_BT < padding_B1 + count, shifted_BT, place_BT)
    at = jax.tree.map(lambda x: jnp.take_along_axis(x, from_BT, axis=1), at)
    return jnp.take_along_axis(x_BTD, from_BT[..., None], axis=1), at


MODELS = dict(ImageEncoder=ImageEncoder, ImageClassifier=ImageClassifier, Captioner=Captioner)
