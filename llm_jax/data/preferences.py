"""Pairs to compare, side by side in a row."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from absl import logging

from llm_jax.core.errors import InputError
from llm_jax.core.parts import show
from llm_jax.data.cache import Corpus
from llm_jax.data.documents import Comparison, Document, Preference, check_weights
from llm_jax.data.packing import One, Plan
from llm_jax.data.presentation import Presentation, blank
from llm_jax.text.chat import Message
from llm_jax.text.cut import ending
from llm_jax.text.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class Pairs(Presentation):
    """A pair a row: what was chosen in the first `data.length` places, what was rejected in as many others.

    The batch has the usual arrays, [B, 2 * length], and `margin_B`: by how much the chosen is preferred, 0 where that
    is not known. Each text is segment 0 from the left of its half on, and its last token is among its tokens, without a
    target. Of a pair with a text of more than `length` tokens, `data.packing=One("truncate")` cuts what is said and
    keeps who says it (`bos`, roles, messages of the system): the oldest turns go, then the beginnings of what is said
    in the latest one, the same of both texts, and then, of a reply that is longer still, the end; `One()` refuses it.
    A pair whose two texts are the same in its row has nothing to compare: it is left out, and counted.
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
        size, count = np.minimum(end - begin, length) - 1, len(begin) // 2
        long_P = (end - begin).reshape(-1, 2).max(1) > length
        if getattr(packing, "too_long", None) == "refuse" and long_P.any():
            raise InputError(
                f"{np.count_nonzero(long_P)} of {count} pairs have a text that is too long (the longest has "
                f"{(end - begin).max()} tokens): raise data.length={length}, or set data.packing.too_long to "
                "'truncate'"
            )
        order_P = np.arange(count) if rng is None else rng.permutation(count)
        start, size = (x.reshape(-1, 2)[order_P].reshape(-1) for x in (begin, size))
        return Plan(start, size, 2 * np.arange(count + 1))

    def shortened(self, document, tokenizer, rendering, length):
        """A preference with its prompt cut. Of a comparison the texts lose their ends."""
        if not isinstance(document, Preference):
            return document

        def surplus(messages: Sequence[Message]) -> int:
            texts = dataclasses.replace(document, messages=tuple(messages)).parts(tokenizer, rendering)
            return max(len(ids) for ids, _ in texts) - length

        said = document.messages
        system = next((at for at, m in enumerate(said) if m.role != "system"), len(said))
        turns = (at for at in range(system + 1, len(said)) if said[at].role == "user")
        kept, over = list(said), 0
        for first in (system, *turns):
            kept = [*said[:system], *said[first:]]
            if (over := surplus(kept)) <= 0:
                break
        for at in range(system, len(kept)):
            while over > 0 and kept[at].content:
                kept[at] = _without(kept[at], tokenizer, over)
                over = surplus(kept)
        return dataclasses.replace(document, messages=tuple(kept))

    def fitted(self, documents, corpus, tokenizer, rendering, length, cuts):
        size_PO = np.diff(corpus.offsets).reshape(-1, 2) if len(corpus.offsets) % 2 else np.zeros((0, 2), np.int64)
        if len(size_PO) != len(documents):
            raise InputError(f"Pairs needs two texts of each of {len(documents)} documents, and there are "
                             f"{len(corpus.offsets) - 1}")  # fmt: skip
        fitting: list[Document] = []
        cut = 0
        for number, (document, (first, second)) in enumerate(zip(documents, size_PO.tolist(), strict=True)):
            same = False
            if cuts and max(first, second) > length:
                document = self.shortened(document, tokenizer, rendering, length)
                chosen, rejected = (ids[:length] for ids, _ in document.parts(tokenizer, rendering))
                same, cut = chosen == rejected, cut + 1
            elif first == second:
                chosen, rejected = np.split(_pair(corpus, number), 2)
                same = np.array_equal(chosen, rejected)
            if not same:
                fitting.append(document)
        if not fitting:
            raise InputError(
                f"none of {len(documents)} pairs has anything to compare in rows of data.length={length}: raise it"
            )
        if equal := len(documents) - len(fitting):
            logging.warning(
                "%d of %d pairs are left out: both texts are the same in rows of data.length=%d",
                equal, len(documents), length,
            )  # fmt: skip
        return fitting if cut or equal else documents

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


def _pair(corpus: Corpus, number: int) -> np.ndarray:
    """The tokens of both texts of a pair."""
    return corpus.tokens[corpus.offsets[2 * number] : corpus.offsets[2 * number + 2]]


def _without(message: Message, tokenizer: Tokenizer, lost: int) -> Message:
    """The message without the first `lost` tokens of its input, if it has one, or else of its content."""
    if not message.input:
        return dataclasses.replace(message, content=ending(message.content, tokenizer, lost))
    left = ending(message.input, tokenizer, lost)
    content = f"{message.instruction}\n\n{left}" if left else message.instruction
    return dataclasses.replace(message, content=content, input=left)


PAIRS = dict(Pairs=Pairs)
