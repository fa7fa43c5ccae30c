"""What vectors of words know: neighbours, analogies, similarity."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from llm_jax.core.tables import InputError, nearest
from llm_jax.text.tokenizer import Tokenizer


class WordVectors:
    """A unit vector for each word of a tokenizer of whole words."""

    def __init__(self, vectors_VD: Any, tokenizer: Tokenizer):
        vectors_VD = np.asarray(vectors_VD, np.float32)[: tokenizer.vocabulary]
        self.unit_VD = vectors_VD / np.maximum(np.linalg.norm(vectors_VD, axis=1, keepdims=True), 1e-12)
        self._tokenizer = tokenizer
        self._beside = list(tokenizer.special.values())

    def id(self, word: str) -> int | None:
        """The word's id; None if the vocabulary lacks it."""
        ids = self._tokenizer.encode(word)
        return ids[0] if len(ids) == 1 and ids[0] not in self._beside else None

    def word(self, id: int) -> str:
        return self._tokenizer.bytes_of(id).decode().strip()

    def neighbours(self, word: str, count: int = 10) -> list[tuple[str, float]]:
        """The words whose vectors point most nearly the same way, with the cosine of each.

        Raises:
          InputError: the vocabulary lacks the word.
        """
        if (id := self.id(word)) is None:
            known = [self.word(i) for i in range(self._tokenizer.vocabulary) if i not in self._beside]
            raise InputError(f"no vector for the word {word!r}: {nearest(word, known[:20_000])}")
        cosine_V = self.unit_VD @ self.unit_VD[id]
        cosine_V[[id, *self._beside]] = -np.inf
        return [(self.word(i), float(cosine_V[i])) for i in np.argsort(-cosine_V, kind="stable")[:count]]

    def analogies(self, questions: Iterable[Sequence[str]]) -> tuple[int, int]:
        """Of questions "a is to b as c is to d", how many are answered by d, and how many have all words known.

        By 3CosAdd (Levy & Goldberg 2014): the word nearest to b - a + c, other than the three.
        """
        ids = [[self.id(word) for word in question] for question in questions]
        known = np.array([question for question in ids if None not in question], int).reshape(-1, 4)
        right = 0
        for some in np.array_split(known, max(1, len(known) // 500)):
            a, b, c, d = some.T
            score = (self.unit_VD[b] - self.unit_VD[a] + self.unit_VD[c]) @ self.unit_VD.T
            score[:, self._beside] = -np.inf
            for given in (a, b, c):
                score[np.arange(len(some)), given] = -np.inf
            right += int((score.argmax(1) == d).sum())
        return right, len(known)

    def similarity(self, pairs: Iterable[tuple[str, str, float]]) -> tuple[float, int]:
        """Spearman's rank correlation of cosines with people's scores of pairs of words, and how many pairs are known.

        Raises:
          InputError: fewer than two pairs are known.
        """
        found = [(self.id(a), self.id(b), score) for a, b, score in pairs]
        known = [(a, b, score) for a, b, score in found if a is not None and b is not None]
        if len(known) < 2:
            raise InputError(f"only {len(known)} of {len(found)} pairs of words are in the vocabulary: too few to rank")
        cosine = [float(self.unit_VD[a] @ self.unit_VD[b]) for a, b, _ in known]
        ranks = [_ranks(np.array(values)) for values in (cosine, [score for *_, score in known])]
        return float(np.corrcoef(ranks)[0, 1]), len(known)


def _ranks(values: np.ndarray) -> np.ndarray:
    """The rank of each value, the mean rank where several are equal."""
    _, which, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return (ends - (counts - 1) / 2)[which]
