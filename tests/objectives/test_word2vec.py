"""Word2Vec: loss and gradients are a NumPy re-derivation's, pair by pair; what is drawn is drawn as the papers say."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm_jax.core.errors import InputError
from llm_jax.data.documents import Rendering, Text
from llm_jax.data.packing import BestFit
from llm_jax.data.pipeline import Data
from llm_jax.data.sources import Source
from llm_jax.data.split import ByHash
from llm_jax.layers.embedding import Embed
from llm_jax.models.recurrent import RecurrentDecoder
from llm_jax.models.word2vec import Word2Vec
from llm_jax.objectives.word2vec import Cbow, HierarchicalSoftmax, NegativeSampling, SkipGram, huffman
from llm_jax.text.recipes import Words

jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})

V, D, T = 11, 6, 9
MODEL = Word2Vec(Embed(D, V))
COUNT = np.array([0, 40, 30, 20, 9, 8, 7, 5, 3, 2, 1])


def case() -> tuple[Any, Any]:
    rng = np.random.default_rng(0)
    params: Any = dict(
        embed=dict(table=rng.standard_normal((V, D)).astype(np.float32)),
        decisions=rng.standard_normal((V, D)).astype(np.float32),
    )
    segment = np.array([[0, 0, 0, 0, 1, 1, 1, -1, -1], [0, 1, 1, 1, 1, 1, 1, 1, 1]], np.int32)
    return params, dict(tokens_BT=rng.integers(1, V, (2, T)).astype(np.int32), segment_BT=segment)


def predictions(objective: SkipGram | Cbow, batch: Any, frozen: Any, key: Any):
    """Inputs and decisions of every prediction, one after another, with the objective's own draws."""
    words, segments, reach, rest = objective._read(MODEL, frozen, batch, key)
    rows, signs = objective.decisions(words, frozen, rest)
    words, segments, reach, rows, signs = map(np.asarray, (words, segments, reach, rows, signs))
    for b, t in itertools.product(range(2), range(T)):
        if segments[b, t] < 0:
            continue
        near = [s for s in range(T) if 0 < abs(s - t) <= reach[b, t] and segments[b, s] == segments[b, t]]
        if isinstance(objective, SkipGram):
            yield from (([words[b, t]], rows[b, s], signs[b, s]) for s in near)
        elif near:
            yield words[b, near].tolist(), rows[b, t], signs[b, t]


@pytest.mark.parametrize("decisions", [NegativeSampling(3), HierarchicalSoftmax()], ids=lambda d: type(d).__name__)
@pytest.mark.parametrize("kind", [SkipGram, Cbow])
def test_loss_and_gradients_are_numpys(kind, decisions):
    objective, (params, batch) = kind(3, decisions, subsample=0.0), case()
    frozen = jax.tree.map(jnp.asarray, dict(keep_V=np.ones(V, np.float32)) | decisions.prepare(COUNT))

    @jit
    def sums(params, key):
        def loss(params):
            sums = objective(MODEL, params, frozen, batch, key)
            return sums["loss"], sums["weight"]

        return jax.value_and_grad(loss, has_aux=True)(params)

    table, decided = (np.asarray(p, np.float64) for p in (params["embed"]["table"], params["decisions"]))
    for key in (jax.random.key(0), jax.random.key(5)):
        (loss, weight), gradients = sums(params, key)
        want, d_table, d_decided, count = 0.0, np.zeros((V, D)), np.zeros((V, D)), 0
        for inputs, rows, signs in predictions(objective, batch, frozen, key):
            vector = table[inputs].mean(0)
            count += 1
            for row, sign in zip(rows, signs, strict=True):
                if sign:
                    wrong = 1 / (1 + np.exp(sign * (vector @ decided[row])))  # the probability of the other answer
                    want -= np.log1p(-wrong)
                    d_decided[row] -= sign * wrong * vector
                    for word in inputs:
                        d_table[word] -= sign * wrong * decided[row] / len(inputs)
        assert weight == count > 10
        np.testing.assert_allclose(loss, want, rtol=1e-5)
        np.testing.assert_allclose(gradients["embed"]["table"], d_table, atol=1e-4)
        np.testing.assert_allclose(gradients["decisions"], d_decided, atol=1e-4)
    assert objective(MODEL, params, frozen, batch, None)["loss"] == pytest.approx(sums(params, jax.random.key(0))[0][0])


def test_the_huffman_tree_is_a_distribution_and_shortest_for_frequent_words():
    paths = huffman(COUNT)
    mean = sum(count * len(turns) for count, (_, turns) in zip(COUNT, paths, strict=True)) / COUNT.sum()
    entropy = -sum(p * np.log2(p) for p in COUNT[1:] / COUNT.sum())
    assert entropy <= mean < entropy + 1  # what a Huffman code promises
    score = np.random.default_rng(0).standard_normal(V - 1)
    chance = [np.prod([1 / (1 + np.exp(-t * score[n])) for n, t in zip(*path, strict=True)]) for path in paths]
    np.testing.assert_allclose(sum(chance), 1)
    assert len({tuple(turns) for _, turns in paths}) == V and min(len(turns) for _, turns in paths) == len(paths[1][1])


def test_noise_and_subsampling_have_the_papers_rates():
    frozen = jax.tree.map(jnp.asarray, NegativeSampling(2000).prepare(COUNT))
    rows, signs = NegativeSampling(2000)(jnp.full((1, 50), 3), frozen, jax.random.key(0))
    drawn = np.bincount(np.asarray(rows)[..., 1:].ravel(), minlength=V) / 100_000
    np.testing.assert_allclose(drawn, COUNT**0.75 / (COUNT**0.75).sum(), atol=5e-3)
    assert np.all((np.asarray(signs)[..., 1:] == 0) == (np.asarray(rows)[..., 1:] == 3)) and np.all(signs[..., 0] == 1)

    keep = np.minimum(1, np.sqrt(0.05 / np.maximum(COUNT / COUNT.sum(), 1e-9)))
    keep[0] = 0
    ids = np.random.default_rng(0).integers(0, V, (60, 500)).astype(np.int32)
    batch: Any = dict(tokens_BT=ids, segment_BT=np.zeros((60, 500), np.int32))
    frozen = dict(keep_V=jnp.asarray(keep, jnp.float32))
    words, segments, reach, _ = SkipGram(2, subsample=0.05)._read(MODEL, frozen, batch, jax.random.key(1))
    kept = np.bincount(np.asarray(words)[np.asarray(segments) == 0], minlength=V)
    np.testing.assert_allclose(kept / np.bincount(ids.ravel(), minlength=V), keep, atol=0.03)
    assert set(np.unique(reach)) == {1, 2}
    rest = iter(ids[0].tolist())  # what is kept stays in order, and comes together
    assert all(word in rest for word in np.asarray(words)[0][np.asarray(segments)[0] == 0].tolist())
    assert np.all(np.diff(np.asarray(segments)[0]) <= 0)


@dataclasses.dataclass(frozen=True)
class Sentences(Source):
    def documents(self):
        for i in range(40):
            yield Text(f"the {'cat' if i % 2 else 'dog'} sees number {i % 7}")


def test_what_is_prepared_comes_from_the_counts_of_the_training_documents():
    data = Data(Sentences(), length=16, batch=8, packing=BestFit(), split=ByHash(0.2), rendering=Rendering())
    tokenizer = data.prepare(Words(30))
    frozen = SkipGram(subsample=1e-2).prepare(data, tokenizer)
    assert data.counts(tokenizer)[tokenizer.special["bos"]] == len(data.documents("train"))
    assert all(frozen["keep_V"][i] == 0 for i in tokenizer.special.values())
    the = tokenizer.encode("the")[0]
    assert frozen["keep_V"][the] == pytest.approx(np.sqrt(1e-2 * 5), rel=1e-5)  # one word of five
    with pytest.raises(InputError, match=r"model must be .*Word2Vec"):
        SkipGram()(RecurrentDecoder(Embed(D, V)), {}, frozen, case()[1], None)


@pytest.mark.parametrize("decisions", [NegativeSampling(), HierarchicalSoftmax()], ids=["negatives", "tree"])
@pytest.mark.parametrize("learnt_from", ["quite other words", "the number one"])
def test_documents_of_unknown_words_are_refused(decisions, learnt_from):
    """They were NaN from the first step on; of one word that is known, none is near another."""
    data = Data(Sentences(), length=16, batch=8, packing=BestFit(), split=ByHash(0.2))
    tokenizer = Words(30).train([learnt_from.replace("number", "")])
    with pytest.raises(InputError, match=r"of the training documents [01] words are in the vocabulary"):
        SkipGram(decisions=decisions).prepare(data, tokenizer)
