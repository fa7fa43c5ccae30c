"""Denoisers: what was taken can be put back, in the right amounts and sizes; the rows hold what they promise."""

import collections
import itertools
from typing import Any

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_jax.core.errors import InputError
from llm_jax.data.denoising import DENOISERS, Denoising, MixtureOfDenoisers, SpanCorruption, Suffix, TextInfilling
from llm_jax.data.documents import Rendering
from llm_jax.data.packing import BestFit, One, Windows
from llm_jax.data.pipeline import Data
from llm_jax.data.presentation import Vocabulary
from llm_jax.data.split import ByHash
from llm_jax.text.recipes import RECIPES, Bytes

SENTINELS = 60
TOKENIZER = Bytes(sentinels=SENTINELS).train([])
SPECIAL = Vocabulary(TOKENIZER)
IDS = [SPECIAL[f"<extra_id_{i}>"] for i in range(SENTINELS)]
texts = st.lists(st.integers(0, 255), max_size=90).map(lambda ids: np.array(ids, np.int32))
seeds = st.integers(0, 2**32 - 1)


def restored(source, target):
    """T5's inverse: in the place of each sentinel of the source comes what follows it in the target."""
    spans: dict[int, list[int]] = {}
    for token in target:
        spans.setdefault(int(token), []) if token in IDS else spans[list(spans)[-1]].append(int(token))
    assert list(spans) == IDS[: len(spans)] and all(spans.values())
    assert [token for token in source if token in IDS] == list(spans)
    return [t for token in source.tolist() for t in spans.get(token, [token])]


@settings(max_examples=60, deadline=None)
@given(texts, seeds, st.sampled_from([(0.15, 3.0), (0.5, 3.0), (0.15, 32.0), (0.9, 1.0)]))
def test_spans_go_back_to_where_they_were(text, seed, how):
    denoiser = SpanCorruption(*how)
    source, target = denoiser(text, SPECIAL, np.random.default_rng(seed))
    assert restored(source, target) == text.tolist()
    again = denoiser(text, SPECIAL, np.random.default_rng(seed))
    assert [x.tolist() for x in again] == [source.tolist(), target.tolist()]
    room = denoiser.room(len(text))
    assert (len(source), len(target)) == room
    if len(text) > 1:  # as T5's random_spans_noise_mask has it
        taken = int(min(max(np.round(len(text) * how[0]), 1), len(text) - 1))
        spans = len(target) - taken
        assert spans == min(max(int(np.round(taken / how[1])), 1), taken, len(text) - taken)
        assert source[0] not in IDS


def masks(length: int, taken: int, spans: int) -> list[tuple[bool, ...]]:
    """All ways to take so many tokens of a text in so many spans, and not its first."""
    every = itertools.product((False, True), repeat=length)
    starts = lambda mask: sum(b and not a for a, b in itertools.pairwise(mask))  # noqa: E731
    return [mask for mask in every if not mask[0] and sum(mask) == taken and starts(mask) == spans]


@pytest.mark.parametrize(("length", "density", "span"), [(3, 0.15, 3.0), (9, 0.15, 3.0), (7, 0.5, 2.0), (9, 0.4, 1.0)])
def test_all_ways_to_take_spans_are_as_likely(length, density, span):
    """Of short texts T5's code takes the end always: its mask ends with a span."""
    denoiser, text = SpanCorruption(density, span), np.arange(length, dtype=np.int32)
    wanted = masks(length, *denoiser.counts(length))
    draws, rng = 300 * len(wanted), np.random.default_rng(0)
    seen = collections.Counter(tuple(~np.isin(text, denoiser(text, SPECIAL, rng)[0])) for _ in range(draws))
    assert seen.keys() == set(wanted)
    statistic = sum((count - 300) ** 2 / 300 for count in seen.values())
    assert scipy.stats.chi2.sf(statistic, max(len(wanted) - 1, 1)) > 1e-3


def reference_spans(length: int, density: float, span: float, rng: np.random.Generator) -> np.ndarray:
    """random_spans_noise_mask of T5, written anew: which tokens are taken. But it may keep some at the end."""
    taken = min(max(int(np.round(length * density)), 1), length - 1)
    spans = max(int(np.round(taken / span)), 1)

    def segments(items: int, parts: int) -> np.ndarray:
        first = np.pad(rng.permutation(np.arange(items - 1) < parts - 1), (1, 0))
        return np.bincount(np.cumsum(first))

    kept = segments(length - taken + 1, spans + 1)
    kept[-1] -= 1
    lengths = np.append(np.stack([kept[:-1], segments(taken, spans)], 1).reshape(-1), kept[-1])
    return np.repeat(np.arange(2 * spans + 1) % 2 == 1, lengths)


def test_spans_are_distributed_as_t5s():
    length, draws = 40, 4000
    text, rng = np.arange(length, dtype=np.int32), np.random.default_rng(0)
    ours = np.zeros((draws, length), bool)
    for draw in range(draws):
        source, _ = SpanCorruption(0.3, 3.0)(text, SPECIAL, rng)
        ours[draw] = ~np.isin(text, source)
    theirs = np.stack([reference_spans(length, 0.3, 3.0, rng) for _ in range(draws)])
    assert (ours.sum(1) == theirs.sum(1)).all()
    assert np.abs(ours.mean(0) - theirs.mean(0)).max() < 5 * np.sqrt(0.25 * 2 / draws)
    for lag in (1, 2, 3):  # lengths of spans show in how neighbours agree
        agree = [(mask[:, lag:] & mask[:, :-lag]).mean() for mask in (ours, theirs)]
        assert abs(agree[0] - agree[1]) < 0.01


@settings(max_examples=60, deadline=None)
@given(texts, seeds, st.booleans())
def test_infilling_leaves_the_rest_in_order(text, seed, permute):
    source, target = TextInfilling(0.3, 3.0, permute)(text, SPECIAL, np.random.default_rng(seed))
    assert target.tolist() == text.tolist() and len(source) <= len(text)
    kept = source[source != SPECIAL["mask"]]
    assert len(kept) == len(text) - int(np.ceil(0.3 * len(text)))
    if not permute:
        rest = iter(text.tolist())
        assert all(token in rest for token in kept.tolist())  # a subsequence


def test_infilling_takes_poisson_spans():
    text, rng = np.arange(200, dtype=np.int32), np.random.default_rng(0)
    sizes: list[int] = []
    firsts = []
    for _ in range(400):
        source, _ = TextInfilling(0.3, 3.0, permute_sentences=False)(text, SPECIAL, rng)
        ends = np.flatnonzero(source == SPECIAL["mask"])
        firsts.append(~np.isin(text, source))
        alone = [e for e in ends if 0 < e < len(source) - 1 and {e - 1, e + 1}.isdisjoint(ends)]
        sizes += [int(source[e + 1] - source[e - 1]) - 1 for e in alone]
    share = np.bincount(sizes, minlength=12)[:12] / len(sizes)
    poisson = np.exp(-3.0) * np.cumprod([1.0, *(3.0 / np.arange(1, 12))])
    assert np.abs(share - poisson).max() < 0.025  # but for the last span of a text, which is cut
    assert np.abs(np.mean(firsts, 0)[9:-9] - 0.3).max() < 5 * np.sqrt(0.21 / 400)  # but for the ends


def test_sentences_are_permuted():
    text = np.array(TOKENIZER.encode("One. Two is long! Three? and an end"), np.int32)
    seen = set()
    for seed in range(200):
        source, _ = TextInfilling(1e-9, 3.0)(text, SPECIAL, np.random.default_rng(seed))
        seen.add(tuple(source[source != SPECIAL["mask"]].tolist()))
    sentences = ["One.", " Two is long!", " Three?", " and an end"]
    orders = {"".join(order) for order in itertools.permutations(sentences)}
    for ids in seen:  # one token is masked
        assert any(TOKENIZER.decode(ids) in {o[:i] + o[i + 1 :] for i in range(len(o))} for o in orders)
    assert len(seen) > 100


@settings(max_examples=40, deadline=None)
@given(texts, seeds)
def test_a_suffix_goes_on_from_its_beginning(text, seed):
    source, target = Suffix()(text, SPECIAL, np.random.default_rng(seed))
    assert np.concatenate([source, target]).tolist() == text.tolist()
    assert len(text) < 2 or (len(source) and len(target))


def test_cuts_are_as_likely_everywhere():
    text, rng = np.arange(11, dtype=np.int32), np.random.default_rng(0)
    cuts = np.bincount([len(Suffix()(text, SPECIAL, rng)[0]) for _ in range(4000)], minlength=11)
    assert cuts[0] == 0 and np.abs(cuts[1:] / 400 - 1).max() < 0.25


def test_a_mixture_uses_all_of_its_denoisers():
    text, found = np.arange(100, dtype=np.int32), []
    for seed in range(700):
        source, target = MixtureOfDenoisers()(text, SPECIAL, np.random.default_rng(seed))
        found.append((len(source), len(target)) if target[0] in IDS else "suffix")
    kinds = {kind: found.count(kind) for kind in found}
    assert len(kinds) == 7 and min(kinds.values()) > 60


def data(denoiser, words, length=40, sources=40, packing=None, **more):
    return Data(
        words(30, 18), length=length, batch=8, packing=packing or One(), split=ByHash(0.3),
        presentation=Denoising(denoiser, sources), **more,
    )  # fmt: skip


@pytest.mark.parametrize("name", DENOISERS)
def test_rows_hold_what_they_promise(name, words):
    bos, eos, pad = (SPECIAL[n] for n in ("bos", "eos", "pad"))
    made = data(DENOISERS[name](), words)
    whole, seen = {d.text() for d in made.documents("train")}, set()
    shown: set[tuple[bytes, bytes]] = set()
    for batch in itertools.islice(made.train(TOKENIZER, seed=2), 12):
        assert not batch["bytes_BT"].any()
        for row in range(8):
            reads, writes = batch["source_segment_BS"][row] == 0, batch["segment_BT"][row] == 0
            source, target = batch["source_BS"][row][reads], batch["targets_BT"][row][writes]
            token = batch["tokens_BT"][row][writes]
            assert (source[0], source[-1], target[-1], token[0]) == (bos, eos, eos, bos)
            np.testing.assert_array_equal(token[1:], target[:-1])
            np.testing.assert_array_equal(batch["weight_BT"][row], writes)
            np.testing.assert_array_equal(batch["position_BT"][row][writes], np.arange(writes.sum()))
            np.testing.assert_array_equal(batch["source_position_BS"][row][reads], np.arange(reads.sum()))
            assert (batch["source_BS"][row][~reads] == pad).all() and (batch["tokens_BT"][row][~writes] == pad).all()
            source, target = source[1:-1], target[:-1]
            if name == "TextInfilling":
                seen.add(TOKENIZER.decode(target))
            elif len(target) and target[0] in IDS:
                seen.add(TOKENIZER.decode(restored(source, target)))
            else:
                seen.add(TOKENIZER.decode(np.concatenate([source, target])))
            shown.add((source.tobytes(), target.tobytes()))
    assert seen == whole and len(shown) > 1.5 * len(whole)  # epochs differ
    one, other = (list(made.evaluation(TOKENIZER)) for _ in range(2))
    for first, second in zip(one, other, strict=True):
        for key in first:
            np.testing.assert_array_equal(first[key], second[key])
    blank = made.blank(8)
    assert {n: (a.shape, a.dtype) for n, a in blank.items()} == {n: (a.shape, a.dtype) for n, a in one[0].items()}


def test_windows_over_all_documents(words):
    """As T5: rows are full, documents or not; the special tokens between them are text like any other."""
    bos, eos = SPECIAL["bos"], SPECIAL["eos"]
    made = data(SpanCorruption(), words, packing=Windows(30), length=16, sources=40)
    size = made.presentation.row(16)

    def stream(split):
        return [i for d in made.documents(split) for i in (bos, *TOKENIZER.encode(d.text()), eos)]

    def rows(batches):
        for batch in batches:
            for row in np.flatnonzero((batch["segment_BT"] == 0).any(1)):
                source = batch["source_BS"][row][batch["source_segment_BS"][row] == 0]
                target = batch["targets_BT"][row][batch["segment_BT"][row] == 0]
                text = restored(source, target[:-1])
                framed = (text[0] == bos) + (text[-1] == eos)
                assert len(target) == sum(SpanCorruption().counts(len(text) - framed)) + 1 and target[-1] == eos
                yield text

    evaluated, held_out = list(rows(made.evaluation(TOKENIZER))), stream("validation")
    assert evaluated == [held_out[i : i + size] for i in range(0, len(held_out), size)] and len(evaluated) > 3
    learnt = stream("train")
    epoch = [learnt[i : i + size] for i in range(0, len(learnt) - size + 30, 30)]
    shown = list(itertools.islice(rows(made.train(TOKENIZER, seed=0)), len(epoch)))
    assert sorted(shown) == sorted(epoch) and shown != epoch
    assert sum(len(text) == size and eos in text[:-1] for text in shown) == len(epoch) - 1 and len(epoch) > 5


def test_the_room_is_enough_and_no_more():
    for denoiser in (SpanCorruption(), SpanCorruption(0.5, 3.0), TextInfilling(), Suffix(), MixtureOfDenoisers()):
        for sources, length in ((30, 30), (64, 20), (12, 60)):
            row = Denoising(denoiser, sources).row(length)
            rooms = [denoiser.room(n) for n in range(row + 1)]
            assert max(s for s, _ in rooms) <= sources and max(t for _, t in rooms) < length
            source, target = denoiser.room(row + 1)
            assert source + 2 > sources or target + 1 > length
    assert Denoising(TextInfilling(), 100).row(41) == 40 and Denoising(SpanCorruption(), 114).row(32) >= 120


def test_what_cannot_be_presented_is_refused(words):
    for denoiser, changes, message in [
        (
            Suffix(),
            dict(packing=BestFit()),
            r"which data.packing=BestFit\(.*use One\('split'\) or Windows",
        ),
        (
            Suffix(),
            dict(length=9),
            r"\(the longest has 23 tokens, a row holds 9\): raise data.presentation.sources and",
        ),
        (TextInfilling(), dict(length=1), "sources=40 and data.length=1 have no room for a text"),
    ]:
        with pytest.raises(InputError, match=message):
            data(denoiser, words, **changes).train(TOKENIZER, seed=0)
    with pytest.raises(InputError, match=r"needs 2 sentinels for texts of \d+ tokens, and the tokenizer has 1: set"):
        data(SpanCorruption(), words, length=20).train(Bytes(sentinels=1).train([]), seed=0)
    with pytest.raises(InputError, match="Denoising knows no answers"):
        data(Suffix(), words, rendering=Rendering(learn="answers")).train(TOKENIZER, seed=0)


@pytest.mark.parametrize("name", [name for name in RECIPES if name != "Gpt2"])
def test_sentinels_are_special_tokens(name):
    texts = ["ab abc abcd " * 40, "<extra_id_0> xyz"]
    recipe: Any = RECIPES[name]
    plain, more = (recipe(sentinels=n).train(texts) for n in (0, 3))
    assert "<extra_id_0>" not in plain.special and more.special["<extra_id_2>"] in more.beside
    assert not set(more.encode("<extra_id_1> and <extra_id_0>")) & more.beside
    assert more.vocabulary - plain.vocabulary in (0, 3)
    first, mask = more.special["<extra_id_0>"], more.special["mask"]  # a model may write the one, and never the other
    assert first not in more.unsaid and mask in more.unsaid and more.bytes_V[first] == 0
    assert more.decode([first, mask, *more.encode("ab")]).replace(" ", "") == "<extra_id_0>ab"
