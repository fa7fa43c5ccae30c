"""What a finished run says of the vectors of words that it has learnt."""

from __future__ import annotations

import dataclasses

from llm_jax.core.parts import Size, conform
from llm_jax.core.tables import InputError
from llm_jax.data.sources import Source
from llm_jax.inference.word_vectors import WordVectors
from llm_jax.models.word2vec import Word2Vec
from llm_jax.training.report import Finding, Finished, Report


class _Words(Report):
    def vectors(self, finished: Finished) -> WordVectors:
        conform(finished.experiment.model, Word2Vec, "model")
        return WordVectors(finished.params["embed"]["table"], finished.tokenizer)


@dataclasses.dataclass(frozen=True)
class Neighbours(_Words):
    """The nearest words of each of `words`."""

    words: tuple[str, ...]
    count: Size = 8

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

    def __call__(self, finished):
        questions = [document.text().split() for document in self.questions.documents()]
        if strange := [question for question in questions if len(question) != 4]:
            raise InputError(f"an analogy has four words, not {' '.join(strange[0])[:60]!r}")
        right, known = self.vectors(finished).analogies(questions)
        if not known:
            raise InputError(f"none of the {len(questions)} analogies has words of the vocabulary only")
        lines = [f"analogies: {right}/{known} right, and {len(questions) - known} have unknown words"]
        return Finding(lines, {"analogies": right / known, "analogies_known": float(known)})


WORD_REPORTS = dict(Neighbours=Neighbours, Analogies=Analogies)
