"""Every packing, by brute force: rows hold each pair of a document exactly once, whole, and cross no boundary."""

import itertools

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from llm_jax.core.errors import InputError
from llm_jax.data.packing import PACKINGS, BestFit, ConcatThenSplit, One, Windows, best_fit, ramps


def rows_of(packing, lengths, length, rng=None, learnt=None):
    offsets = np.cumsum([0, *lengths])
    plan = packing.plan(offsets, length, rng, learnt)
    start, size, which = plan.pieces(np.arange(len(plan)))
    rows = [[] for _ in range(len(plan))]
    for s, n, row in zip(start.tolist(), size.tolist(), which.tolist(), strict=True):
        rows[row].append((s, n))
    return rows


def pairs(lengths):
    """The place of every input that has a target in its own document."""
    offsets = np.cumsum([0, *lengths])
    return sorted(i for a, b in itertools.pairwise(offsets) for i in range(a, b - 1))


SPLITTING = [ConcatThenSplit(), BestFit(), One("split")]


@pytest.mark.parametrize("packing", SPLITTING, ids=str)
@hypothesis.given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=30).filter(lambda n: max(n) > 1),
    length=st.integers(1, 20),
    seed=st.none() | st.integers(0, 9),
)
def test_every_pair_of_every_document_is_in_exactly_one_row(packing, lengths, length, seed):
    rng = None if seed is None else np.random.default_rng(seed)
    rows = rows_of(packing, lengths, length, rng)
    assert sorted(s + i for row in rows for s, n in row for i in range(n)) == pairs(lengths)
    assert all(0 < sum(n for _, n in row) <= length for row in rows)
    document = np.repeat(np.arange(len(lengths)), lengths)
    assert all(document[s] == document[s + n] for row in rows for s, n in row)
    assert len(rows) == len(rows_of(packing, lengths, length)), "the number of rows must not depend on the order"


@pytest.mark.parametrize("packing", [BestFit(), One("split"), BestFit("truncate"), One("truncate")], ids=str)
@hypothesis.given(
    lengths=st.lists(st.integers(1, 20), min_size=1, max_size=20).filter(lambda n: max(n) > 1),
    length=st.integers(1, 10),
    seed=st.integers(0, 9),
)
def test_a_piece_of_which_nothing_is_learnt_has_no_place_in_a_row(packing, lengths, length, seed):
    rng = np.random.default_rng(seed)
    learnt = rng.random(sum(lengths)) < 0.1
    every = sorted(piece for row in rows_of(packing, lengths, length) for piece in row)
    wanted = [(s, n) for s, n in every if any(learnt[s + 1 : s + n + 1])]
    if not wanted:
        with pytest.raises(InputError, match=f"nothing is learnt in rows of data.length={length}: raise it"):
            rows_of(packing, lengths, length, rng, learnt)
        return
    rows = rows_of(packing, lengths, length, rng, learnt)
    assert sorted(piece for row in rows for piece in row) == wanted and all(rows)
    assert len(rows) == len(rows_of(packing, lengths, length, None, learnt))


def test_concat_then_split_fills_every_row_but_the_last_and_cuts_at_its_end():
    assert rows_of(ConcatThenSplit(), [4, 6, 3], 4) == [[(0, 3), (4, 1)], [(5, 4)], [(10, 2)]]


def test_best_fit_keeps_documents_whole_and_wastes_little():
    lengths = np.random.default_rng(0).integers(2, 60, 500)
    rows = rows_of(BestFit("refuse"), lengths, 256)
    assert sum(len(row) for row in rows) == 500
    assert np.sum(lengths - 1) / (len(rows) * 256) > 0.98


@hypothesis.given(st.lists(st.integers(1, 10), min_size=1, max_size=60))
def test_best_fit_takes_the_row_with_the_least_room_that_is_enough(sizes):
    room = []
    for size, row in zip(sizes, best_fit(np.array(sizes), 10), strict=True):
        enough = [r for r in room if r >= size]
        if enough:
            assert room[row] == min(enough)
        else:
            assert row == len(room)
            room.append(10)
        room[row] -= size


@pytest.mark.parametrize("packing", [BestFit("truncate"), One("truncate")], ids=str)
def test_truncating_keeps_the_beginning(packing):
    assert sorted(p for row in rows_of(packing, [9, 3, 1], 4) for p in row) == [(0, 4), (9, 2)]


@pytest.mark.parametrize("packing", [BestFit("refuse"), One()], ids=str)
def test_a_document_longer_than_a_row_is_refused(packing):
    assert len(rows_of(packing, [5, 3], 4)) > 0
    with pytest.raises(InputError, match=r"1 of 2 documents are longer .* longest has 6 tokens, a row holds 5\)"):
        rows_of(packing, [6, 3], 4)


def test_windows_start_at_every_stride_and_reach_the_end():
    assert rows_of(Windows(), [7], 3) == [[(0, 3)], [(1, 3)], [(2, 3)], [(3, 3)]]
    assert rows_of(Windows(2), [7], 3) == [[(0, 3)], [(2, 3)], [(4, 2)]]
    assert rows_of(Windows(3), [7], 3) == [[(0, 3)], [(3, 3)]]
    assert rows_of(Windows(), [3], 8) == [[(0, 2)]]
    with pytest.raises(InputError, match="at least 1"):
        Windows(0)


@hypothesis.given(st.integers(2, 50), st.integers(1, 12), st.integers(1, 12))
def test_windows_for_evaluation_hold_every_pair_once(tokens, length, stride):
    rows = rows_of(Windows(stride).once(length), [tokens], length)
    assert [s + i for row in rows for s, n in row for i in range(n)] == list(range(tokens - 1))


@hypothesis.given(tokens=st.integers(2, 200), length=st.integers(1, 20), stride=st.integers(1, 70))
def test_no_window_lies_beyond_the_end(tokens, length, stride):
    rows = rows_of(Windows(stride), [tokens], length)
    assert [row[0][0] for row in rows] == [stride * i for i in range(len(rows))]
    for i, [(start, size)] in enumerate(rows):
        assert 1 <= size == min(length, tokens - 1 - start)
        assert size == length or i == len(rows) - 1
    last = rows[-1][0]
    assert sum(last) == tokens - 1 or last[0] + stride >= tokens - 1, "windows go on to the end"


def test_ramps():
    assert ramps(np.array([2, 0, 3])).tolist() == [0, 1, 0, 1, 2]
    assert ramps(np.array([], int)).tolist() == []


def test_the_table_names_every_packing():
    assert {name: cls.__name__ for name, cls in PACKINGS.items()} == {n: n for n in PACKINGS}
