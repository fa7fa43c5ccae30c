"""What is made of each text, a vector or the scores of a classifier, many texts at a time."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from llm_jax.core.errors import InputError
from llm_jax.core.finite import CAUSE
from llm_jax.inference.generate import round_up
from llm_jax.layers.tokens import PADDING, Tokens
from llm_jax.models.encoder import Encoder
from llm_jax.models.heads import Classifier
from llm_jax.models.vision import ImageClassifier
from llm_jax.objectives.classification import ACTIVATIONS
from llm_jax.objectives.objective import ProblemType

ROWS = 32  # texts read at once


def embed(model: Encoder, params: Any, texts: Sequence[Sequence[int]]) -> np.ndarray:
    """float32 [B, D]: what `model.pooling` makes of each text's vectors. Who else is in the batch makes no difference.

    Args:
      params: as a model's `prepared` gives them.
      texts: token ids, at least one each.

    Raises:
      InputError: a text is empty, or longer than the model reads; or what it makes of one is no finite number.
    """
    return _read(functools.partial(_embed, model, params), model.limit(), model.embed.width, texts)


def classify(
    model: Classifier, params: Any, texts: Sequence[Sequence[int]], begins: Sequence[int], problem_type: ProblemType
) -> np.ndarray:  # fmt: skip
    """float32 [B, O]: what the scores of each text mean, by `problem_type`. Else as `embed`.

    Args:
      begins: where the second text begins, of two that are read together; how long it is, of one.
    """
    run = functools.partial(_classify, model, problem_type, params)
    return _read(run, model.limit(), model.classes, texts, begins)


def classify_images(
    model: ImageClassifier, params: Any, image_BYXA: np.ndarray, problem_type: ProblemType
) -> np.ndarray:  # fmt: skip
    """float32 [B, O]: what the scores of each image mean, by `problem_type`.

    Raises:
      InputError: the images have another size than the model reads, or what it makes of one is no finite number.
    """
    made = []
    for first in range(0, len(image_BYXA), ROWS):
        some = image_BYXA[first : first + ROWS]
        count = min(ROWS, round_up(len(some), finely=False))
        filled = np.concatenate([some, np.zeros((count - len(some), *some.shape[1:]), np.float32)])
        made.append(np.asarray(_classify_images(model, problem_type, params, filled))[: len(some)])
    share_BO = np.concatenate(made)
    if (unsound := np.flatnonzero(~np.isfinite(share_BO).all(1))).size:
        raise InputError(f"what the model makes of image {unsound[0]} is not finite: {CAUSE}")
    return share_BO


@functools.partial(jax.jit, static_argnums=(0, 1))
def _classify_images(
    model: ImageClassifier, problem_type: ProblemType, params: Any, image_BYXA: jax.Array
) -> jax.Array:  # fmt: skip
    score_BO: Any = model.apply({"params": params}, dict(image_BYXA=image_BYXA), None, method="classify")
    return ACTIVATIONS[problem_type](score_BO)


def _read(
    run: Callable[..., jax.Array], most: int | None, width: int, texts: Sequence[Sequence[int]],
    begins: Sequence[int] | None = None,
) -> np.ndarray:  # fmt: skip
    """[B, width]: `run` of ids [B, T], and of which are real, a few texts of about one length at a time.

    Where there is `begins`, `run` takes too which tokens [B, T] are of a second text.

    Shapes are rounded up, so that the next texts compile nothing.
    """
    for row, text in enumerate(texts):
        if not text:
            raise InputError(f"text {row} is empty: there is nothing to read")
        if most is not None and len(text) > most:
            raise InputError(
                f"text {row} has {len(text)} tokens, and the model reads at most {most}: shorten or split it"
            )
    made = np.zeros((len(texts), width), np.float32)
    order = sorted(range(len(texts)), key=lambda row: len(texts[row]))
    for first in range(0, len(order), ROWS):
        rows = order[first : first + ROWS]
        length = round_up(len(texts[rows[-1]]), finely=False)
        length = length if most is None else min(length, most)
        count = min(ROWS, round_up(len(rows), finely=False))
        ids_BT, real_BT = np.zeros((count, length), np.int32), np.zeros((count, length), bool)
        for at, row in enumerate(rows):
            ids_BT[at, : len(texts[row])], real_BT[at, : len(texts[row])] = texts[row], True
        given = [ids_BT, real_BT]
        if begins is not None:
            begin_B1 = np.array([begins[row] for row in rows] + [length] * (count - len(rows)))[:, None]
            given.append(real_BT & (np.arange(length)[None] >= begin_B1))
        made[rows] = np.asarray(run(*given))[: len(rows)]
    if (unsound := np.flatnonzero(~np.isfinite(made).all(1))).size:
        raise InputError(f"what the model makes of text {unsound[0]} is not finite: {CAUSE}")
    return made


@functools.partial(jax.jit, static_argnums=0)
def _embed(model: Encoder, params: Any, ids_BT: jax.Array, real_BT: jax.Array) -> jax.Array:
    at = _at(real_BT)
    x_BTD = model.apply({"params": params}, ids_BT, at, method="vectors")
    pooled: Any = model.apply({"params": params}, x_BTD, at, method="pooled")
    return pooled.astype(jnp.float32)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _classify(
    model: Classifier, problem_type: ProblemType, params: Any, ids_BT: jax.Array, real_BT: jax.Array,
    second_BT: jax.Array,
) -> jax.Array:  # fmt: skip
    at = _at(real_BT)
    batch = dict(tokens_BT=ids_BT, segment_BT=at.segment_BT, position_BT=at.position_BT)
    batch["types_BT"] = second_BT.astype(jnp.int32)
    score_BO: Any = model.apply({"params": params}, batch, None, method="classify")
    return ACTIVATIONS[problem_type](score_BO)


def _at(real_BT: jax.Array) -> Tokens:
    return Tokens(Tokens.of(real_BT.shape).position_BT, jnp.where(real_BT, 0, PADDING))
