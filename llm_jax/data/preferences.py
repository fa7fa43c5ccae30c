"""Pairs to compare, side by side in a row."""

from __future__ import annotations

import dataclasses

import numpy as np

from llm_jax.core.parts import show
from llm_jax.core.tables import InputError
from llm_jax.data.documents import Comparison, Preference, check_weights
from llm_jax.data.packing import One, Plan
from llm_jax.data.presentation import Presentation, blank


@dataclasses.dataclass(frozen=True)
class Pairs(Presentation):
    """A pair a row: what was chosen in the first `data.length` places, what was rejected in as many others.

    The batch has the usual arrays, [B, 2 * length], and `margin_B`: by how much the chosen is preferred, 0 where that
    is not known. Each text is segment 0 from the left of its half on, and its last token is among its tokens, without a
    target. Of a pair with a text of more than `length` tokens, `data.packing=One("truncate")` takes the beginning of
    the prompt away, the same of both texts, and then, of a reply that is longer still, the end; `One()` refuses it.
    """

    def __call__(self, batch, length, special, seed_B):
        segment_BT = batch["segment_BT"]  # 0 and 1, one after the other, each without its last token
        row, at = np.nonzero(segment_BT >= 0)
        place = segment_BT[row, at] * length + batch["position_BT"][row, at]
        shown = blank(len(segment_BT), 2 * length, special["pad"])
        for name in ("tokens_BT", "targets_BT", "weight_BT", "bytes_BT", "position_BT"):
            shown[name][row, place] = batch[name][row, at]
        shown["segment_BT"][row, place] = 0
        ends = np.diff(segment_BT, axis=1, append=-1)[row, at] != 0
        row, at, place = row[ends], at[ends], place[ends] + 1
        shown["tokens_BT"][row, place] = batch["targets_BT"][row, at]
        shown["position_BT"][row, place] = batch["position_BT"][row, at] + 1
        shown["segment_BT"][row, place] = 0
        del shown["number_B"]
        return shown | dict(margin_B=np.nan_to_num(batch["number_B"], nan=0.0))

    def row(self, length):
        return 2 * (length - 1)

    def plan(self, packing, corpus, length, rng):
        if length < 2:
            raise InputError(f"data.length={length} has no room for a token of a reply and the one before it: raise it")
        begin, end, learnt = corpus.offsets[:-1], corpus.offsets[1:], np.flatnonzero(corpus.learnt)
        place = np.searchsorted(learnt, begin)
        blank_P = (place == np.searchsorted(learnt, end)).reshape(-1, 2).any(1)
        if blank_P.any():
            raise InputError(f"{blank_P.sum()} of {len(blank_P)} pairs have a text with nothing in it to compare")
        surplus_P = np.maximum((end - begin).reshape(-1, 2).max(1) - length, 0)
        if getattr(packing, "too_long", None) == "refuse" and surplus_P.any():
            raise InputError(
                f"{np.count_nonzero(surplus_P)} of {len(surplus_P)} pairs have a text that is too long (the longest "
                f"has {(end - begin).max()} tokens): raise data.length={length}, or set data.packing.too_long to "
                "'truncate'"
            )
        start = np.minimum(begin + np.repeat(surplus_P, 2), learnt[place] - 1)  # a token stays before what is compared
        size = np.minimum(end - start, length) - 1
        order_P = np.arange(len(surplus_P)) if rng is None else rng.permutation(len(surplus_P))
        start, size = (x.reshape(-1, 2)[order_P].reshape(-1) for x in (start, size))
        return Plan(start, size, 2 * np.arange(len(order_P) + 1))

    def check(self, rendering, packing):
        if not isinstance(packing, One) or packing.too_long == "split":
            raise InputError(
                f"Pairs puts the two texts of a pair in a row of their own, which data.packing="
                f"{show(packing, whole=True)} does not: use One() or One('truncate')"
            )

    def check_documents(self, documents):
        check_weights(documents, "Pairs")
        for document in documents:
            if not isinstance(document, Preference | Comparison):
                raise InputError(
                    f"Pairs needs pairs to compare (preferences, comparisons), not a {type(document).__name__}"
                )


PAIRS = dict(Pairs=Pairs)
