"""Sources and targets apart: what each side of a row holds, that none is lost, and that resuming is exact."""

import dataclasses
import itertools
from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
import pytest

from llm_jax.core.errors import InputError
from llm_jax.data.documents import Document, Example, Labelled, Preference, Rendering, Text
from llm_jax.data.examples import SourceAndTarget, TwoTexts
from llm_jax.data.files import JsonLines
from llm_jax.data.packing import BestFit, ConcatThenSplit, One, Packing, Windows
from llm_jax.data.pipeline import Data
from llm_jax.data.presentation import AsIs, WithLabel
from llm_jax.data.sources import Mixture, Source
from llm_jax.data.split import ByHash, LastDocuments


@dataclasses.dataclass(frozen=True)
class Pairs(Source):
    """Sources of 1 to 9 letters, targets of 1 to 12; every `empty`th has none (0: all have)."""

    count: int = 90
    seed: int = 0
    empty: int = 0

    def documents(self) -> Iterator[Document]:
        rng = np.random.default_rng(self.seed)
        for number in range(self.count):
            source, target = (rng.integers(97, 123, rng.integers(1, most)).astype(np.uint8) for most in (10, 13))
            blank = self.empty and number % self.empty == 0
            yield Example(source.tobytes().decode(), "" if blank else target.tobytes().decode())


def data(packing: Packing = BestFit("refuse"), **settings) -> Data:
    given = Data(
        Pairs(), length=32, batch=8, packing=packing, rendering=Rendering(learn="answers"),
        presentation=SourceAndTarget(24), split=ByHash(0.2),
    )  # fmt: skip
    return dataclasses.replace(given, **settings)


def examples(made: Data, split: Literal["train", "validation"]) -> list[tuple[str, str]]:
    return [(d.prompt, d.answer) for d in made.documents(split) if isinstance(d, Example)]


def pairs(batch, tokenizer):
    """What a model is shown, pair by pair; every array is looked at."""
    bos, eos, pad = (tokenizer.special[name] for name in ("bos", "eos", "pad"))
    names = ("source_BS", "source_segment_BS", "source_position_BS", "tokens_BT", "targets_BT", "weight_BT")
    names += ("segment_BT", "position_BT", "bytes_BT")
    assert set(batch) == set(names)
    for source, reads, at, tokens, targets, weight, writes, to, size in zip(*map(batch.get, names), strict=True):
        assert np.all(source[reads < 0] == pad) and np.all(tokens[writes < 0] == pad)
        np.testing.assert_array_equal(weight, writes >= 0)
        np.testing.assert_array_equal(size, np.where(writes >= 0, tokenizer.bytes_V[targets], 0))
        assert set(reads[reads >= 0]) == set(writes[writes >= 0])
        for segment in range(writes.max() + 1):
            here, there = reads == segment, writes == segment
            for where, position in ((here, at), (there, to)):
                assert np.all(np.diff(np.flatnonzero(where)) == 1)
                np.testing.assert_array_equal(position[where], np.arange(where.sum()))
            assert source[here][0] == bos == tokens[there][0] and targets[there][-1] == eos
            np.testing.assert_array_equal(tokens[there][1:], targets[there][:-1])
            yield tokenizer.decode(source[here]), tokenizer.decode(targets[there])


@pytest.mark.parametrize("empty", [0, 4])
@pytest.mark.parametrize("packing", [BestFit("refuse"), One(), BestFit("truncate")], ids=str)
def test_every_pair_is_shown_once_and_whole(packing, empty, tokenizer):
    """One with an empty target too: its end is to be written."""
    made = data(packing, source=Pairs(empty=empty))
    assert any(not answer for _, answer in examples(made, "validation")) == (empty > 0)
    want = sorted(examples(made, "validation"))
    evaluation = made.evaluation(tokenizer)
    assert sorted(p for batch in evaluation for p in pairs(batch, tokenizer)) == want
    train = sorted(examples(made, "train"))
    stream, rows = made.train(tokenizer, seed=0), 0
    seen: list[tuple[str, str]] = []
    while len(seen) < len(train):
        batch = next(stream)
        for row in range(8):  # an epoch may end within a batch
            if len(seen) < len(train):
                seen += pairs({name: array[row : row + 1] for name, array in batch.items()}, tokenizer)
                rows += 1
    assert sorted(seen) == train
    assert rows == len(train) if packing == One() else rows < len(train) / 1.5


def test_a_restored_iterator_goes_on_exactly_with_workers_and_a_mixture(tokenizer):
    mixture = Mixture((Pairs(40, 1), Pairs(70, 2)), (0.3, 0.7))
    want = list(itertools.islice(data(source=mixture).train(tokenizer, seed=3), 12))
    first = data(source=mixture).train(tokenizer, seed=3)
    for _ in range(5):
        next(first)
    again = data(source=mixture, workers=1).train(tokenizer, seed=3)
    again.restore(first.save())
    try:
        for batch, found in zip(want[5:], again, strict=False):
            for name in batch:
                np.testing.assert_array_equal(batch[name], found[name])
    finally:
        again.close()
    with pytest.raises(InputError, match="another stream"):
        data(source=mixture, presentation=SourceAndTarget(25)).train(tokenizer, seed=3).restore(first.save())


def test_blank_is_a_batch_of_padding(tokenizer):
    blank, batch = data().blank(8), next(data().train(tokenizer, seed=0))
    assert {n: (a.shape, a.dtype) for n, a in blank.items()} == {n: (a.shape, a.dtype) for n, a in batch.items()}
    assert not blank["weight_BT"].any() and np.all(blank["source_segment_BS"] == -1)


def test_pairs_that_are_too_long(tokenizer):
    with pytest.raises(InputError, match=r"\d+ of \d+ pairs are too long .* data.presentation.sources=5"):
        next(data(presentation=SourceAndTarget(5)).train(tokenizer, seed=0))
    with pytest.raises(InputError, match=r"and data.length=6, or set data.packing.too_long"):
        next(data(One(), length=6).train(tokenizer, seed=0))
    cut = data(One("truncate"), length=6, presentation=SourceAndTarget(5))
    documents = {(prompt[:4], answer[:6]) for prompt, answer in examples(cut, "validation")}  # and `bos`
    seen = set()
    for batch in cut.evaluation(tokenizer):
        for source, target in zip(batch["source_BS"], batch["targets_BT"], strict=True):
            seen.add((tokenizer.decode(source), tokenizer.decode(target)))
    assert seen - {("", "")} == documents


def test_a_source_that_is_cut_keeps_the_tokens_around_it(tokenizer):
    """As transformers cut: the end of the text goes, and `eos` stays. A report asks what the rows show."""
    bos, eos = tokenizer.special["bos"], tokenizer.special["eos"]
    for rendering, room in ((Rendering(learn="answers"), 4), (Rendering(learn="answers", prompt_eos=True), 3)):
        cut = data(One("truncate"), length=6, presentation=SourceAndTarget(5), rendering=rendering)
        wanted = {prompt[:room] for prompt, _ in examples(cut, "validation")}
        assert any(len(prompt) > room for prompt, _ in examples(cut, "validation"))
        sources = [row[row != tokenizer.padding].tolist() for b in cut.evaluation(tokenizer) for row in b["source_BS"]]
        sources = [ids for ids in sources if ids]
        assert {tokenizer.decode(ids) for ids in sources} == wanted and all(ids[0] == bos for ids in sources)
        if rendering.prompt_eos:
            assert all(ids[-1] == eos for ids in sources)
        documents: Any = cut.documents("validation")
        shown: Any = [cut.shortened(d, tokenizer) for d in documents]
        assert {d.prompt for d in shown} == wanted
        whole = data(One(), presentation=SourceAndTarget(5), rendering=rendering)
        assert all(whole.shortened(d, tokenizer) is d for d in documents)
        with pytest.raises(InputError, match=r"sources=\d has no room for a token of a source beside the"):
            data(One("truncate"), presentation=SourceAndTarget(5 - room), rendering=rendering).evaluation(tokenizer)


def test_examples_that_lose_their_answers_are_counted(tokenizer, caplog):
    """Where rows keep the beginning, a long prompt leaves no room for the answer: such a document has no row."""
    made = data(One("truncate"), length=8, presentation=AsIs())
    sizes = [len(prompt) for prompt, _ in examples(made, "train")]
    lost = sum(size >= 8 for size in sizes)  # `bos` and the prompt fill the row
    assert 0 < lost < len(sizes)
    stream = made.train(tokenizer, seed=0)
    assert [m for m in caplog.messages if "lose" in m] == [
        f"{lost} of {len(sizes)} documents lose all that is learnt of them where they are cut, and are left out: raise "
        "data.length=8"
    ]
    assert stream._batches.filler.components[0].count == len(sizes) - lost  # pyright: ignore[reportPrivateUsage]


def test_what_cannot_be_presented_is_refused(tokenizer):
    @dataclasses.dataclass(frozen=True)
    class Plain(Source):
        def documents(self):
            yield Text("a text")

    for changes, message in [
        (dict(rendering=Rendering()), r"set data.rendering=Rendering\(learn='answers'\)"),
        (dict(rendering=Rendering(learn="answers", bos=False)), "with eos, and with bos or prompt_eos"),
        (dict(packing=ConcatThenSplit()), r"keeps pairs whole, which data.packing=ConcatThenSplit\(\) does not"),
        (dict(packing=Windows()), "keeps pairs whole"),
        (dict(packing=BestFit("split")), "keeps pairs whole"),
        (dict(source=Plain(), split=ByHash(0.0)), "needs examples with a prompt and an answer, not a Text"),
    ]:
        with pytest.raises(InputError, match=message):
            data(**changes).train(tokenizer, seed=0)
    assert AsIs().source() == 0 and SourceAndTarget(9).source() == 9


@dataclasses.dataclass(frozen=True)
class Sorted(Source):
    """Texts of 3 to 22 letters, and of which class each is."""

    more: tuple[Document, ...] = ()

    def documents(self) -> Iterator[Document]:
        rng = np.random.default_rng(0)
        for i in range(50):
            text = f"{i:02d}" + rng.integers(97, 123, rng.integers(1, 20)).astype(np.uint8).tobytes().decode()
            yield Labelled(text, i % 7)
        yield from self.more


def labelled(**settings) -> Data:
    given = Data(
        Sorted(), length=16, batch=8, packing=One("truncate"), presentation=WithLabel(), split=ByHash(0.2)
    )  # fmt: skip
    return dataclasses.replace(given, **settings)


def test_each_document_has_its_class(tokenizer):
    made = labelled()
    bos, eos = tokenizer.special["bos"], tokenizer.special["eos"]
    wanted = {(bos, *tokenizer.encode(d.text())[:14], eos): d.number for d in made.documents("train")}
    seen = {}
    for batch in itertools.islice(made.train(tokenizer, seed=0), 12):
        assert batch.keys() == {"tokens_BT", "segment_BT", "position_BT", "types_BT", "label_B"}
        assert not batch["types_BT"].any()
        for tokens, segment, label in zip(*(batch[n] for n in ("tokens_BT", "segment_BT", "label_B")), strict=True):
            seen[tuple(tokens[segment == 0].tolist())] = float(label)
    assert seen == wanted
    *_, last = made.evaluation(tokenizer)
    padding = (last["segment_BT"] < 0).all(1)
    assert padding.any() and (last["label_B"][padding] == -1).all() and (last["label_B"][~padding] >= 0).all()
    blank = made.blank(8)
    assert {n: (a.shape, a.dtype) for n, a in blank.items()} == {n: (a.shape, a.dtype) for n, a in last.items()}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(source=Sorted((Text("x"),)), split=ByHash(0.0)), "documents with a class, such as Labelled, not a Text"),
        (dict(source=Sorted((Labelled("x", -1),)), split=ByHash(0.0)), "not a Labelled with the number -1"),
        (dict(source=Sorted((Preference((), "a", "b", 1.0),)), split=ByHash(0.0)), "train on what was rejected too"),
        (dict(packing=One("split")), r"a document a row: set data.packing=One\('truncate'\)"),
        (dict(packing=BestFit()), "a document a row"),
    ],
)
def test_what_has_no_class_is_refused(changes, message, tokenizer):
    with pytest.raises(InputError, match=message):
        labelled(**changes).train(tokenizer, seed=0)


def test_a_blank_side_of_two_texts_is_the_empty_text(tokenizer, tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"prompt": "ab", "answer": ""}\n{"prompt": "", "answer": "c"}\n{"prompt": "d", "answer": "e"}\n')
    made = data(One(), source=JsonLines(str(path)), presentation=TwoTexts(), split=LastDocuments(0), length=8, batch=3)
    (batch,) = made.evaluation(tokenizer, split="train")
    bos, eos = tokenizer.special["bos"], tokenizer.special["eos"]
    sides = [(batch["source_BS"], batch["source_segment_BS"]), (batch["tokens_BT"], batch["segment_BT"])]
    shown = [[row[real >= 0].tolist() for row, real in zip(*side, strict=True)] for side in sides]
    assert shown == [[[bos, *text, eos] for text in side] for side in ((b"ab", b"", b"d"), (b"", b"c", b"e"))]
