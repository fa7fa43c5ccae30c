"""What vectors of words know: neighbours, analogies, similarity."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from llm_jax.core.errors import InputError, nearest
from llm_jax.text.tokenizer import Tokenizer


def word_id(word: str, tokenizer: Tokenizer) -> int | None:
    """The id of a word in a tokenizer of whole words; None if the vocabulary lacks it."""
    ids = tokenizer.encode(word)
    return ids[0] if len(ids) == 1 and ids[0] not in tokenizer.special.values() else None


def check_word(word: str, tokenizer: Tokenizer) -> int:
    """The word's id.

    Raises:
      InputError: the vocabulary lacks the word.
    """
    if (id := word_id(word, tokenizer)) is None:
        beside = {*tokenizer.special.values()}
        known = [tokenizer.bytes_of(i).decode().strip() for i in range(tokenizer.vocabulary) if i not in beside]
        raise InputError(f"no vector for the word {word!r}: {nearest(word, known[:20_000])}")
    return id


def check_pairs(
    pairs: Iterable[tuple[str, str, float]], tokenizer: Tokenizer
) -> list[tuple[int, int, float]]:  # fmt: skip
    """The ids of those pairs whose words are known, with their scores.

    Raises:
      InputError: they are too few to rank, or all have one score.
    """
    found = [(word_id(a, tokenizer), word_id(b, tokenizer), score) for a, b, score in pairs]
    known = [(a, b, score) for a, b, score in found if a is not None and b is not None]
    if len(known) < 2:
        raise InputError(f"only {len(known)} of {len(found)} pairs of words are in the vocabulary: too few to rank")
    if len({score for *_, score in known}) == 1:
        raise InputError(f"all {len(known)} pairs of words in the vocabulary have the score {known[0][2]:g}: no ranks")
    return known


class WordVectors:
    """A unit vector for each word of a tokenizer of whole words."""

    def __init__(self, vectors_VD: Any, tokenizer: Tokenizer):
        vectors_VD = np.asarray(vectors_VD, np.float32)[: tokenizer.vocabulary]
        self.unit_VD = vectors_VD / np.maximum(np.linalg.norm(vectors_VD, axis=1, keepdims=True), 1e-12)
        self._tokenizer = tokenizer
        self._beside = list(tokenizer.special.values())

    def id(self, word: str) -> int | None:
        """The word's id; None if the vocabulary lacks it."""
        return word_id(word, self._tokenizer)

    def word(self, id: int) -> str:
        return self._tokenizer.bytes_of(id).decode().strip()

    def neighbours(self, word: str, count: int = 10) -> list[tuple[str, float]]:
        """The `count` words whose vectors point most nearly the same way, with the cosine of each; fewer if there are.

        Raises:
          InputError: the vocabulary lacks the word, or `count` is less than 1.
        """
        if count < 1:
            raise InputError(f"count must be at least 1, not {count}")
        id = check_word(word, self._tokenizer)
        cosine_V = self.unit_VD @ self.unit_VD[id]
        others = np.setdiff1d(np.arange(len(cosine_V)), [id, *self._beside])
        best = others[np.argsort(-cosine_V[others], kind="stable")[:count]]
        return [(self.word(i), float(cosine_V[i])) for i in best.tolist()]

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
            is_word = score[np.arange(len(some)), d] > -np.inf  # where all are left out, none is nearest
            right += int((is_word & (score.argmax(1) == d)).sum())
        return right, len(known)

    def similarity(self, pairs: Iterable[tuple[str, str, float]]) -> tuple[float, int]:
        """Spearman's rank correlation of cosines with people's scores of pairs of words, and how many pairs are known.

        Raises:
          InputError: fewer than two pairs are known, or all have one score, or vectors of one cosine.
        """
        known = check_pairs(pairs, self._tokenizer)
        cosine = [float(self.unit_VD[a] @ self.unit_VD[b]) for a, b, _ in known]
        if len({*cosine}) == 1:
            raise InputError(f"all {len(known)} pairs of words have the cosine {cosine[0]:g}: they cannot be ranked")
        ranks = [_ranks(np.array(values)) for values in (cosine, [score for *_, score in known])]
        return float(np.corrcoef(ranks)[0, 1]), len(known)


def _ranks(values: np.ndarray) -> np.ndarray:
    """The rank of each value, the mean rank where several are equal."""
    _, which, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return (ends - (counts - 1) / 2)[which]
