"""What a finished run says of the vectors of words that it has learnt."""

from __future__ import annotations

import dataclasses

from llm_jax.core.errors import InputError
from llm_jax.core.parts import Size, conform
from llm_jax.data.sources import Source
from llm_jax.experiment import Finding, Report
from llm_jax.inference.word_vectors import WordVectors, check_pairs, check_word, word_id
from llm_jax.models.word2vec import Word2Vec
from llm_jax.reports.text import Finished


class _Words(Report):
    def check(self, planned):
        conform(planned.experiment.model, Word2Vec, "model")

    def vectors(self, finished: Finished) -> WordVectors:
        conform(finished.experiment.model, Word2Vec, "model")
        return WordVectors(finished.params["embed"]["table"], finished.tokenizer)


@dataclasses.dataclass(frozen=True)
class Neighbours(_Words):
    """The nearest words of each of `words`."""

    words: tuple[str, ...]
    count: Size = 8

    def check(self, planned):
        super().check(planned)
        for word in self.words:
            check_word(word, planned.tokenizer)

    def __call__(self, finished):
        vectors = self.vectors(finished)
        near = {word: [f"{w} {c:.2f}" for w, c in vectors.neighbours(word, self.count)] for word in self.words}
        return Finding([f"nearest to {word}: {', '.join(found)}" for word, found in near.items()])


@dataclasses.dataclass(frozen=True)
class Analogies(_Words):
    """The share of questions, each a document "a b c d", of which d is found; those with unknown words do not count.

    Raises:
      InputError: no question has known words only.
    """

    questions: Source

    def check(self, planned):
        super().check(planned)
        questions = self._questions()
        if not any(all(word_id(word, planned.tokenizer) is not None for word in question) for question in questions):
            raise InputError(f"none of the {len(questions)} analogies has words of the vocabulary only")

    def _questions(self) -> list[list[str]]:
        questions = [document.text().split() for document in self.questions.documents()]
        if strange := [question for question in questions if len(question) != 4]:
            raise InputError(f"an analogy has four words, not {' '.join(strange[0])[:60]!r}")
        return questions

    def __call__(self, finished):
        self.check(finished)
        questions = self._questions()
        right, known = self.vectors(finished).analogies(questions)
        lines = [f"analogies: {right}/{known} right, and {len(questions) - known} have unknown words"]
        return Finding(lines, {"analogies": right / known, "analogies_known": float(known)})


@dataclasses.dataclass(frozen=True)
class Similarity(_Words):
    """How well cosines rank pairs of words as people do: Spearman's correlation with the score of each.

    A pair is a document "word word score", as of WordSim-353 (Finkelstein et al. 2002) or SimLex-999 (Hill et al.
    2015); those with unknown words do not count.

    Raises:
      InputError: a document is not such a pair, or the pairs with known words have fewer than two different scores.
    """

    pairs: Source

    def check(self, planned):
        super().check(planned)
        pairs = [_scored(document.text()) for document in self.pairs.documents()]
        check_pairs(pairs, planned.tokenizer)

    def __call__(self, finished):
        pairs = [_scored(document.text()) for document in self.pairs.documents()]
        correlation, known = self.vectors(finished).similarity(pairs)
        unknown = len(pairs) - known
        line = f"similarity: rank correlation {correlation:.3f} of {known} pairs; {unknown} have unknown words"
        return Finding([line], {"similarity": correlation, "similarity_known": float(known)})


def _scored(text: str) -> tuple[str, str, float]:
    try:
        first, second, score = text.split()
        return first, second, float(score)
    except ValueError:
        raise InputError(f"a pair to rank is two words and a number, not {text[:60]!r}") from None


WORD_REPORTS = dict(Neighbours=Neighbours, Analogies=Analogies, Similarity=Similarity)
