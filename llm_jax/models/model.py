"""What every whole model can be asked, whatever it is made of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp

from llm_jax.core.errors import InputError
from llm_jax.core.parts import settings, transform
from llm_jax.layers.tokens import Tokens


class Model(nn.Module):
    """A whole model: what an experiment trains. Every kind is of this one family."""

    def __post_init__(self) -> None:
        # Linen lets a part that stands in two places share its parameters; a manifest could not say so.
        for name in settings(self):
            object.__setattr__(self, name, transform(getattr(self, name), _own))
        super().__post_init__()

    def begin(self, key: jax.Array) -> Any:
        """The parameters before the first step, each with its letters."""
        return self.init(key, self.blank(1))["params"]

    def blank(self, length: int) -> jax.Array:
        """What the model's call takes: a row of so many tokens; of a model of images, one image."""
        return jnp.zeros((1, length), jnp.int32)

    def filled(self, vocabulary: int, context: int, source: int = 0, start: int | None = None) -> Model:
        """The model with what its settings leave to the data filled in.

        Args:
          vocabulary: the tokenizer's.
          context: the length of the data's rows; of targets, where sources are apart from them.
          source: the length of the sources; 0 where there are none.
          start: the token that a target begins with; None where the tokenizer has none for it.

        Raises:
          InputError: they do not fit what is set.
        """
        return self

    def trunks(self) -> tuple[str, ...]:
        """The paths in its parameters at which those of a model that it is built on go; "": it is built on none."""
        return ("",)

    def vectors(
        self, tokens_BT: jax.Array, at: Tokens | None = None, types_BT: jax.Array | None = None, *,
        dropout_key: jax.Array | None = None,
    ) -> jax.Array:  # fmt: skip
        """The last layer's vectors [B, T, D], for a head of another kind to read.

        Raises:
          InputError: the model is no backbone, or it tells no kinds of text apart and `types_BT` is given.
        """
        raise InputError(f"{type(self).__name__} is no backbone of a head: give it an Encoder or a Decoder")

    def all_scores(self, tokens_BT: jax.Array) -> jax.Array:
        """[B, T, V] float32: a score for each token that may follow each of these, or stand in its place.

        Raises:
          InputError: the model has none to give.
        """
        raise InputError(f"{type(self).__name__} scores no tokens")

    def prepared(self, params: Any) -> Any:
        """The parameters as many short calls want them."""
        return params

    def limit(self) -> int | None:
        """How many tokens the model can hold in view, prompt and text together; None: there is no bound."""
        raise NotImplementedError

    def words(self) -> int:
        """The size of the vocabulary."""
        raise NotImplementedError

    def flops_per_token(self, boxed: Any, length: int) -> float:
        """Of a forward and a backward pass, by the convention of `flops.py`; 0 where there is none for the model."""
        return 0.0


def _own(part: Any) -> Any:
    """A copy, unless it is at work in a model already."""
    return part.clone() if isinstance(part, nn.Module) and part.parent is None else part


class Generator(Model):
    """A model that can write: it scores the next token from those before it."""

    def __call__(
        self, tokens_BT: jax.Array, at: Tokens | None = None, *, caches: Any = None, start: int | jax.Array = 0,
        dropout_key: jax.Array | None = None,
    ):  # fmt: skip
        """Scores [B, T, V] in float32, and the caches after this call (None without caches).

        Args:
          at: where the tokens stand; by default one document a row, from its start.
          caches: what `empty_cache` or an earlier call returned; `start` tokens have gone in before.
          dropout_key: None for evaluation.
        """
        x_BTD, caches = self.hidden(tokens_BT, at, caches=caches, start=start, dropout_key=dropout_key)
        return self.score(x_BTD), caches

    def hidden(
        self, tokens_BT: jax.Array, at: Tokens | None = None, *, caches: Any = None, start: int | jax.Array = 0,
        dropout_key: jax.Array | None = None,
    ) -> tuple[jax.Array, Any]:  # fmt: skip
        """The last layer's vectors [B, T, D], normalised, in place of scores."""
        raise NotImplementedError

    def vectors(self, tokens_BT, at=None, types_BT=None, *, dropout_key=None):
        if types_BT is not None:
            raise InputError(f"{type(self).__name__} tells no kinds of text apart: use an Encoder with types")
        return self.hidden(tokens_BT, at, dropout_key=dropout_key)[0]

    def score(self, x_BTD: jax.Array) -> jax.Array:
        raise NotImplementedError

    def all_scores(self, tokens_BT):
        return self(tokens_BT)[0]

    def predict(self, batch: Mapping[str, jax.Array], dropout_key: jax.Array | None) -> jax.Array:
        """[B, T, V]: the scores of a training batch's targets.

        Raises:
          InputError: there are sources, which it would not read.
        """
        if "source_BS" in batch:
            raise InputError(
                f"a {type(self).__name__} reads no sources apart from what it writes: set data.presentation=AsIs(), or "
                "use an EncoderDecoder"
            )
        at = Tokens(batch["position_BT"], batch["segment_BT"])
        return self(batch["tokens_BT"], at, dropout_key=dropout_key)[0]

    def read(self, tokens_BT: jax.Array, at: Tokens, slots: int, dtype) -> tuple[jax.Array, Any]:
        """[B, V] scores of what comes after prompts that end at the right edge of `tokens_BT`, and `slots` of caches.

        What the caches hold then is the prompt, or the tokens of `opening`. A model that reads more than tokens
        (`beside`) takes that too, by name.
        """
        caches = self.empty_cache(tokens_BT.shape[0], slots, dtype)
        return self.last_scores(tokens_BT, at, caches, jnp.int32(0))

    def beside(self) -> tuple[str, ...]:
        """The arrays that must come with the prompts, by their names in a batch: none where text is all it reads."""
        return ()

    def opening(self) -> tuple[int, ...] | None:
        """The tokens that a text begins with where prompts are read apart from it (translation); None: they are not."""
        return None

    def last_scores(self, tokens_BT: jax.Array, at: Tokens, caches: Any, start) -> tuple[jax.Array, Any]:
        """[B, V] scores after the last token alone, and the caches."""
        x_BTD, caches = self.hidden(tokens_BT, at, caches=caches, start=start)
        return self.score(x_BTD[:, -1:])[:, 0], caches

    def empty_cache(self, batch: int, length: int, dtype) -> Any:
        """Caches for `length` tokens of each of `batch` rows."""
        raise NotImplementedError

    def reads(self) -> int | None:
        """How many tokens a prompt may have at most; None: there is no bound."""
        return self.limit()

    def ahead(self) -> int:
        """How many of a document's first tokens are seen by tokens before them (`Mask.ahead`).

        Raises:
          InputError: any token may be, so that the model cannot predict one from those before it.
        """
        return 0

    def words(self) -> int:
        """The size of the vocabulary."""
        raise NotImplementedError


class Translator(Generator):
    """A generator that reads a source apart from the target that it writes.

    Its field `start` is the token that a target begins with; None until it is filled in.
    """

    def encode(self, source_BS: jax.Array, at: Tokens | None = None, dropout_key: jax.Array | None = None) -> Any:
        """What the model makes of source ids [B, S], for `__call__`'s `source`."""
        raise NotImplementedError

    def all_scores(self, tokens_BT):
        raise InputError(f"a {type(self).__name__} scores a text only beside its source: generate from one, or eval")

    def predict(self, batch, dropout_key):
        if "source_BS" not in batch:
            raise InputError(f"a {type(self).__name__} needs sources: set data.presentation=SourceAndTarget()")
        first, second = (None, None) if dropout_key is None else jax.random.split(dropout_key)
        source = self.encode(batch["source_BS"], Tokens(batch["source_position_BS"], batch["source_segment_BS"]), first)
        at = Tokens(batch["position_BT"], batch["segment_BT"])
        begins_BT = (at.position_BT == 0) & (at.segment_BT >= 0)
        *before, last = self.opening()
        tokens_BT, call = jnp.where(begins_BT, last, batch["tokens_BT"]), cast(Any, self)
        if not before:
            return call(tokens_BT, at, dropout_key=second, source=source)[0]
        (first,) = before  # a row has one text (`check_openings`), and no place for what precedes its first token
        left = ((0, 0), (1, 0))
        tokens_BT = jnp.pad(tokens_BT, left, constant_values=first)
        at = Tokens(jnp.pad(at.position_BT + 1, left), jnp.pad(at.segment_BT, left, "edge"))
        x_BTD, _ = call.hidden(tokens_BT, at, dropout_key=second, source=source)
        return self.score(x_BTD[:, 1:])

    def opening(self) -> tuple[int, ...]:
        start = vars(self)["start"]
        if start is None:
            raise InputError("model.start is not filled in: set it, or let a run take it from its tokenizer")
        return (start,)
