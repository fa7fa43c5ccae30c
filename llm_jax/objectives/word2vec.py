"""Predicting words from those near them (Mikolov et al. 2013a, "Efficient Estimation"; 2013b, "Distributed ...").

To predict a word is a handful of binary decisions, each a logistic regression on the vector of the input: whether a
word is the true one or drawn from noise (negative sampling), or which way to turn in a tree (hierarchical softmax).
"""

from __future__ import annotations

import dataclasses
import heapq
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from llm_jax.core.arrays import Batch
from llm_jax.core.dims import contract
from llm_jax.core.errors import InputError
from llm_jax.core.parts import NonNegative, Part, Size, conform
from llm_jax.data.documents import check_weights
from llm_jax.layers.tokens import PADDING
from llm_jax.models.word2vec import Word2Vec
from llm_jax.objectives.objective import Objective

Frozen = dict[str, Any]  # of what the counts of the words decide


class Decisions(Part):
    """Which binary decisions predict a word."""

    def prepare(self, count_V: np.ndarray) -> Frozen:
        """What is made of the words' counts, once for a run."""
        raise NotImplementedError

    def __call__(self, word_BS: jax.Array, frozen: Frozen, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Rows of the table of decisions, and +1 or -1 for what each should say (0: it does not count), [B, S, M]."""
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class NegativeSampling(Decisions):
    """A word is told from `negatives` that are drawn by their counts to the `power`.

    They are drawn once for a word in its place, and serve all of its neighbours. One that is the word itself is left
    out.
    """

    negatives: Size = 5
    power: NonNegative = 0.75

    def prepare(self, count_V):
        noise_V = np.where(count_V > 0, count_V.astype(np.float64) ** self.power, 0)
        return dict(noise_V=(np.cumsum(noise_V) / noise_V.sum()).astype(np.float32))

    def __call__(self, word_BS, frozen, key):
        place_BSM = jax.random.uniform(key, (*word_BS.shape, self.negatives))
        drawn_BSM = jnp.searchsorted(frozen["noise_V"], place_BSM, side="right").astype(jnp.int32)
        sign_BSM = jnp.where(drawn_BSM == word_BS[..., None], 0.0, -1.0)
        rows_BSM = jnp.concatenate([word_BS[..., None], drawn_BSM], -1)
        return rows_BSM, jnp.concatenate([jnp.ones_like(sign_BSM[..., :1]), sign_BSM], -1)


@dataclasses.dataclass(frozen=True)
class HierarchicalSoftmax(Decisions):
    """A word is found by its turns in a Huffman tree (Morin & Bengio 2005): few for a frequent word."""

    def prepare(self, count_V):
        paths = huffman(count_V)
        deepest = max(len(turns) for _, turns in paths)
        node_VM, sign_VM = np.zeros((len(paths), deepest), np.int32), np.zeros((len(paths), deepest), np.float32)
        for word, (nodes, turns) in enumerate(paths):
            node_VM[word, : len(nodes)], sign_VM[word, : len(nodes)] = nodes, turns
        return dict(node_VM=node_VM, sign_VM=sign_VM)

    def __call__(self, word_BS, frozen, key):
        return frozen["node_VM"][word_BS], frozen["sign_VM"][word_BS]


def huffman(count_V: np.ndarray) -> list[tuple[list[int], list[int]]]:
    """For each word, the inner nodes from the root down, and +1 or -1 for the turn at each; ties go by number."""
    heap = [(int(count), word) for word, count in enumerate(count_V)]
    heapq.heapify(heap)
    parent: dict[int, tuple[int, int]] = {}
    words = len(heap)
    for inner in range(words, 2 * words - 1):
        (first, a), (second, b) = heapq.heappop(heap), heapq.heappop(heap)
        parent[a], parent[b] = (inner, 1), (inner, -1)
        heapq.heappush(heap, (first + second, inner))
    paths = []
    for word in range(words):
        nodes, turns, at = [], [], word
        while at in parent:
            at, turn = parent[at]
            nodes.append(at - words)
            turns.append(turn)
        paths.append((nodes[::-1], turns[::-1]))
    return paths


@dataclasses.dataclass(frozen=True)
class _Windowed(Objective):
    """Words near each other in a document: up to a distance that is drawn for each, from 1 to `window`.

    A word that makes up a share f of the text is kept with probability sqrt(subsample / f) (0: all are), and distances
    are between words that are kept. Special tokens and [UNK] are left out. Evaluation draws always the same.

    Sums: weight (of predictions), loss (nats).
    """

    window: Size = 5
    decisions: Decisions = NegativeSampling()
    subsample: NonNegative = 1e-3

    def check(self, model, documents):
        check_weights(documents, type(self).__name__)

    def prepare(self, data, tokenizer):
        assert tokenizer is not None
        count_V = data.counts(tokenizer)
        count_V[list(tokenizer.special.values())] = 0
        if np.count_nonzero(count_V) < 2:
            raise InputError(
                f"of the training documents {np.count_nonzero(count_V)} words are in the vocabulary, so that none can "
                "predict another: raise tokenizer.vocabulary, or train the tokenizer on these texts"
            )
        share_V = count_V / count_V.sum()
        with np.errstate(divide="ignore"):
            keep_V = np.minimum(1, np.sqrt(self.subsample / share_V)) if self.subsample else np.ones(len(count_V))
        keep_V = np.where(count_V > 0, keep_V, 0)
        return dict(keep_V=keep_V.astype(np.float32)) | self.decisions.prepare(count_V)

    def _read(self, model: Any, frozen: Frozen, batch: Batch, key: Any):
        """The words that are kept, together at the left: ids and segments, the reach of each, and a key."""
        conform(model, Word2Vec, "model")
        thin, reach, rest = jax.random.split(jax.random.key(0) if key is None else key, 3)
        word_BT, segment_BT = batch["tokens_BT"], batch["segment_BT"]
        kept_BT = jax.random.uniform(thin, word_BT.shape) < frozen["keep_V"][word_BT]
        segment_BT = jnp.where(kept_BT, segment_BT, PADDING)
        order_BT = jnp.argsort(segment_BT == PADDING, axis=1, stable=True)
        word_BT, segment_BT = (jnp.take_along_axis(x, order_BT, 1) for x in (word_BT, segment_BT))
        reach_BT = jax.random.randint(reach, word_BT.shape, 1, self.window + 1)
        return word_BT, segment_BT, reach_BT, rest

    def _offsets(self, segment_BT: jax.Array) -> Iterator[tuple[int, jax.Array]]:
        """Each distance to the left or right, and where the word at that distance is of the same document."""
        length = segment_BT.shape[1]
        for distance in (d for d in range(-self.window, self.window + 1) if d and abs(d) < length):
            there_BT = jnp.roll(segment_BT, distance, axis=1)
            place_T = np.arange(length) - distance
            inside_T = jnp.asarray((place_T >= 0) & (place_T < length))
            yield distance, inside_T[None] & (there_BT == segment_BT) & (segment_BT != PADDING)

    def _outputs(self, model: Any, params: Any, frozen: Frozen, word_BT: jax.Array, key: jax.Array) -> Any:
        """The vectors of the decisions that predict each word, and what they should say."""
        row_BTM, sign_BTM = self.decisions(word_BT, frozen, key)
        return model.apply({"params": params}, row_BTM, method="decide"), sign_BTM


def _loss(input_BTD: jax.Array, decision_BTMD: jax.Array, sign_BTM: jax.Array) -> jax.Array:
    """[B, T] nats: of every decision, by the vector that it is made from."""
    score_BTM = contract("BTD,BTMD->BTM", input_BTD, decision_BTMD)
    return jnp.where(sign_BTM == 0, 0, jax.nn.softplus(-sign_BTM * score_BTM)).sum(-1)


@dataclasses.dataclass(frozen=True)
class SkipGram(_Windowed):
    """Each word predicts every word near it."""

    def __call__(self, model, params, frozen, batch, key):
        word_BT, segment_BT, reach_BT, key = self._read(model, frozen, batch, key)
        input_BTD: Any = model.apply({"params": params}, word_BT)
        outputs = self._outputs(model, params, frozen, word_BT, key)
        loss = weight = jnp.float32(0)
        for distance, near_BT in self._offsets(segment_BT):
            near_BT = near_BT & (jnp.roll(reach_BT, distance, axis=1) >= abs(distance))
            loss_BT = _loss(jnp.roll(input_BTD, distance, axis=1), *outputs)
            loss, weight = loss + jnp.where(near_BT, loss_BT, 0).sum(), weight + near_BT.sum().astype(jnp.float32)
        return dict(weight=weight, loss=loss)


@dataclasses.dataclass(frozen=True)
class Cbow(_Windowed):
    """The mean of the words near it predicts each word: a continuous bag of words."""

    def __call__(self, model, params, frozen, batch, key):
        word_BT, segment_BT, reach_BT, key = self._read(model, frozen, batch, key)
        word_BTD: Any = model.apply({"params": params}, word_BT)
        total_BTD, count_BT = jnp.zeros(word_BTD.shape, jnp.float32), jnp.zeros(word_BT.shape, jnp.float32)
        for distance, near_BT in self._offsets(segment_BT):
            near_BT = (near_BT & (reach_BT >= abs(distance))).astype(jnp.float32)
            total_BTD = total_BTD + near_BT[..., None] * jnp.roll(word_BTD, distance, axis=1).astype(jnp.float32)
            count_BT = count_BT + near_BT
        decision_BTMD, sign_BTM = self._outputs(model, params, frozen, word_BT, key)
        mean_BTD = (total_BTD / jnp.maximum(count_BT, 1)[..., None]).astype(decision_BTMD.dtype)
        predicted_BT = count_BT > 0
        loss = jnp.where(predicted_BT, _loss(mean_BTD, decision_BTMD, sign_BTM), 0).sum()
        return dict(weight=predicted_BT.sum().astype(jnp.float32), loss=loss)


DECISIONS = dict(NegativeSampling=NegativeSampling, HierarchicalSoftmax=HierarchicalSoftmax)
OBJECTIVES = dict(SkipGram=SkipGram, Cbow=Cbow)
