"""How likely a model finds texts, many at a time."""

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
from llm_jax.models.model import Generator


def likelihoods(
    model: Generator, params: Any, texts: Sequence[tuple[Sequence[int], int]], *, rows: int = 16,
    advance: Callable[[int], object] = lambda count: None,
) -> list[tuple[float, bool]]:  # fmt: skip
    """Of each text's last tokens: the logarithm of their probability after those before, and whether each is the best.

    The longest come first, `rows` at a time; shapes are rounded up, so that the next texts compile nothing.

    Args:
      params: as a model's `prepared` gives them.
      texts: token ids, and how many of the last ones count: at least one, and fewer than there are.
      advance: what is told how many more are done.

    Raises:
      InputError: nothing of a text counts, or its first token, which has none before it; a text is longer than the
        model reads; or a likelihood is no number.
    """
    _check(texts, model.limit())
    found: list[tuple[float, bool]] = [(0.0, True)] * len(texts)
    order = sorted(range(len(texts)), key=lambda number: -len(texts[number][0]))
    for first in range(0, len(order), rows):
        batch = order[first : first + rows]
        read = len(texts[batch[0]][0]) - 1
        length = min(round_up(read, finely=True), model.limit() or round_up(read, finely=True))
        count = min(rows, round_up(len(batch), finely=False))
        tokens_BT, counted_BT = np.zeros((count, length + 1), np.int32), np.zeros((count, length), bool)
        segment_BT = np.full((count, length), PADDING, np.int32)
        for row, number in enumerate(batch):
            ids, counted = texts[number]
            tokens_BT[row, : len(ids)] = ids
            segment_BT[row, : len(ids) - 1] = 0
            counted_BT[row, len(ids) - 1 - counted : len(ids) - 1] = True
        logp_B, best_B = jax.device_get(_likelihoods(model, params, tokens_BT, segment_BT, counted_BT))
        for row, number in enumerate(batch):
            if np.isnan(logp_B[row]):
                raise InputError(f"the likelihood of text {number} is no number: {CAUSE}")
            found[number] = float(logp_B[row]), bool(best_B[row])
        advance(len(batch))
    return found


def _check(texts: Sequence[tuple[Sequence[int], int]], most: int | None) -> None:
    for number, (ids, counted) in enumerate(texts):
        if not 0 < counted < len(ids):
            raise InputError(
                f"the last {counted} of the {len(ids)} tokens of text {number} cannot be scored: there must "
                "be at least one, and one before them"
            )
        if most is not None and len(ids) - 1 > most:
            raise InputError(
                f"text {number} has {len(ids)} tokens, and the model reads {most} and scores the next: shorten it"
            )


@functools.partial(jax.jit, static_argnums=0)
def _likelihoods(model: Generator, params: Any, tokens_BT, segment_BT, counted_BT) -> tuple[jax.Array, jax.Array]:
    """`tokens_BT` has a token more than there are to read: the last one is a target only."""
    at = Tokens(Tokens.of(segment_BT.shape).position_BT, segment_BT)
    x_BTD: Any = model.apply({"params": params}, tokens_BT[:, :-1], at, method="hidden")[0]

    def one(row: Any) -> tuple[jax.Array, jax.Array]:
        """Scores of a whole batch at once would be its largest array by far."""
        x_TD, target_T, counted_T = row
        score_TV: Any = model.apply({"params": params}, x_TD[None], method="score")[0]
        wanted_T = jnp.take_along_axis(score_TV, target_T[:, None], axis=-1)[:, 0]
        logp_T = wanted_T - jax.nn.logsumexp(score_TV, axis=-1)
        return jnp.where(counted_T, logp_T, 0).sum(), ((score_TV.argmax(-1) == target_T) | ~counted_T).all()

    return jax.lax.map(one, (x_BTD, tokens_BT[:, 1:], counted_BT))
