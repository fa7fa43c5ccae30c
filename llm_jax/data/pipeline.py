"""`Data`: the part of an experiment that says what is trained on, and turns it into batches."""

from __future__ import annotations

import dataclasses
import functools
import json
from typing import Any, Literal

import numpy as np
from absl import logging

from llm_jax.core.arrays import HostBatch
from llm_jax.core.errors import InputError, lookup
from llm_jax.core.files import digest
from llm_jax.core.parts import Count, Part, Size
from llm_jax.core.serialization import to_json
from llm_jax.data import border
from llm_jax.data.cache import Corpus, corpus, trained
from llm_jax.data.documents import Document, Rendering
from llm_jax.data.labels import names_of, numbered
from llm_jax.data.loader import DataIterator, Evaluation, Filler, Mixed, Rows, TrainingBatches
from llm_jax.data.packing import ConcatThenSplit, Packing
from llm_jax.data.presentation import AsIs, Presentation, Vocabulary, blank
from llm_jax.data.sources import Source
from llm_jax.data.split import ByHash, Split, keys_of
from llm_jax.text.recipes import TokenizerRecipe
from llm_jax.text.tokenizer import Tokenizer

SplitName = Literal["train", "validation"]


@dataclasses.dataclass(frozen=True)
class Data(Part):
    """Documents of a source, in `batch` rows of `length` tokens.

    A batch is a dict of arrays [batch, length]: `tokens_BT` and `targets_BT` (int32 ids), `weight_BT` (float32, 0 where
    nothing is learnt), `segment_BT` (int32, number of the document within its row, -1 in padding), `position_BT`
    (int32, within the segment), `bytes_BT` (int32, bytes of text that the target stands for). A `presentation` may make
    others of them.

    `evaluation_batches` limits evaluation to the first so many batches; None evaluates the whole split.
    `workers` are processes that prefetch; most corpora are served faster than that from the training process itself.
    `labels` are the names of the classes, in the order of their numbers (`id2label` of transformers). None: those of
    the source, or of the training documents in alphabetical order; a run keeps them as they were when it began.
    """

    source: Source
    length: Size = 256
    batch: Size = 32
    packing: Packing = ConcatThenSplit()
    split: Split = ByHash()
    rendering: Rendering = Rendering()
    shuffle: bool = True
    workers: Count = 0
    evaluation_batches: Size | None = None
    presentation: Presentation = AsIs()
    labels: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        for name, least in (("length", 1), ("batch", 1), ("workers", 0)):
            if getattr(self, name) < least:
                raise InputError(f"data.{name} must be at least {least}, not {getattr(self, name)}")

    @functools.cached_property
    def _parted(self) -> list[dict[str, list[Document]]]:
        """Per component of the mixture, the documents of each split."""
        parts: list[dict[str, list[Document]]] = []
        for source, _ in self.source.components():
            documents, own = border.documents(source, "documents", source.documents()), source.validation()
            if not documents:
                raise InputError(f"{source} has no documents: the corpus is empty")
            if own is None:
                train, validation = border.split(self.split, self.split(documents))
            else:
                train, validation = documents, border.documents(source, "validation", own)
            parts.append({"train": train, "validation": validation})
        self._compare_groups(parts)
        return parts

    @property
    def _labelled(self) -> bool:
        """Whether its documents have classes that are read."""
        return self.presentation.labelled

    @functools.cached_property
    def _names(self) -> tuple[str, ...] | None:
        """The names of the classes, in the order of their numbers; None: they have none."""
        if self.labels is not None or not self._labelled:
            return self.labels
        components = zip(self.source.components(), self._parted, strict=True)
        return names_of([(source.class_names(), part["train"]) for (source, _), part in components])

    @functools.cached_property
    def _split_documents(self) -> list[dict[str, list[Document]]]:
        """As `_parted`, with the numbers of their classes where those are read."""
        if not self._labelled or self._names is None:
            return self._parted
        return [
            {split: numbered(documents, self._names, source) for split, documents in part.items()}
            for (source, _), part in zip(self.source.components(), self._parted, strict=True)
        ]

    def with_labels(self) -> Data:
        """The same, of the same documents, with the names of its classes in `labels`, if they have names."""
        if self.labels is not None or not self._labelled:
            return self
        made = dataclasses.replace(self, labels=self._names)
        vars(made)["_parted"] = self._parted  # they are not read twice
        return made

    def _compare_groups(self, parts: list[dict[str, list[Document]]]) -> None:
        """Says so where what is held out is trained on too: across a mixture, or by a source's own split."""
        trained = {hash(key) for part in parts for document in part["train"] for key in keys_of(document)}
        held_out = [keys_of(document) for part in parts for document in part["validation"]]
        if len(trained) > 1 and (shared := sum(any(hash(key) in trained for key in keys) for keys in held_out)):
            logging.warning(
                "%d of %d held-out documents of %s have a prompt, or a text, that is trained on too: what is measured "
                "of them is not what the model makes of new ones. ByHash holds out the same prompts of every source",
                shared, len(held_out), self.source,
            )  # fmt: skip

    def documents(self, split: SplitName) -> list[Document]:
        """The documents of a split, of all components.

        Raises:
          InputError: there are none.
        """
        found = [d for part in self._split_documents for d in lookup(part, split, "split")]
        if not found:
            one = sum(len(each) for part in self._split_documents for each in part.values()) == 1
            cure = (
                "there is one, of which WithinText holds out the end, if it is a text" if one else "change data.split"
            )
            raise InputError(f"{self.split} leaves no {split} documents of {self.source}: {cure}")
        return found

    def shortened(self, document: Document, tokenizer: Tokenizer) -> Document:
        """A document as the rows show it: with its texts cut, where it is too long and `packing` cuts."""
        if not _truncates(self.packing):
            return document
        return self.presentation.shortened(document, tokenizer, self.rendering, self.length)

    def prepare(self, recipe: TokenizerRecipe) -> Tokenizer:
        """A tokenizer trained on the training documents alone, with the special tokens that the chat template needs."""
        template = self.rendering.settled.template
        texts = (document.text() for document in self.documents("train"))
        return template.ending(trained(recipe, texts, template.tokens()))

    def train(
        self, tokenizer: Tokenizer, *, seed: int, process: int = 0, processes: int = 1, program: Any = None
    ) -> DataIterator:
        """Endless batches, of each of which this process gets batch / processes rows.

        `program` is what trains on them, for data that is made by the model itself.

        Raises:
          InputError: there is nothing to train on or nothing learnt, the batch cannot be divided, or the documents
            cannot be presented.
        """
        self._check(process, processes)
        self._check_training(self.documents("train"))
        corpora = self._corpora(tokenizer, "train")
        if empty := [s for (s, _), c in zip(self.source.components(), corpora, strict=True) if c is None]:
            raise InputError(f"{empty[0]} has no training documents of two tokens or more")
        rows = [
            Rows(c, self.packing, self.length, (seed, i) if self.shuffle else None, self.presentation)
            for i, c in enumerate(corpora)
            if c is not None
        ]
        weights = [weight for _, weight in self.source.components()]
        mixed = Mixed(weights)
        shown = [] if self.presentation == AsIs() else [to_json(self.presentation)]
        shown += ["exact shares"] * mixed.exact  # they were whole parts of 10,000 rows once
        stream = digest(
            json.dumps([to_json(self.packing), self.batch, self.length, self.shuffle, seed, weights, *shown]),
            *(f"{part.corpus.made_of}.tokens" for part in rows),
        )
        content = digest(*(part.corpus.content for part in rows))
        batches = TrainingBatches(self._filler(rows, tokenizer, seed), mixed, self.batch, process, processes)
        return DataIterator(batches, self.workers, stream, content)

    def evaluation(
        self, tokenizer: Tokenizer, *, split: SplitName = "validation", process: int = 0, processes: int = 1
    ) -> Evaluation:
        """Every target of a split exactly once, in order.

        Raises:
          InputError: the split is empty or nothing of it is learnt, or the batch cannot be divided.
        """
        self._check(process, processes)
        packing = self.packing.once(self.presentation.row(self.length))
        corpora = self._corpora(tokenizer, split)
        rows = [Rows(c, packing, self.length, None, self.presentation) for c in corpora if c is not None]
        return Evaluation(self._filler(rows, tokenizer, 0), self.batch, process, processes, self.evaluation_batches)

    def counts(self, tokenizer: Tokenizer) -> np.ndarray:
        """int64 [V]: how often each token occurs in the training documents."""
        corpora = [c for c in self._corpora(tokenizer, "train") if c is not None]
        return sum(
            (np.bincount(c.tokens, minlength=tokenizer.vocabulary) for c in corpora),
            np.zeros(tokenizer.vocabulary, np.int64),
        )

    def blank(self, rows: int) -> HostBatch:
        """A batch of padding: what a batch of so many rows consists of."""
        filled = blank(rows, self.presentation.row(self.length))
        made = self.presentation(filled, self.length, Vocabulary(), [(0, row) for row in range(rows)])
        return border.batch(self.presentation, made, rows)

    def _check(self, process: int, processes: int) -> None:
        if self.batch % processes:
            raise InputError(f"data.batch={self.batch} cannot be divided among {processes} processes")
        if not 0 <= process < processes:
            raise InputError(f"process {process} is not one of 0 to {processes - 1}")
        self.presentation.check(self.rendering.settled, self.packing)

    def _check_training(self, documents: list[Document]) -> None:
        self.presentation.check_documents(documents)
        self.presentation.check_training(documents)

    def _filler(self, rows: list[Rows], tokenizer: Tokenizer, seed: int) -> Filler:
        bytes_V = np.asarray(tokenizer.bytes_V, np.int32)
        special = Vocabulary(tokenizer)
        self.presentation.check_vocabulary(special, self.length)
        return Filler(rows, self.length, bytes_V, special, seed, self.presentation)

    def _corpora(self, tokenizer: Tokenizer, split: SplitName) -> list[Corpus | None]:
        """Per component, its tokens; None where there is no document of two tokens or more."""
        self.documents(split)
        parts = [part[split] for part in self._split_documents]
        for documents in parts:
            self.presentation.check_documents(documents)
        made = [self._corpus(documents, tokenizer) if documents else None for documents in parts]
        usable = [c if c is not None and len(c.tokens) > len(c.offsets) - 1 else None for c in made]
        learnt = [c is not None and np.any(c.learnt) for c in usable]
        idle = [
            s
            for (s, _), c, some in zip(self.source.components(), usable, learnt, strict=True)
            if c is not None and not some
        ]
        if not any(learnt) or (idle and split == "train"):
            learn = "" if self.rendering.learn == "everything" else f": rendering.learn={self.rendering.learn!r}"
            named = idle[0] if any(learnt) else self.source
            raise InputError(f"nothing is learnt of the {split} documents of {named}{learn}")
        return [c if some else None for c, some in zip(usable, learnt, strict=True)]  # idle ones of validation

    def _corpus(self, documents: list[Document], tokenizer: Tokenizer) -> Corpus | None:
        whole, cuts = corpus(documents, tokenizer, self.rendering), _truncates(self.packing)
        if len(whole.offsets) < 2:
            return whole
        shown = self.presentation.fitted(documents, whole, tokenizer, self.rendering, self.length, cuts)
        return whole if shown is documents else corpus(shown, tokenizer, self.rendering)


def _truncates(packing: Packing) -> bool:
    """Whether it cuts what is too long."""
    return getattr(packing, "too_long", None) == "truncate"
