"""Batches as a pure function of (seed, batch number), and the iterator over them.

Nothing a batch depends on is accumulated from batch to batch, so the state of an iterator is one number, whatever the
packing, the mixture, the shuffling, the number of prefetching workers or of processes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any

import grain
import numpy as np

from llm_jax.core.arrays import HostBatch
from llm_jax.core.errors import InputError
from llm_jax.core.workers import not_in_worker, starting
from llm_jax.data import border
from llm_jax.data.cache import Corpus
from llm_jax.data.packing import Packing, Plan, WindowPlan, ramps
from llm_jax.data.presentation import AsIs, Presentation, Vocabulary, blank
from llm_jax.data.workers import Sent, ahead, death

PERIOD = 10_000  # rows after which the pattern of a mixture repeats, where its shares are so many of so many


@dataclasses.dataclass
class Rows:
    """The endless rows of one corpus, epoch after epoch; each epoch in its own order where there is a `seed`."""

    corpus: Corpus
    packing: Packing
    length: int
    seed: tuple[int, ...] | None
    presentation: Presentation = AsIs()

    def __post_init__(self) -> None:
        self._plans: dict[int, Plan | WindowPlan] = {}
        self.count = len(self._plan(0))

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_plans": {}}

    def _plan(self, epoch: int) -> Plan | WindowPlan:
        if epoch not in self._plans:
            rng = None if self.seed is None else np.random.default_rng((*self.seed, epoch))
            plan = border.plan(self.packing, self.presentation.plan(self.packing, self.corpus, self.length, rng))
            # a batch may straddle two epochs: keep the one before
            self._plans = {e: p for e, p in self._plans.items() if e == epoch - 1} | {epoch: plan}
        return self._plans[epoch]

    def pieces(self, number_R: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Per epoch that rows `number_R` touch: start and size of their pieces, and the index in `number_R` of each."""
        epoch_R, index_R = np.divmod(number_R, self.count)
        for epoch in range(epoch_R.min(), epoch_R.max() + 1):
            here = np.flatnonzero(epoch_R == epoch)
            index = index_R[here]
            if self.seed is not None:
                index = permuted(index, self.count, (*self.seed, epoch))
            start, size, which = self._plan(epoch).pieces(index)
            yield start, size, here[which]


def permuted(index: np.ndarray, count: int, seed: tuple[int, ...]) -> np.ndarray:
    """`permutation[index]` of a random permutation of `range(count)` that is never written out.

    A Feistel network over a x b >= `count` numbers, nearly square; what falls outside goes through it again until it
    falls inside (Black and Rogaway 2002, "Ciphers with Arbitrary Finite Domains").
    """
    a = np.uint64(math.isqrt(count - 1) + 1)
    b = np.uint64(-(-count // int(a)))
    value = index.astype(np.uint64)
    outside = np.arange(len(value))
    while len(outside):
        left, right = np.divmod(value[outside], b)
        for key_left, key_right in _keys(seed):
            left = (left + _mixed(right, key_left)) % a
            right = (right + _mixed(left, key_right)) % b
        value[outside] = left * b + right
        outside = outside[value[outside] >= count]
    return value.astype(np.int64)


@functools.lru_cache(maxsize=16)
def _keys(seed: tuple[int, ...]) -> np.ndarray:
    return np.random.SeedSequence(seed).generate_state(6, np.uint64).reshape(3, 2)


def _mixed(x: np.ndarray, key: np.uint64) -> np.ndarray:
    """Pseudorandom numbers below 2^32 (the finaliser of SplitMix64)."""
    x = (x ^ key) * np.uint64(0xBF58476D1CE4E5B9)
    return ((x ^ (x >> np.uint64(31))) * np.uint64(0x94D049BB133111EB)) >> np.uint64(32)


class Mixed:
    """Which component, and which of its rows, is row n of a mixture: as evenly spread as whole rows allow.

    Row k of a component is due at (k + 1/2) / share, and rows come as they are due. Shares are whole parts of `PERIOD`,
    unless one of them would be wrong by more than a hundredth of itself: they are exact then.
    """

    def __init__(self, weights: Sequence[float]):
        scaled = np.asarray(weights, np.float64) / np.max(weights)
        exact = scaled / np.sum(scaled) * PERIOD
        rounded = np.round(exact)
        self.exact = bool(np.any(np.abs(rounded - exact) > 0.01 * exact))
        self.share = exact if self.exact else rounded
        self.period = np.sum(self.share)

    def _due(self, number_RC: np.ndarray) -> np.ndarray:
        """In periods: how far the rows have come where a component's row is due. Infinitely far, if that is never."""
        with np.errstate(over="ignore"):
            return (number_RC + 0.5) / self.share

    def __call__(self, row_R: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Component and number of each row, int64 both."""
        begin_R, place_R = (0, row_R) if self.exact else np.divmod(row_R, int(self.period))
        count = len(self.share)
        from_R1 = (place_R / self.period - (count + 2) / self.period)[:, None]  # no more than so many are due early
        first_RC = np.maximum(np.ceil(from_R1 * self.share - 0.5), 0)
        first_RC -= (first_RC > 0) & (self._due(first_RC - 1) >= from_R1)  # of rounding
        first_RC += self._due(first_RC) < from_R1
        ahead_RNC = first_RC[:, None] + np.arange(3 * count + 6)[:, None]
        ahead_RCN = ahead_RNC.swapaxes(1, 2)  # of two that are due at once, the first component's comes first
        due_RCN = self._due(ahead_RNC).swapaxes(1, 2)
        order_RN = np.argsort(due_RCN.reshape(len(place_R), -1), axis=1, kind="stable")
        nth_R = (place_R - first_RC.sum(1)).astype(np.int64)
        chosen_R = np.take_along_axis(order_RN, nth_R[:, None], 1)[:, 0]
        number_R = np.take_along_axis(ahead_RCN.reshape(len(place_R), -1), chosen_R[:, None], 1)[:, 0]
        component_R = chosen_R // ahead_RCN.shape[-1]
        return component_R, (begin_R * self.share[component_R] + number_R).astype(np.int64)


@dataclasses.dataclass
class Filler:
    """Fills batches with rows of several corpora, and presents them."""

    components: list[Rows]
    length: int
    bytes_V: np.ndarray
    special: Vocabulary
    seed: int
    presentation: Presentation

    def __post_init__(self) -> None:
        self.row = self.presentation.row(self.length)

    def __call__(self, component_B: np.ndarray, number_B: np.ndarray) -> HostBatch:
        """The batch of these rows; a row of component -1 is padding."""
        batch = blank(len(component_B), self.row, self.special["pad"])
        for c, rows in enumerate(self.components):
            if len(here := np.flatnonzero(component_B == c)):
                for start, size, which in rows.pieces(number_B[here]):
                    self._fill(batch, rows.corpus, start, size, here[which])
        seed_B = [(self.seed, *row) for row in zip((component_B + 1).tolist(), number_B.tolist(), strict=True)]
        presented = self.presentation(batch, self.length, self.special, seed_B)
        return border.batch(self.presentation, presented, len(component_B), self._padding)

    @functools.cached_property
    def _padding(self) -> HostBatch:
        """What is made of a row of padding: what every batch is to look like."""
        return self.presentation(blank(1, self.row), self.length, Vocabulary(), [(0, 0)])

    def _fill(self, batch: HostBatch, corpus: Corpus, start: np.ndarray, size: np.ndarray, row: np.ndarray) -> None:
        """Puts pieces into rows of the batch; `row` is ascending."""
        before = np.cumsum(size) - size
        opening = np.searchsorted(row, row)  # the first piece of the same row
        place = np.repeat(row * self.row - before[opening], size) + np.arange(size.sum())
        position = ramps(size)
        source = np.repeat(start, size) + position
        after = np.minimum(source + 1, len(corpus.tokens) - 1)  # the last token of all has none, nor asks for it
        targets = corpus.tokens[after]
        batch["tokens_BT"].reshape(-1)[place] = corpus.tokens[source]
        batch["targets_BT"].reshape(-1)[place] = targets
        batch["weight_BT"].reshape(-1)[place] = corpus.learnt[after]
        batch["segment_BT"].reshape(-1)[place] = np.repeat(np.arange(len(row)) - opening, size)
        batch["position_BT"].reshape(-1)[place] = position
        bytes_of_targets = self.bytes_V[targets] if corpus.bytes is None else corpus.bytes[after]
        batch["bytes_BT"].reshape(-1)[place] = bytes_of_targets
        if corpus.numbers is not None:
            first = np.flatnonzero(opening == np.arange(len(row)))
            document = np.searchsorted(corpus.offsets, start[first], side="right") - 1
            number = corpus.numbers[document]
            if number.ndim > batch["number_B"].ndim:  # several of a document
                batch["number_B"] = np.full((len(batch["number_B"]), number.shape[1]), np.nan, np.float32)
            batch["number_B"][row[first]] = number


class TrainingBatches(grain.MapDataset):
    """Batch number `first + i` at index i, endlessly; of its rows, those of one process."""

    def __init__(self, filler: Filler, mixed: Mixed, batch: int, process: int, processes: int, first: int = 0):
        super().__init__()
        self.filler, self.mixed, self.rows = filler, mixed, batch
        self.process, self.processes, self.first = process, processes, first

    def __len__(self) -> int:
        return sys.maxsize

    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return self.slice(index)
        share = self.rows // self.processes
        begin = (self.first + index) * self.rows + self.process * share
        return self.filler(*self.mixed(np.arange(begin, begin + share)))

    def starting(self, first: int) -> TrainingBatches:
        return TrainingBatches(self.filler, self.mixed, self.rows, self.process, self.processes, first)


class DataIterator(Iterator[HostBatch]):
    """Endless training batches. Its state is what its user has *seen*, whatever has been prefetched."""

    def __init__(self, batches: TrainingBatches, workers: int, stream: str, content: str):
        """`stream` is a hash of all that decides the batches but code, `content` one of the tokens that code made."""
        self._batches, self._workers, self._stream, self._content = batches, workers, stream, content
        self._seen = 0
        self._running: Any = None
        self._sent: Sent | None = None

    def next(self, state: Any, waiting: AbstractContextManager[None] = contextlib.nullcontext()) -> HostBatch:
        """The next batch. Texts that are there already do not depend on the state of the training.

        Raises:
          InputError: a worker died.
        """
        try:
            with waiting:  # whatever ends the wait: what was not returned was not seen
                batch = self._start() if self._running is None else next(self._running)
        except RuntimeError as error:
            if (told := death(error)) is None:
                raise
            self.close()
            raise told from None
        self._seen += 1
        return batch

    def __next__(self) -> HostBatch:
        return self.next(None)

    def _start(self) -> HostBatch:
        """The first batch of a running iterator: grain starts the workers when it is asked for one."""
        not_in_worker()
        batches = self._batches.starting(self._seen)
        if not self._workers:
            self._running = iter(batches.to_iter_dataset(grain.ReadOptions(num_threads=0)))
            return next(self._running)
        with starting():
            self._sent = Sent(batches)
            self._running = ahead(self._sent, self._workers)
            return next(self._running)

    def save(self) -> dict[str, Any]:
        """The state, as JSON; it holds for any number of workers and of processes."""
        return {"batches": self._seen, "stream": self._stream, "content": self._content}

    def restore(self, state: dict[str, Any]) -> None:
        """Goes on after the last batch that was seen before `save`.

        Raises:
          InputError: the state is of another stream: other texts, tokenizer, packing, batch, length, shuffling or
            seed; or of the same texts, of which other code made other tokens.
        """
        if state.get("stream") != self._stream:
            raise InputError(
                "the state of the data is of another stream: the texts, the tokenizer, or a setting of "
                "the data (packing, batch, length, mixture, split, seed) is not what it was, or an older version of "
                "llm_jax made it: begin in another --workdir"
            )
        if state.get("content", self._content) != self._content:  # older states do not say
            raise InputError(
                "the same texts are other tokens than before, or other ones of them are learnt: the code that renders "
                "them was changed (a template or document of your own, this project, or the package tokenizers). Take "
                "the change back to go on with this run, or begin another"
            )
        self.close()
        self._seen = int(state["batches"])

    def close(self) -> None:
        """Ends the workers; the next batch starts them again."""
        if self._running is not None:
            self._running.close()
            self._running = None
        if self._sent is not None:
            self._sent.close()
            self._sent = None


def interleaved(counts: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Which component, and which of its rows, comes when all rows of each come once, evenly spread."""
    count_C = np.array(counts)
    component, number = np.repeat(np.arange(len(count_C)), count_C), ramps(count_C)
    even = np.argsort((number + 0.5) / count_C[component], kind="stable")
    return component[even], number[even]


@dataclasses.dataclass
class Evaluation:
    """Every row of a split once, the corpora of a mixture evenly interleaved, so that a limit cuts all of them alike.

    The last batch is padded with rows of weight 0. Can be iterated again.
    """

    filler: Filler
    batch: int
    process: int
    processes: int
    limit: int | None

    def __len__(self) -> int:
        batches = -(-sum(rows.count for rows in self.filler.components) // self.batch)
        return batches if self.limit is None else min(batches, self.limit)

    def __iter__(self) -> Iterator[HostBatch]:
        component, number = interleaved([rows.count for rows in self.filler.components])
        share = self.batch // self.processes
        for i in range(len(self)):
            begin = i * self.batch + self.process * share
            chosen = slice(begin, begin + share)
            missing = share - len(component[chosen])
            yield self.filler(
                np.append(component[chosen], np.full(missing, -1)),
                np.append(number[chosen], np.zeros(missing, np.int64)),
            )
