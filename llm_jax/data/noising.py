"""Texts with some tokens masked, for a model that reads to say which they were (Devlin et al. 2019, BERT)."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import numpy as np

from llm_jax.core.errors import InputError
from llm_jax.core.parts import Range
from llm_jax.data.documents import check_weights
from llm_jax.data.presentation import Presentation, Vocabulary, check_learns_all, whole

ProperShare = Annotated[float, Range(above=0, below=1)]
MASK, OTHER = 0.8, 0.1  # of the chosen tokens: so many become `mask`, so many another token; the rest stay


@dataclasses.dataclass(frozen=True)
class Masked(Presentation):
    """Whole documents, of whose tokens each is chosen with probability `share`, independently of the others; of a row
    at least one is.

    A chosen token is a target, in its own place, with weight 1: `targets_BT` are the tokens as they were, `tokens_BT`
    has `mask` in 80% of the chosen places, a random token in 10%, and in 10% the token itself. With `whole_words` words
    are chosen, with all of their tokens: letters and digits in a row are a word, so where a script puts no spaces
    between words a phrase is one, and every other token is one. Special tokens are neither chosen nor drawn. Every
    epoch chooses anew (Liu et al. 2019, RoBERTa); evaluation chooses always the same. A row holds `data.length` tokens,
    its last one included. Any packing will do.
    """

    share: ProperShare = 0.15
    whole_words: bool = False

    def __call__(self, batch, length, special, seed_B):
        token_BT, segment_BT = batch["tokens_BT"], batch["segment_BT"]
        ordinary_BT = np.isin(token_BT, special.ordinary_N) & (segment_BT >= 0)
        word_BT = words(token_BT, segment_BT, special) if self.whole_words else np.indices(token_BT.shape)[1]
        shown_BT, chosen_BT = token_BT.copy(), np.zeros(token_BT.shape, bool)
        for row in np.flatnonzero(ordinary_BT.any(1)).tolist():
            rng = np.random.default_rng(seed_B[row])
            picks_T, fate_T = rng.random((2, token_BT.shape[1]))
            other_T = rng.choice(special.ordinary_N, token_BT.shape[1])
            pick_T = np.where(ordinary_BT[row], picks_T[word_BT[row]], 1)
            chosen_T = ordinary_BT[row] & ((pick_T < self.share) | (pick_T == pick_T.min()))
            changed_T = np.where(
                fate_T < MASK, special["mask"], np.where(fate_T < MASK + OTHER, other_T, shown_BT[row])
            )
            shown_BT[row] = np.where(chosen_T, changed_T, shown_BT[row])
            chosen_BT[row] = chosen_T
        return dict(
            tokens_BT=shown_BT,
            targets_BT=token_BT,
            weight_BT=chosen_BT.astype(np.float32),
            segment_BT=segment_BT,
            position_BT=batch["position_BT"],
        )

    def plan(self, packing, corpus, length, rng):
        return whole(packing, corpus.offsets, length, rng)

    def check(self, rendering, packing):
        check_learns_all(rendering, "Masked")

    def check_documents(self, documents):
        super().check_documents(documents)
        check_weights(documents, "Masked")

    def check_vocabulary(self, special, length):
        if "mask" not in special:
            raise InputError("Masked puts a special token 'mask' in the place of others, and this tokenizer has none")


def words(token_BT: np.ndarray, segment_BT: np.ndarray, special: Vocabulary) -> np.ndarray:
    """[B, T]: the place at which the word of each token begins."""
    goes_on_BT = np.zeros(token_BT.shape, bool)
    if special.opens_V.size:
        goes_on_BT[:, 1:] = special.closes_V[token_BT[:, :-1]] & special.opens_V[token_BT[:, 1:]]
    goes_on_BT[:, 1:] &= segment_BT[:, 1:] == segment_BT[:, :-1]
    return np.maximum.accumulate(np.where(goes_on_BT, 0, np.arange(token_BT.shape[1])[None]), axis=1)


PRESENTATIONS = dict(Masked=Masked)
