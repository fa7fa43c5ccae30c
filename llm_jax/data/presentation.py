"""What a model is shown of a row of documents: the row as it is, source and target apart, a text with its class."""

from __future__ import annotations

import dataclasses
import unicodedata
from collections.abc import Sequence

import numpy as np

from llm_jax.core.parts import Part, Size, show
from llm_jax.core.tables import InputError
from llm_jax.data.cache import Corpus
from llm_jax.data.documents import Comparison, Document, Example, Preference, Rendering
from llm_jax.data.packing import One, Packing, Plan, WindowPlan, ramps
from llm_jax.text.special import SPECIAL
from llm_jax.text.tokenizer import Tokenizer

Batch = dict[str, np.ndarray]


class Vocabulary(dict[str, int]):
    """The ids of a tokenizer's special tokens by name, `pad` always among them; and what its other tokens are.

    Attributes:
      ordinary_N: int32, the tokens that texts are made of: neither special nor marks.
      opens_V, closes_V: bool, whether a token begins, and ends, with a letter or a digit: where one that ends so is
        followed by one that begins so, both are of one word.
      stops_V: bool, whether a sentence ends with the token.
    """

    def __init__(self, tokenizer: Tokenizer | None = None):
        """None: nothing is known but that there are special tokens; enough for a row of padding."""
        super().__init__(dict.fromkeys(SPECIAL, 0))
        spelt: list[bytes] = []
        if tokenizer is not None:
            self.clear()
            self.update(tokenizer.special, pad=tokenizer.padding)
            own = {*self.values(), *tokenizer.marks.values()}
            spelt = [b"" if i in own else tokenizer.bytes_of(i) for i in range(tokenizer.vocabulary)]
        self.ordinary_N = np.flatnonzero(np.array([text != b"" for text in spelt], bool)).astype(np.int32)
        shown = [text.decode(errors="replace") for text in spelt]
        self.opens_V = np.array([_in_word(text[:1]) for text in shown], bool)
        self.closes_V = np.array([_in_word(text[-1:]) for text in shown], bool)
        self.stops_V = np.array([text.endswith((b".", b"!", b"?")) for text in spelt], bool)


def _in_word(character: str) -> bool:
    """Whether it is a letter, a mark on one, a digit, or a part of a character of several tokens."""
    return character == "\N{REPLACEMENT CHARACTER}" or unicodedata.category(character or " ")[0] in "LMN"


def blank(rows: int, length: int, pad: int = 0) -> Batch:
    """A batch of nothing but padding.

    `number_B` (float32) is for what is known of a row's first document besides its text; NaN: nothing.
    """
    shape = rows, length
    return dict(
        number_B=np.full(rows, np.nan, np.float32),
        tokens_BT=np.full(shape, pad, np.int32),
        targets_BT=np.full(shape, pad, np.int32),
        weight_BT=np.zeros(shape, np.float32),
        segment_BT=np.full(shape, -1, np.int32),
        position_BT=np.zeros(shape, np.int32),
        bytes_BT=np.zeros(shape, np.int32),
    )


class Presentation(Part):
    """Makes the batch that a model gets of filled rows; by default the rows are that batch, without `number_B`."""

    def __call__(self, batch: Batch, length: int, special: Vocabulary, seed_B: Sequence[tuple[int, ...]]) -> Batch:
        """A pure function of the rows. What it draws for one, it draws from that row's seed.

        Args:
          batch: rows of `row(length)` tokens, as `blank` has them.
          length: `data.length`.
          special: the tokenizer's special tokens, and what it tells of the others.
          seed_B: for each row, what `np.random.default_rng` takes: the seed of the data and the row's number.
        """
        return {name: array for name, array in batch.items() if name != "number_B"}

    def row(self, length: int) -> int:
        """How many tokens the rows are filled with."""
        return length

    def source(self) -> int:
        """How many tokens a source may have, where there are sources; else 0."""
        return 0

    def plan(self, packing: Packing, corpus: Corpus, length: int, rng: np.random.Generator | None) -> Plan | WindowPlan:
        """The rows of an epoch."""
        return packing.plan(corpus.offsets, length, rng)

    def check(self, rendering: Rendering, packing: Packing) -> None:
        """Nothing, if documents so rendered and packed can be presented.

        Raises:
          InputError: they cannot; the message names the setting to change.
        """

    def check_vocabulary(self, special: Vocabulary, length: int) -> None:
        """Nothing, if texts of this tokenizer can be presented in rows of `data.length`.

        Raises:
          InputError: it lacks a token.
        """

    def check_documents(self, documents: Sequence[Document]) -> None:
        """Nothing, if these can be presented; by default all but pairs to compare can.

        Raises:
          InputError: one cannot.
        """
        if any(isinstance(document, Preference | Comparison) for document in documents):
            raise InputError(
                f"{type(self).__name__} would train on what was rejected too: pairs to compare need "
                "data.presentation=Pairs() and data.packing=One()"
            )


@dataclasses.dataclass(frozen=True)
class AsIs(Presentation):
    """The row itself: each token is to predict the one after it."""


@dataclasses.dataclass(frozen=True)
class SourceAndTarget(Presentation):
    """Examples as pairs of a source to read and a target to write, of at most `sources` and `data.length` tokens.

    The batch has `source_BS`, `source_segment_BS` and `source_position_BS` beside the usual arrays, which hold the
    targets: each begins with `bos` (in whose place a model may read a `start` of its own) and is to end with `eos`. A
    pair has one segment number on both sides. With `data.packing=BestFit("refuse")` several share a row, with `One()`
    none do; where `too_long` is "truncate", a source keeps its last tokens and a target its first.
    """

    sources: Size = 64

    def __call__(self, batch, length, special, seed_B):
        segment_BT, learnt_BT = batch["segment_BT"], batch["weight_BT"] > 0
        real_BT = segment_BT >= 0
        opens_BT = learnt_BT & ~np.pad(learnt_BT, ((0, 0), (1, 0)))[:, :-1]  # where the target of a pair begins
        opens_BT |= learnt_BT & (batch["position_BT"] == 0)
        reads_BT = real_BT & (~learnt_BT | opens_BT)  # the last token of a source predicts the first of its target
        given = dict(tokens=batch["tokens_BT"], segment=segment_BT)
        source = _gathered(given, reads_BT, self.sources, special["pad"])
        shifted_BT = np.where(opens_BT, special.get("bos", special["pad"]), batch["tokens_BT"])
        given = dict(
            tokens=shifted_BT, targets=batch["targets_BT"], weight=batch["weight_BT"], segment=segment_BT,
            bytes=batch["bytes_BT"],
        )  # fmt: skip
        target = _gathered(given, learnt_BT, length, special["pad"])
        return dict(
            source_BS=source["tokens"],
            source_segment_BS=source["segment"],
            source_position_BS=_positions(source["segment"]),
            tokens_BT=target["tokens"],
            targets_BT=target["targets"],
            weight_BT=target["weight"],
            segment_BT=target["segment"],
            position_BT=_positions(target["segment"]),
            bytes_BT=target["bytes"],
        )

    def row(self, length):
        return self.sources + length  # one more than a pair needs: the tokens of both sides, less one, have targets

    def source(self):
        return self.sources

    def plan(self, packing, corpus, length, rng):
        """Documents are packed by the side that fills more of its room, so that both sides of a row fit."""
        offsets = corpus.offsets
        begin, end, learnt = offsets[:-1], offsets[1:], np.flatnonzero(corpus.learnt)
        first = np.searchsorted(learnt, begin)
        has_target = first < np.searchsorted(learnt, end)
        cut = np.where(has_target, np.append(learnt, 0)[first], begin)  # where the target begins
        source, target = cut - begin, np.where(has_target, end - cut, 0)
        if getattr(packing, "too_long", None) == "refuse":
            self._refuse_long(source, target, length)
        fill = np.maximum(-(-source * length // self.sources), target) * has_target
        plan = packing.plan(np.append(0, np.cumsum(fill + 1)), length, rng)
        assert isinstance(plan, Plan), "a packing with too_long lists its pieces"
        document = np.searchsorted(np.cumsum(fill + 1), plan.start, side="right")
        start = np.maximum(begin, cut - self.sources)[document]
        stop = np.minimum(end, cut + length)[document]
        return Plan(start, stop - 1 - start, plan.first)

    def _refuse_long(self, source: np.ndarray, target: np.ndarray, length: int) -> None:
        long = (source > self.sources) | (target > length)
        if long.any():
            raise InputError(
                f"{long.sum()} of {len(long)} pairs are too long (the longest source has {source.max()} tokens, the "
                f"longest target {target.max()}): raise data.presentation.sources={self.sources} and "
                f"data.length={length}, or set data.packing.too_long to 'truncate'"
            )

    def check(self, rendering, packing):
        if rendering.learn != "answers" or not (rendering.eos and (rendering.bos or rendering.prompt_eos)):
            raise InputError(
                "SourceAndTarget tells sources from targets by what is learnt: set data.rendering=Rendering("
                "learn='answers'), with eos, and with bos or prompt_eos"
            )
        if getattr(packing, "too_long", None) not in ("refuse", "truncate"):
            raise InputError(
                f"SourceAndTarget keeps pairs whole, which data.packing={show(packing, whole=True)} does not: use "
                "BestFit(too_long='refuse') or One()"
            )

    def check_documents(self, documents):
        _check_examples(documents, "SourceAndTarget")


def whole(
    packing: Packing, offsets: np.ndarray, length: int, rng: np.random.Generator | None, settings: str = "data.length"
) -> Plan | WindowPlan:
    """Rows of `length` tokens, in place of pairs of a token and its target: the last token of a document has a place.

    `settings` are those that say how long a row is.

    Raises:
      InputError: a document is longer than a row, and `packing` refuses that.
    """
    longest = int(np.diff(offsets).max(initial=0))
    if getattr(packing, "too_long", None) == "refuse" and longest > length:
        raise InputError(
            f"{np.sum(np.diff(offsets) > length)} of {len(offsets) - 1} documents are longer than a row (the longest "
            f"has {longest} tokens, a row holds {length}): raise {settings}, or set data.packing.too_long to "
            "'truncate' or 'split'"
        )
    longer = offsets + np.arange(len(offsets))  # as if each had one token more, which would be the last one's target
    plan = packing.plan(longer, length, rng)
    if isinstance(plan, WindowPlan):
        return packing.plan(offsets, length, rng)  # windows know no documents
    document = np.searchsorted(longer, plan.start, side="right") - 1
    return Plan(plan.start - document, plan.size, plan.first)


def check_learns_all(rendering: Rendering, name: str) -> None:
    """Nothing, if all of a text is to be learnt.

    Raises:
      InputError: only answers are.
    """
    if rendering.learn != "everything":
        raise InputError(f"{name} knows no answers: set data.rendering.learn='everything'")


@dataclasses.dataclass(frozen=True)
class WithLabel(Presentation):
    """A document a row, whole, and the number of its class: `tokens_BT`, `segment_BT`, `position_BT` and `label_B`.

    `label_B` is int32, -1 in rows of padding. `data.packing` is One(): with "truncate" a document keeps its beginning.
    """

    def __call__(self, batch, length, special, seed_B):
        number_B = batch["number_B"]
        given = {name: batch[name] for name in ("tokens_BT", "segment_BT", "position_BT")}
        return given | dict(label_B=np.where(np.isnan(number_B), -1, np.nan_to_num(number_B)).astype(np.int32))

    def plan(self, packing, corpus, length, rng):
        return whole(packing, corpus.offsets, length, rng)

    def check(self, rendering, packing):
        if not isinstance(packing, One) or packing.too_long == "split":
            raise InputError(
                f"WithLabel shows a document a row: set data.packing=One('truncate'), not {show(packing, whole=True)}"
            )

    def check_documents(self, documents):
        super().check_documents(documents)  # the number of a pair is its margin
        for document in documents:
            if not (document.number >= 0 and document.number.is_integer()):
                raise InputError(
                    f"WithLabel needs documents with a class, such as Labelled, not a {type(document).__name__} with "
                    f"the number {document.number:g}"
                )


@dataclasses.dataclass(frozen=True)
class TwoTexts(Presentation):
    """Examples as two texts of one meaning, of at most `data.length` tokens each: for an encoder to compare.

    The prompt is in `source_BS`, `source_segment_BS` and `source_position_BS`, the answer in `tokens_BT`, `segment_BT`
    and `position_BT`, each between `bos` and `eos`. `data.packing` is One(): with "truncate" a text keeps its
    beginning.
    """

    def __call__(self, batch, length, special, seed_B):
        made = {}
        for number, names in enumerate((("source", "BS", "source_"), ("tokens", "BT", ""))):
            chosen_BT = batch["segment_BT"] == number
            given = _gathered(dict(tokens=batch["tokens_BT"]), chosen_BT, length, special["pad"])["tokens"]
            size_B = chosen_BT.sum(1)
            token_BT = np.full_like(given, special["pad"])
            for row in np.flatnonzero(size_B).tolist():
                ids = given[row, : size_B[row]].tolist()
                ids = ([special["bos"]] * (ids[0] != special["bos"]) + ids)[:length]
                ids = ids if ids[-1] == special["eos"] else [*ids[: length - 1], special["eos"]]
                token_BT[row, : len(ids)], size_B[row] = ids, len(ids)
            segment_BT = np.where(np.arange(length)[None] < size_B[:, None], 0, -1).astype(np.int32)
            name, axes, before = names
            made[f"{name}_{axes}"] = token_BT
            made[f"{before}segment_{axes}"], made[f"{before}position_{axes}"] = segment_BT, _positions(segment_BT)
        return made

    def row(self, length):
        return 2 * length

    def plan(self, packing, corpus, length, rng):
        """Two pieces a row: the tokens that are not learnt, and those that are."""
        begin, end, cut = _cuts(corpus)
        order = np.arange(len(begin)) if rng is None else rng.permutation(len(begin))
        size = np.stack([cut - begin, end - cut], 1)[order]
        room = np.array([length - 1, length - 1])  # `bos` or `eos` may have to be added
        if getattr(packing, "too_long", None) == "refuse" and (size > room).any():
            raise InputError(
                f"{(size > room).any(1).sum()} of {len(size)} examples have a text of more than {length - 1} tokens "
                f"(the longest has {size.max()}): raise data.length={length}, or set data.packing=One('truncate')"
            )
        start = np.stack([begin, cut], 1)[order]
        return Plan(start.reshape(-1), np.minimum(size, room).reshape(-1), np.arange(0, 2 * len(size) + 1, 2))

    def check(self, rendering, packing):
        if rendering.learn != "answers" or not (rendering.bos and rendering.eos):
            raise InputError(
                "TwoTexts tells the texts of an example apart by what is learnt: set data.rendering=Rendering("
                "learn='answers'), with bos and eos"
            )
        if not isinstance(packing, One) or packing.too_long == "split":
            raise InputError(
                f"TwoTexts shows an example a row: set data.packing=One(), not {show(packing, whole=True)}"
            )

    def check_documents(self, documents):
        _check_examples(documents, "TwoTexts")


def _cuts(corpus: Corpus) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Where each document begins and ends, and where what is learnt of it begins (its end, where nothing is)."""
    begin, end, learnt = corpus.offsets[:-1], corpus.offsets[1:], np.flatnonzero(corpus.learnt)
    first = np.searchsorted(learnt, begin)
    return begin, end, np.where(first < np.searchsorted(learnt, end), np.append(learnt, 0)[first], end)


def _check_examples(documents: Sequence[Document], name: str) -> None:
    for document in documents:
        if not isinstance(document, Example):
            raise InputError(f"{name} needs examples with a prompt and an answer, not a {type(document).__name__}")


def _gathered(arrays: dict[str, np.ndarray], chosen_BT: np.ndarray, length: int, pad: int) -> dict[str, np.ndarray]:
    """Of each row, the chosen places moved together to the left of rows of `length`."""
    row, _ = np.nonzero(chosen_BT)
    place = ramps(chosen_BT.sum(1))
    empty = dict(tokens=pad, targets=pad, segment=-1)
    moved = {}
    for name, array in arrays.items():
        moved[name] = np.full((len(chosen_BT), length), empty.get(name, 0), array.dtype)
        moved[name][row, place] = array[chosen_BT]
    return moved


def _positions(segment_BT: np.ndarray) -> np.ndarray:
    """Each token's position within its segment; 0 in padding."""
    place_T = np.arange(segment_BT.shape[1], dtype=np.int32)[None]
    begins_BT = np.diff(segment_BT, axis=1, prepend=-2) != 0
    position_BT = place_T - np.maximum.accumulate(np.where(begins_BT, place_T, 0), axis=1)
    return np.where(segment_BT >= 0, position_BT, 0).astype(np.int32)


PRESENTATIONS = dict(AsIs=AsIs, SourceAndTarget=SourceAndTarget, TwoTexts=TwoTexts, WithLabel=WithLabel)
