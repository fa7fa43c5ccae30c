"""What a model is shown of a row of documents: the row as it is, or a text with its class or number."""

from __future__ import annotations

import dataclasses
import unicodedata
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import numpy as np
from absl import logging

from llm_jax.core.arrays import HostBatch
from llm_jax.core.errors import InputError
from llm_jax.core.parts import Part, Size, show
from llm_jax.data.cache import Corpus
from llm_jax.data.documents import Comparison, Document, Preference, Rendering, Text, TextPair
from llm_jax.data.packing import One, Packing, Plan, WindowPlan
from llm_jax.text.cut import beginning
from llm_jax.text.special import SPECIAL, frame
from llm_jax.text.tokenizer import Tokenizer

MOST_CLASSES = 2**24  # whose numbers float32 holds exactly


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


def blank(rows: int, length: int, pad: int = 0) -> HostBatch:
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
    """Makes the batch that a model gets of filled rows; by default the rows are that batch, without `number_B`.

    Attributes:
      labelled: whether it reads the classes of documents, so that classes by name need numbers.
      pairs: whether it tells two texts of a document apart.
    """

    labelled: ClassVar[bool] = False
    pairs: ClassVar[bool] = False

    def __call__(
        self, batch: HostBatch, length: int, special: Vocabulary, seed_B: Sequence[tuple[int, ...]]
    ) -> HostBatch:
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
        return packing.plan(corpus.offsets, length, rng, None if corpus.whole else corpus.learnt)

    def shortened(self, document: Document, tokenizer: Tokenizer, rendering: Rendering, length: int) -> Document:
        """The document as rows show it where `data.packing` cuts what is too long.

        By default it is what it was, since rows keep its beginning. A collator whose rows would lose another part (the
        token that ends a source, who speaks) cuts the texts of the document instead.

        Raises:
          InputError: there is no room for the tokens around its texts.
        """
        return document

    def fitted(
        self, documents: Sequence[Document], corpus: Corpus, tokenizer: Tokenizer, rendering: Rendering, length: int,
        cuts: bool,
    ) -> Sequence[Document]:  # fmt: skip
        """The documents of `corpus` that are to be shown; by default the same list. Another one is tokenised again.

        Args:
          cuts: whether `data.packing` cuts what is too long: then each as it fits.
        """
        return documents

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

    def check_training(self, documents: Sequence[Document]) -> None:
        """Checks that there is something to learn from these training documents.

        Raises:
          InputError: there is not.
        """

    def check_documents(self, documents: Sequence[Document]) -> None:
        """Nothing, if these can be presented; by default all but pairs to compare can.

        Raises:
          InputError: one cannot.
        """
        if not self.pairs and any(isinstance(document, TextPair) for document in documents):
            raise InputError(
                f"{type(self).__name__} would take the first of two texts alone: pairs of texts need "
                "data.presentation=WithLabel() or WithNumber(), or a source=PlainTexts(...)"
            )
        if any(isinstance(document, Preference | Comparison) for document in documents):
            raise InputError(
                f"{type(self).__name__} would train on what was rejected too: pairs to compare need "
                "data.presentation=Pairs() and data.packing=One()"
            )


@dataclasses.dataclass(frozen=True)
class AsIs(Presentation):
    """The row itself: each token is to predict the one after it.

    Where `data.packing` cuts what is too long, a document keeps its beginning. A warning counts the documents that lose
    all that is learnt of them: they have no row.
    """

    def fitted(self, documents, corpus, tokenizer, rendering, length, cuts):
        if cuts and not corpus.whole and not corpus.learnt.all():
            taught = np.append(0, np.cumsum(corpus.learnt))
            begin, end = corpus.offsets[:-1], corpus.offsets[1:]
            kept, all_of_it = taught[np.minimum(end, begin + length + 1)] - taught[begin], taught[end] - taught[begin]
            if lost := np.count_nonzero((kept == 0) & (all_of_it > 0)):
                logging.warning(
                    "%d of %d documents lose all that is learnt of them where they are cut, and are left out: raise "
                    "data.length=%d", lost, len(kept), length,
                )  # fmt: skip
        return documents


def shortened_where(
    long_N: np.ndarray, documents: Sequence[Document], shortened: Callable[[Document], Document], name: str
) -> Sequence[Document]:
    """The same documents where none is too long, else a list with those cut that are.

    Raises:
      InputError: the texts are not one of each document (a user's own kind).
    """
    if not long_N.any():
        return documents
    if len(long_N) != len(documents):
        raise InputError(f"{name} cuts documents of one text each, and {len(documents)} have {len(long_N)}")
    return [shortened(d) if too_long else d for d, too_long in zip(documents, long_N, strict=True)]


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
        return dataclasses.replace(plan, tokens=int(offsets[-1]) + 1)  # windows know no documents: one more in all
    document = np.searchsorted(longer, plan.start, side="right") - 1
    return Plan(plan.start - document, plan.size, plan.first)


def check_learns_all(rendering: Rendering, name: str) -> None:
    """Nothing, if all of a text is to be learnt.

    Raises:
      InputError: only answers are.
    """
    if rendering.learn != "everything":
        raise InputError(f"{name} knows no answers: set data.rendering.learn='everything'")


class _Known(Presentation):
    """A document a row, whole, and what is known of it besides its text.

    `data.packing` is One(): with "truncate" a text keeps its beginning and the tokens around it (`bos`, `eos`), and of
    two texts the longer loses its end first.
    """

    pairs: ClassVar[bool] = True

    def shortened(self, document, tokenizer, rendering, length):
        settled = rendering.settled
        ends = len(frame(tokenizer.special, "bos", settled.bos)) + settled.eos
        if isinstance(document, TextPair):
            around, names = ends + (settled.separators or 1), ("first", "second")
        elif isinstance(document, Text) and settled.eos:
            around, names = ends, ("content",)
        else:
            return document
        if around + len(names) > length:
            what = "a token" if len(names) == 1 else "a token of each text"
            raise InputError(f"data.length={length} has no room for {what} beside the {around} around it: raise it")
        sizes = [len(tokenizer.encode(getattr(document, name))) for name in names]
        rooms = longest_first(sizes, length - around) if len(sizes) > 1 else [length - around]
        cut = {n: beginning(getattr(document, n), tokenizer, most) for n, most in zip(names, rooms, strict=True)}
        return document if sizes <= rooms and sum(sizes) <= length - around else dataclasses.replace(document, **cut)

    def fitted(self, documents, corpus, tokenizer, rendering, length, cuts):
        long_N = np.diff(corpus.offsets) > length if cuts else np.zeros(0, bool)
        return shortened_where(
            long_N, documents, lambda d: self.shortened(d, tokenizer, rendering, length), type(self).__name__
        )

    def _read(self, batch: HostBatch) -> HostBatch:
        """The arrays of the texts. `types_BT` is 1 in the second of two, as BERT has it, and else 0."""
        first_BT = np.pad(batch["weight_BT"], ((0, 0), (1, 0)))[:, :-1] > 0  # a token is learnt as a target
        second_BT = (batch["segment_BT"] >= 0) & (batch["position_BT"] > 0) & ~first_BT
        second_BT &= first_BT.any(1, keepdims=True)  # of a text alone nothing may be learnt
        given = {name: batch[name] for name in ("tokens_BT", "segment_BT", "position_BT")}
        return given | dict(types_BT=second_BT.astype(np.int32))

    def plan(self, packing, corpus, length, rng):
        return whole(packing, corpus.offsets, length, rng)

    def check(self, rendering, packing):
        if not isinstance(packing, One) or packing.too_long == "split":
            raise InputError(
                f"{type(self).__name__} shows a document a row: set data.packing=One('truncate'), not "
                f"{show(packing, whole=True)}"
            )


@dataclasses.dataclass(frozen=True)
class WithLabel(_Known):
    """A document a row, whole, and the number of its class: `tokens_BT`, `segment_BT`, `position_BT` and `label_B`.

    Of a `TextPair` both texts are read, one after the other; `types_BT` tells them apart. Classes by name have their
    numbers in the order of `data.labels`. `label_B` is int32, -1 in rows of padding. `data.packing` is One(): with
    "truncate" a text keeps its beginning and the tokens around it, and of two the longer loses its end first.
    """

    labelled: ClassVar[bool] = True

    def __call__(self, batch, length, special, seed_B):
        number_B = batch["number_B"]
        label_B = np.where(np.isnan(number_B), -1, np.nan_to_num(number_B)).astype(np.int32)
        return self._read(batch) | dict(label_B=label_B)

    def check_training(self, documents):
        numbers: Any = [document.number for document in documents]
        check_several(numbers)

    def check_documents(self, documents):
        super().check_documents(documents)  # the number of a pair is its margin
        for document in documents:
            number = document.number
            if isinstance(number, tuple):
                raise InputError(
                    "WithLabel needs documents of one class each, not MultiLabelled ones: set "
                    "data.presentation=WithLabels() and objective=MultiLabelClassification()"
                )
            if number is None or not 0 <= number < MOST_CLASSES or not float(number).is_integer():
                stated = "no number" if number is None else f"the number {number:g}"
                cure = "" if number is None else "; data.presentation=WithNumber() is for numbers that are not classes"
                raise InputError(
                    f"WithLabel needs documents with a class, such as Labelled, not a {type(document).__name__} with "
                    f"{stated}{cure}"
                )


def longest_first(sizes: Sequence[int], room: int) -> list[int]:
    """How many tokens two texts may keep, that together have room: the longer loses first, as in `transformers`."""
    short, long = sorted(sizes)
    if short + long <= room:
        return list(sizes)
    least = min(short, room // 2)
    return [least, room - least] if sizes[0] <= sizes[1] else [room - least, least]


def check_several(classes: Sequence[float | int | None]) -> None:
    """Checks that the training documents are of several classes.

    Raises:
      InputError: all are of one class: a model would learn to say nothing else, with an accuracy of 100%.
    """
    if len(found := set(classes)) == 1:
        raise InputError(
            f"all {len(classes)} training documents are of class {found.pop():g}, so that nothing tells it from "
            "others: add documents of another class, or change data.split"
        )


@dataclasses.dataclass(frozen=True)
class WithNumber(_Known):
    """As `WithLabel`, with any number in place of a class: `number_B`, float32, 0 in rows of padding.

    What `Regression` learns; and, from 0 (no) to 1 (yes), `MultiLabelClassification` with one class.
    """

    def __call__(self, batch, length, special, seed_B):
        return self._read(batch) | dict(number_B=np.nan_to_num(batch["number_B"], nan=0.0))

    def check_documents(self, documents):
        super().check_documents(documents)
        for document in documents:
            if document.number is None or isinstance(document.number, tuple):
                raise InputError(
                    f"WithNumber needs documents with a number, such as Labelled, not a {type(document).__name__}"
                )


@dataclasses.dataclass(frozen=True)
class WithLabels(_Known):
    """As `WithLabel`, with all the classes of a document: `labels_BL`, int32, the numbers of its classes and then -1.

    What `MultiLabelClassification` learns, of a `MultiLabelled` text or of one with one label. `most` is how many
    classes a document has at most.
    """

    most: Size = 8
    labelled: ClassVar[bool] = True

    def __call__(self, batch, length, special, seed_B):
        number_BL = batch["number_B"].reshape(len(batch["number_B"]), -1)
        labels_BL = np.full((len(number_BL), self.most), -1, np.int32)
        labels_BL[:, : number_BL.shape[1]] = np.nan_to_num(number_BL, nan=-1.0)
        return self._read(batch) | dict(labels_BL=labels_BL)

    def check_documents(self, documents):
        super().check_documents(documents)
        for document in documents:
            number = document.number
            numbers = number if isinstance(number, tuple) else (number,)
            if len(numbers) > self.most:
                raise InputError(f"a document has {len(numbers)} classes: raise data.presentation.most={self.most}")
            for one in numbers:
                if one is None or not 0 <= one < MOST_CLASSES or not float(one).is_integer():
                    raise InputError(
                        f"WithLabels needs documents with classes, such as MultiLabelled, not a "
                        f"{type(document).__name__} with {'no number' if one is None else f'the number {one:g}'}"
                    )


PRESENTATIONS = dict(AsIs=AsIs, WithLabel=WithLabel, WithNumber=WithNumber, WithLabels=WithLabels)
