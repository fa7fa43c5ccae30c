"""How documents become rows of a fixed length.

A row is a list of *pieces*; a piece `(start, size)` is `size` pairs of an input and its target, `tokens[start + i]` and
`tokens[start + i + 1]`, which belong to one document. A document of n tokens has n - 1 such pairs, so no target crosses
documents, and every row can be made alone: nothing needs to be replayed to resume.
"""

from __future__ import annotations

import bisect
import dataclasses
from typing import Literal

import numpy as np

from llm_jax.core.errors import InputError
from llm_jax.core.parts import Part, Size


@dataclasses.dataclass(frozen=True)
class Plan:
    """The rows of an epoch: row r has the pieces `first[r]` up to `first[r + 1]`; `first` has rows + 1 entries."""

    start: np.ndarray
    size: np.ndarray
    first: np.ndarray

    def __len__(self) -> int:
        return len(self.first) - 1

    def pieces(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Start and size of each piece of `rows`, and which of `rows` it belongs to, in ascending order."""
        counts = self.first[rows + 1] - self.first[rows]
        which = np.repeat(np.arange(len(rows)), counts)
        piece = self.first[rows][which] + ramps(counts)
        return self.start[piece], self.size[piece], which


@dataclasses.dataclass(frozen=True)
class WindowPlan:
    """Windows are evenly spaced, so they are computed, not listed: a billion tokens have a billion of them."""

    tokens: int
    length: int
    stride: int

    def __len__(self) -> int:
        pairs = self.tokens - 1
        to_the_end = max(0, -(-(pairs - self.length) // self.stride)) + 1
        return min(to_the_end, -(-pairs // self.stride))  # a stride longer than a row may step over the end

    def pieces(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        start = rows * self.stride
        return start, np.minimum(self.length, self.tokens - 1 - start), np.arange(len(rows))


def ramps(counts: np.ndarray) -> np.ndarray:
    """`[0 .. counts[0]-1, 0 .. counts[1]-1, ...]`."""
    ends = np.cumsum(counts)
    return np.arange(ends[-1] if len(ends) else 0) - np.repeat(ends - counts, counts)


class Packing(Part):
    """A way to lay documents out in rows. The number of rows must not depend on `rng`."""

    def plan(
        self, offsets: np.ndarray, length: int, rng: np.random.Generator | None, learnt: np.ndarray | None = None
    ) -> Plan | WindowPlan:
        """The rows of an epoch over documents `offsets[d]` to `offsets[d + 1]`, each of at most `length` pairs.

        `rng` shuffles the documents; None keeps their order. `learnt` says of each token whether it is, as a target:
        where documents are kept apart, a piece of which nothing is learnt has no place in a row (None: all have one).
        """
        raise NotImplementedError

    def once(self, length: int) -> Packing:
        """The same, for evaluation: every pair in exactly one row."""
        return self


@dataclasses.dataclass(frozen=True)
class Windows(Packing):
    """A window every `stride` tokens over all documents one after another; shuffled with stride 1, they are nanoGPT's.

    A window is one segment: attention does cross documents, but the first token of a document is never a target. A
    stride longer than a row leaves the tokens between windows out of training; evaluation reads all of them.
    """

    stride: Size = 1

    def __post_init__(self) -> None:
        if self.stride < 1:
            raise InputError(f"Windows.stride must be at least 1, not {self.stride}")

    def plan(
        self, offsets: np.ndarray, length: int, rng: np.random.Generator | None, learnt: np.ndarray | None = None
    ) -> WindowPlan:
        return WindowPlan(int(offsets[-1]), length, self.stride)

    def once(self, length: int) -> Packing:
        return Windows(stride=length)


@dataclasses.dataclass(frozen=True)
class ConcatThenSplit(Packing):
    """Documents one after another, cut where a row ends: every row but an epoch's last is full."""

    def plan(
        self, offsets: np.ndarray, length: int, rng: np.random.Generator | None, learnt: np.ndarray | None = None
    ) -> Plan:
        start, size = _documents(offsets, rng)
        ends = np.cumsum(size)
        cuts = np.union1d(ends - size, np.arange(0, ends[-1], length))  # where a document or a row begins
        document = np.searchsorted(ends, cuts, side="right")
        first = np.searchsorted(cuts, np.arange(0, ends[-1], length))
        return Plan(
            start[document] + cuts - (ends - size)[document],
            np.diff(cuts, append=ends[-1]),
            np.append(first, len(cuts)),
        )


TooLong = Literal["split", "truncate", "refuse"]


@dataclasses.dataclass(frozen=True)
class BestFit(Packing):
    """Whole documents, the longest first, each into the fullest row that still holds it.

    Documents longer than a row are split into rows first (Ding et al. 2024, "Fewer Truncations Improve Language
    Modeling"), truncated or refused.
    """

    too_long: TooLong = "split"

    def plan(
        self, offsets: np.ndarray, length: int, rng: np.random.Generator | None, learnt: np.ndarray | None = None
    ) -> Plan:
        start, size = _taught(*_whole(*_documents(offsets, rng), length, self.too_long), length, learnt)
        order = np.argsort(-size, kind="stable")
        row = best_fit(size[order], length)
        by_row = np.argsort(row, kind="stable")
        piece = order[by_row]
        return Plan(start[piece], size[piece], np.searchsorted(row[by_row], np.arange(row.max() + 2)))


def best_fit(sizes: np.ndarray, length: int) -> np.ndarray:
    """The row of each piece: the one with the least room that is enough, or a new one."""
    rows_with: dict[int, list[int]] = {}  # rows by the room they have left
    rooms: list[int] = []  # the keys above, sorted
    row = np.empty(len(sizes), np.int64)
    rows = 0
    for i, size in enumerate(sizes.tolist()):
        at = bisect.bisect_left(rooms, size)
        if at == len(rooms):
            room, row[i] = length, rows
            rows += 1
        else:
            room = rooms[at]
            row[i] = rows_with[room].pop()
            if not rows_with[room]:
                del rows_with[room], rooms[at]
        left = room - size
        if left not in rows_with:
            rows_with[left] = []
            bisect.insort(rooms, left)
        rows_with[left].append(int(row[i]))
    return row


@dataclasses.dataclass(frozen=True)
class One(Packing):
    """A document a row, the rest of the row padding."""

    too_long: TooLong = "refuse"

    def plan(
        self, offsets: np.ndarray, length: int, rng: np.random.Generator | None, learnt: np.ndarray | None = None
    ) -> Plan:
        start, size = _taught(*_whole(*_documents(offsets, rng), length, self.too_long), length, learnt)
        return Plan(start, size, np.arange(len(size) + 1))


def _documents(offsets: np.ndarray, rng: np.random.Generator | None) -> tuple[np.ndarray, np.ndarray]:
    """Start and number of pairs of each document that has any, shuffled."""
    start, size = np.array(offsets[:-1]), np.diff(offsets) - 1
    keep = np.flatnonzero(size > 0)
    if rng is not None:
        keep = rng.permutation(keep)
    return start[keep], size[keep]


def _whole(start: np.ndarray, size: np.ndarray, length: int, too_long: TooLong) -> tuple[np.ndarray, np.ndarray]:
    """The documents as pieces that fit a row."""
    if too_long == "truncate":
        return start, np.minimum(size, length)
    if too_long == "refuse" and size.max() > length:
        raise InputError(
            f"{np.sum(size > length)} of {len(size)} documents are longer than a row (the longest has "
            f"{size.max() + 1} tokens, a row holds {length + 1}): set data.length, or "
            "data.packing.too_long to 'truncate' or 'split'"
        )
    counts = -(-size // length)
    document, nth = np.repeat(np.arange(len(size)), counts), ramps(counts)
    return start[document] + nth * length, np.minimum(length, size[document] - nth * length)


def _taught(
    start: np.ndarray, size: np.ndarray, length: int, learnt: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """The pieces that have a target to learn."""
    if learnt is None:
        return start, size
    order = np.argsort(start)
    bounds = np.stack([start[order] + 1, (start + size)[order] + 1], 1).reshape(-1)
    bounds = bounds[bounds < len(learnt)]  # the last piece may end where the tokens do
    keep = np.empty(len(start), bool)
    keep[order] = np.logical_or.reduceat(learnt, bounds)[::2]
    if not keep.any():
        raise InputError(
            f"nothing is learnt in rows of data.length={length}: raise it, or change data.packing.too_long or "
            "data.rendering.learn"
        )
    return start[keep], size[keep]


PACKINGS = dict(Windows=Windows, ConcatThenSplit=ConcatThenSplit, BestFit=BestFit, One=One)
