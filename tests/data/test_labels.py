"""Classes by name: their order, where it comes from, and the numbers that documents have by it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from typing import Any

import pytest

from llm_jax.core.errors import InputError
from llm_jax.data.documents import Document, Labelled
from llm_jax.data.images import NAMES, Digits, Images
from llm_jax.data.packing import One
from llm_jax.data.pipeline import Data
from llm_jax.data.presentation import AsIs, WithLabel
from llm_jax.data.sources import JsonLines, Mixture, Source
from llm_jax.data.split import LastDocuments
from llm_jax.text.recipes import Bytes


@dataclasses.dataclass(frozen=True)
class Listed(Source):
    """A text for each name, its class by number; it may list the names."""

    texts: tuple[str, ...] = ("a", "b", "c", "d")
    names: tuple[str, ...] | None = None
    by_name: bool = False

    def documents(self) -> Iterator[Document]:
        for number, text in enumerate(self.texts):
            yield Labelled(text, text if self.by_name else number)

    def class_names(self) -> tuple[str, ...] | None:
        return self.names


def made(source: Source, **settings: Any) -> Data:
    settings = dict(packing=One("truncate"), presentation=WithLabel(), split=LastDocuments(0.25)) | settings
    return Data(source, length=8, batch=2, **settings)


def classes(data: Data) -> dict[str, Any]:
    return {d.text(): d.label for split in ("train", "validation") for d in data.documents(split)}  # pyright: ignore


def test_names_are_numbered_in_alphabetical_order_or_as_said(tmp_path):
    lines = [dict(text=f"{name} {i}", label=name) for i in range(3) for name in ("spam", "ham", "eggs")]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, lines)))
    source, order = JsonLines(str(tmp_path / "a.jsonl")), ("spam", "eggs", "ham")
    for labels, wanted in ((None, ("eggs", "ham", "spam")), (order, order)):
        data = made(source, labels=labels)
        found = classes(data)
        assert found.keys() == {line["text"] for line in lines}
        assert all(wanted[number] == text.split()[0] for text, number in found.items())
        said = data.with_labels()
        assert said.labels == wanted and classes(said) == found and said == dataclasses.replace(data, labels=wanted)
        tokenizer = Bytes().train([])
        seen = {}
        for batch in data.evaluation(tokenizer, split="train"):
            for ids, number in zip(batch["tokens_BT"], batch["label_B"], strict=True):
                seen[tokenizer.decode([i for i in ids.tolist() if i not in tokenizer.special.values()])[:3]] = number
        assert {text[:3]: number for text, number in found.items()} == seen  # of the corpus, whichever is in the cache


def test_whose_classes_are_not_read_has_no_need_of_names():
    data = made(Listed(by_name=True), presentation=AsIs())
    assert data.with_labels() is data and classes(data)["a"] == "a"
    assert next(data.train(Bytes().train([]), seed=0))


def test_a_source_lists_the_names_of_its_numbers():
    listed = Listed(names=("a", "b", "c", "d"))
    assert made(listed).with_labels().labels == listed.names
    assert classes(made(listed)) == dict(a=0, b=1, c=2, d=3)
    assert classes(made(listed, labels=("d", "c", "b", "a"))) == dict(a=3, b=2, c=1, d=0)  # another's order
    assert classes(made(Listed())) == dict(a=0, b=1, c=2, d=3) and made(Listed()).with_labels().labels is None
    named = Listed(("c", "a", "b"), by_name=True)
    together = made(Mixture((listed, named), (1.0, 1.0)))
    assert classes(together) == dict(a=0, b=1, c=2, d=3) and together.with_labels().labels == listed.names
    assert Images(Digits()).with_labels().labels == NAMES


@pytest.mark.parametrize(("source", "labels", "message"), [
    (Listed(by_name=True), None, r"the class 'd' is none of the classes: choose from a, b, c; data.labels names them"),
    (Listed(by_name=True), ("a", "b", "c", "dd"), r"the class 'd' is none .* did you mean 'dd'"),
    (Listed(names=("a", "b", "c", "d")), ("a", "b", "c"), r"the class 'd' is none of the classes"),
    (Listed(by_name=True), ("a", "b", "c", "d", "a"), r"the class 'a' is the name of several of the classes"),
    (Mixture((Listed(), Listed(by_name=True)), (1.0, 1.0)), None, r"by name, and some by number \(0\): set"),
    (Mixture((Listed(names=("a", "b")), Listed(names=("b", "a"))), (1.0, 1.0)), None, "the sources list their classes"),
    (Mixture((Listed(names=("a", "b")), Listed(by_name=True)), (1.0, 1.0)), None, "class 'c', which another source"),
])  # fmt: skip
def test_what_has_no_number_is_refused(source, labels, message):
    with pytest.raises(InputError, match=message) as raised:
        made(source, labels=labels).documents("train")
    assert "\n" not in str(raised.value)
