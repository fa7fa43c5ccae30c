"""Word vectors: neighbours, analogies and ranks that can be told by hand."""

import numpy as np
import pytest

from llm_jax.core.errors import InputError
from llm_jax.inference.word_vectors import WordVectors
from llm_jax.text.recipes import Characters, Words

SAID = "king queen man woman king queen man woman apple"
PLACES = dict(king=(1, 1, 0), queen=(1, -1, 0), man=(0.2, 1, 0), woman=(0.2, -1, 0), apple=(0, 0.1, 1))


@pytest.fixture(scope="module")
def vectors():
    tokenizer = Words(40).train([SAID])
    table = np.full((tokenizer.vocabulary, 3), 9.0)  # the special tokens are far longer: they must never be found
    for word, place in PLACES.items():
        table[tokenizer.encode(word)[0]] = place
    return WordVectors(table, tokenizer)


def test_neighbours_are_by_cosine_and_never_the_word_itself(vectors):
    cosine = {w: np.dot(PLACES[w], PLACES["king"]) / np.linalg.norm(PLACES[w]) / 2**0.5 for w in PLACES if w != "king"}
    want = sorted(cosine.items(), key=lambda pair: -pair[1])
    found = vectors.neighbours("king", 4)
    assert [word for word, _ in found] == [word for word, _ in want]
    np.testing.assert_allclose([c for _, c in found], [c for _, c in want], atol=1e-6)
    assert vectors.neighbours("king", 1000) == found, "there are no more, and what was left out is none"
    assert vectors.neighbours("king", 2) == found[:2]
    with pytest.raises(InputError, match="count must be at least 1, not 0"):
        vectors.neighbours("king", 0)
    with pytest.raises(InputError, match="no vector for the word 'kin': did you mean 'king'"):
        vectors.neighbours("kin")


def test_analogies_leave_out_the_three_words_and_those_unknown(vectors):
    right, known = vectors.analogies([
        ("man", "king", "woman", "queen"), ("king", "queen", "man", "woman"), ("man", "king", "woman", "apple"),
        ("man", "king", "woman", "emperor"),
    ])  # fmt: skip
    assert (right, known) == (2, 3)
    assert vectors.analogies([]) == (0, 0)


def test_no_word_answers_an_analogy_of_all_there_are():
    tokenizer = Characters().train(["abc"])
    vectors = WordVectors(np.eye(tokenizer.vocabulary), tokenizer)
    assert vectors.analogies([("a", "b", "c", word) for word in "abc"]) == (0, 3)


def test_similarity_is_spearmans(vectors):
    pairs = [("king", "man", 9.0), ("king", "queen", 5.0), ("king", "apple", 5.0), ("queen", "man", 1.0)]
    cosine = [float(vectors.unit_VD[vectors.id(a)] @ vectors.unit_VD[vectors.id(b)]) for a, b, _ in pairs]
    ranks = np.argsort(np.argsort(cosine)) + 1.0
    rank, known = vectors.similarity([*pairs, ("king", "unknown", 3.0)])
    assert known == 4 and rank == pytest.approx(np.corrcoef(ranks, [4, 2.5, 2.5, 1])[0, 1])
    with pytest.raises(InputError, match="only 1 of 2 pairs"):
        vectors.similarity([("king", "man", 1.0), ("a", "b", 2.0)])
