import dataclasses
import json
import random
import re

import numpy as np
import pytest
from absl import logging

from llm_jax.core.errors import InputError
from llm_jax.data.documents import (
    Comparison,
    Conversation,
    Document,
    Example,
    Labelled,
    Picture,
    Preference,
    Text,
    TextPair,
)
from llm_jax.data.pipeline import Data
from llm_jax.data.sources import JsonLines, Mixture, PlainTexts, RatedReplies, Source
from llm_jax.data.split import SPLITS, ByHash, Few, LastDocuments, WithinText
from llm_jax.text.chat import Message

TEXTS = [Text(f"document {i:020d} of some length") for i in range(2000)]


def splitting(name, share):
    return Few(len(TEXTS), ByHash(share)) if name == "Few" else SPLITS[name](share)


@pytest.mark.parametrize("name", SPLITS)
def test_every_split_keeps_everything_exactly_once(name):
    for share in (0.0, 0.1, 0.5):
        train, validation = splitting(name, share)(TEXTS)
        whole = "".join(sorted(d.text() for d in TEXTS))
        assert len("".join(d.text() for d in train + validation)) == len(whole)
        kept = len("".join(d.text() for d in validation)) / len(whole)
        assert abs(kept - share) < 0.06 and (share > 0) == bool(validation)
    for share in (-0.1, 1.0):
        with pytest.raises(InputError, match=r"\.validation is a fraction"):
            splitting(name, share)


def test_by_hash_is_stable_under_adding_and_reordering():
    before = set(ByHash(0.1)(TEXTS[:1000])[1])
    after = set(ByHash(0.1)(TEXTS[::-1])[1])
    assert before == after & set(TEXTS[:1000])


def test_last_documents_are_the_last():
    assert LastDocuments(0.1)(TEXTS) == (TEXTS[:1800], TEXTS[1800:])


def test_within_text_holds_out_the_last_tenth_as_nano_gpt_does():
    train, validation = WithinText(0.1)([Text("x" * 1_115_394)])
    assert [len(d.text()) for d in train + validation] == [1_003_854, 111_540]
    with pytest.raises(InputError, match="WithinText cannot cut a Example"):
        WithinText()([Example("a", "b")])


def test_few_documents_are_the_first_and_hold_out_the_same():
    train, held_out = ByHash(0.1)(TEXTS)
    assert Few(7, ByHash(0.1))(TEXTS) == (train[:7], held_out)


def said(*contents, **last):
    """A conversation of a user and an assistant in turn."""
    roles = ["user", "assistant"] * len(contents)
    turns = [Message(role, content) for role, content in zip(roles, contents, strict=False)]
    return *turns[:-1], dataclasses.replace(turns[-1], **last)


def pixels(i):
    return np.full((2, 2, 1), i, np.float32)


# Of prompt i, document number n: what is repeated is the prompt.
REPEATED = dict(
    texts=lambda i, n: Text(f"text {i}"),
    labelled=lambda i, n: Labelled(f"text {i}", n),
    examples=lambda i, n: Example(f"prompt {i}", f"answer {n}"),
    preferences=lambda i, n: Preference(said(f"prompt {i}"), f"good {n}", f"bad {n}"),
    comparisons=lambda i, n: Comparison(said(f"prompt {i}", f"good {n}"), said(f"prompt {i}", f"bad {n}")),
    replies=lambda i, n: Conversation(said(f"prompt {i}", f"reply {n}")),
    systems=lambda i, n: Conversation((Message("system", f"be {i}"), *said("prompt", f"reply {n}"))),
    beginnings=lambda i, n: Conversation(said(*(f"turn {turn} of {i}" for turn in range(n + 1)))),
    trees=lambda i, n: Conversation(said(f"prompt {i}", f"reply {n}", f"and {n}", "last")),
    judged_beginnings=lambda i, n: Preference(
        said(*(f"turn {turn} of {i}" for turn in range(2 * n + 1))), f"good {n}", f"bad {n}"
    ),
    greeted=lambda i, n: Conversation((Message("assistant", "Welcome!"), *said(f"prompt {i}", f"reply {n}"))),
    shown=lambda i, n: Conversation((*said("2+2?", "4", weight=0), *said(f"prompt {i}", f"reply {n}"))),
    captions=lambda i, n: Picture(pixels(i), f"caption {n}", 0),
    premises=lambda i, n: TextPair(f"premise {i}", f"hypothesis {i} {n}", n),
    passages=lambda i, n: TextPair(f"query {i} {n}", f"passage {i}", n),
    chains=lambda i, n: TextPair(f"text {i} {n}", f"text {i} {n + 1}", n),
)  # fmt: skip


@pytest.mark.parametrize("order", ["in turn", "one after another", "mixed"])
@pytest.mark.parametrize("kind", REPEATED)
@pytest.mark.parametrize("name", ["ByHash", "LastDocuments", "Few"])
def test_what_repeats_a_prompt_is_never_on_both_sides(name, kind, order):
    every = [(i, n) for i in range(60) for n in range(4)]
    if order == "in turn":
        every.sort(key=lambda pair: pair[1])
    if order == "mixed":
        random.Random(0).shuffle(every)
    documents = [REPEATED[kind](i, n) for i, n in every]
    prompt_of = {id(document): i for document, (i, _) in zip(documents, every, strict=True)}
    train, validation = splitting(name, 0.25)(documents)
    sides = [{prompt_of[id(document)] for document in part} for part in (train, validation)]
    assert all(sides) and not sides[0] & sides[1]
    assert len(train) + len(validation) == len(documents) == 240
    assert 4 * len(sides[1]) == len(validation), "all documents of a prompt go together"


def test_every_kind_of_document_with_a_prompt_has_it_on_the_same_side(tmp_path):
    path, kinds = tmp_path / "rated.jsonl", ("examples", "preferences", "comparisons", "replies")
    held_out = [{d.group() for d in ByHash(0.3)([REPEATED[k](i, 0) for i in range(100)])[1]} for k in kinds]
    prompts = [f"prompt {i}" for i in range(100)]
    alone = ByHash(0.3)([Conversation(said(prompt)) for prompt in prompts])[1]
    path.write_text(
        "\n".join(json.dumps(dict(prompt=p, completion=f"reply {r}", rating=r)) for p in prompts for r in range(3))
    )
    rated = {pair.messages[0].content for pair in RatedReplies(str(path), held_out=0.3).validation()}
    assert 15 < len(rated) < 45
    assert all(group == rated for group in (*held_out, {document.text() for document in alone}))


@dataclasses.dataclass(frozen=True)
class Held(Source):
    held: tuple[Document, ...]
    own: tuple[Document, ...] | None = None

    def documents(self):
        return iter(self.held)

    def validation(self):
        return self.own and iter(self.own)


def test_plain_texts_of_conversations_are_held_out_with_them():
    source = Held(tuple(REPEATED["replies"](i, n) for i in range(100) for n in range(3)))
    for split in (ByHash(0.2), LastDocuments(0.2), Few(50, ByHash(0.2))):
        plain = [document.text() for document in Data(PlainTexts(source), split=split).documents("validation")]
        assert plain == [document.text() for document in Data(source, split=split).documents("validation")]
    cut = Data(PlainTexts(source), split=WithinText(0.2))
    assert "".join(d.text() for d in cut.documents("train")[:1] + cut.documents("validation")[:1]) == (
        "prompt 0\nreply 0"
    )


@pytest.mark.parametrize(
    "record",
    [
        lambda i, n: dict(prompt=f"q{i}", chosen=f"good {n}", rejected=f"bad {n}"),
        lambda i, n: dict(prompt=f"q{i}", answer=f" {n}"),
        lambda i, n: dict(prompt=f"q{i}", completion=f"{n}"),
        lambda i, n: dict(instruction=f"q{i}", output=f"{n}"),
        lambda i, n: dict(messages=[dict(role="user", content=f"q{i}"), dict(role="assistant", content=f"{n}")]),
    ],
)
def test_no_held_out_prompt_of_a_file_is_trained_on(record, tmp_path, warned):
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(json.dumps(record(i, n)) for i in range(200) for n in range(8)))
    data = Data(JsonLines(str(path)), split=ByHash(0.1))
    held_out, trained = ({re.findall(r"q\d+", d.text())[0] for d in data.documents(s)} for s in ("validation", "train"))
    assert 10 <= len(held_out) <= 30 and not held_out & trained and not warned


@pytest.fixture
def warned(monkeypatch):
    said = []
    monkeypatch.setattr(logging, "warning", lambda text, *args: said.append(text % args))
    return said


def test_a_prompt_that_a_source_or_a_mixture_has_on_both_sides_is_reported(warned):
    source = Held((Example("a", "1"), Example("b", "2")), own=(Example("b", "3"), Example("c", "4")))
    Data(source).documents("train")
    assert len(warned) == 1 and warned[0].startswith("1 of 2 held-out documents of Held(")
    first, second = (
        Held(tuple(Example(f"q{i}", f"{n}{i}") for i in order))
        for n, order in enumerate(([*range(9)], [*range(9)][::-1]))
    )
    Data(Mixture((first, second), (1.0, 1.0)), split=ByHash(0.3)).documents("train")
    assert len(warned) == 1
    Data(Mixture((first, second), (1.0, 1.0)), split=LastDocuments(0.3)).documents("train")
    assert warned[1].startswith("6 of 6 held-out documents of Mixture(")


@pytest.mark.parametrize("share", [0.01, 0.1, 1 / 3, 0.5, 0.8, 0.9, 0.99])
@pytest.mark.parametrize("count", [2, 3, 5, 10, 50])
def test_the_last_documents_leave_some_on_both_sides(count, share):
    train, validation = LastDocuments(share)(TEXTS[:count])
    assert train + validation == TEXTS[:count] and train and validation
    assert len(train) == max(1, int(count * (1 - share) + 1e-9))


def test_documents_that_cannot_be_parted_say_why():
    with pytest.raises(InputError, match=r"leaves no train documents of .*: there is one, of which WithinText"):
        Data(Held((Text("one"),)), split=LastDocuments(0.5)).documents("train")
    shown = [Conversation((*said("Hi", "Hello", weight=0), *said(f"a {n}", "b"))) for n in range(5)]
    assert len(Data(Held(tuple(shown)), split=LastDocuments(0.4)).documents("train")) == 3


def test_replies_that_all_have_one_prompt_are_parted_by_their_texts(warned):
    same = Held(tuple(Conversation(said("Hi", f"reply {n}")) for n in range(50)))
    for split in (LastDocuments(0.2), ByHash(0.2)):
        warned.clear()
        assert 3 <= len(Data(same, split=split).documents("validation")) <= 20
        assert len(warned) == 1 and warned[0].startswith("all 50 documents have the same prompt")
