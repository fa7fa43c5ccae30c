"""What a user's own parts give back is checked where it comes in, and the message names the function."""

import dataclasses
import re
from typing import Any

import numpy as np
import pytest

from llm_jax.core.errors import InputError
from llm_jax.data.documents import Conversation, Example, Rendering, Text
from llm_jax.data.files import Source
from llm_jax.data.packing import ConcatThenSplit
from llm_jax.data.pipeline import Data
from llm_jax.data.presentation import AsIs
from llm_jax.data.split import Split
from llm_jax.text.chat import ChatTemplate, Message
from llm_jax.text.recipes import Bytes, TokenizerRecipe


@dataclasses.dataclass(frozen=True)
class Given(Source):
    """Gives whatever it is made with."""

    what: object = None

    def documents(self):
        return self.what


def wrong(value: Any) -> Any:
    """What the types forbid."""
    return value


TEXTS = [Text(f"the text number {i}") for i in range(60)]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (None, r"Given\.documents\(\) returned None \(NoneType\): it must return documents, such as Text"),
        ("one text", r"Given\.documents\(\) returned 'one text' \(str\)"),
        ([*TEXTS, "a text"], r"Given\.documents\(\) gave, which returned 'a text' \(str\)"),
        ({"text": "a"}, r"Given\.documents\(\) returned \{'text': 'a'\} \(dict\)"),
        ([Text(wrong(5))], r"Given\.documents\(\) gave a Text that holds '5' \(int\), where there must be text"),
        ([Text(wrong(None))], r"gave a Text that holds 'None' \(NoneType\)"),
        ([Example("2+1=", wrong(3))], r"gave a Example that holds '3' \(int\)"),
        ([Conversation((wrong({"role": "user"}),))], r"gave a Conversation that holds .* there must be a Message"),
        ([Conversation((Message("user", wrong(3)),))], r"gave a Message that holds '3' \(int\)"),
    ],
)
def test_a_source(given, message):
    with pytest.raises(InputError, match=message):
        Data(Given(given)).documents("train")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (TEXTS, r"Cut\(\) returned .*: it must return two lists: the documents to train on, and those held out"),
        ((TEXTS, ["a"]), r"Cut\.__call__\(\) gave, which returned 'a' \(str\)"),
    ],
)
def test_a_split(given, message):
    @dataclasses.dataclass(frozen=True)
    class Cut(Split):
        def __call__(self, documents):
            return given

    with pytest.raises(InputError, match=message):
        Data(Given(TEXTS), split=Cut()).documents("train")


def test_a_recipe():
    @dataclasses.dataclass(frozen=True)
    class Mine(TokenizerRecipe):
        def train(self, texts, special=()):
            return {"a": 0}

    with pytest.raises(InputError, match=r"Mine\.train\(\) returned \{'a': 0\} \(dict\): it must return a Tokenizer"):
        Data(Given(TEXTS)).prepare(Mine())


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (lambda ids, learn: ids, r"Mine\.render\(\) returned \["),
        (lambda ids, learn: (ids, learn[:-1]), r"Mine\.render\(\) returned '\d+ ids and \d+ booleans'"),
        (
            lambda ids, learn: ([*ids[:-1], 70_000], learn),
            r"Mine\.render\(\) returned \[.*: it must return a list of token ids",
        ),
        (lambda ids, learn: (["a"] * len(ids), learn), r"Mine\.render\(\) returned \['a'"),
    ],
)
def test_a_template(given, message, caplog):
    """A mask that is too short would have shifted that of every later conversation, without a word."""

    @dataclasses.dataclass(frozen=True)
    class Mine(ChatTemplate):
        def tokens(self):
            return ("<|mine|>",)  # so that the tokenizer is made with what ends its turns

        def render(self, tokenizer, messages, reply=False, tools=(), live=False):
            return given(*super().render(tokenizer, messages, reply, tools, live))

    talks = [Conversation((Message("user", f"{i}?"), Message("assistant", f"{i}!"))) for i in range(60)]
    data = Data(Given(talks), length=16, batch=2, rendering=Rendering(template=Mine()))
    tokenizer = data.prepare(Bytes())
    assert re.search(f"the token that ends a turn is not known: {message}", caplog.text)
    with pytest.raises(InputError, match=message):
        data.train(tokenizer, seed=0)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            lambda batch: None,
            r"the collator Mine returned None \(NoneType\): it must return the batch: a dict",
        ),
        (lambda batch: batch | {"x_B": [1.0, 2.0]}, r"the collator Mine, as 'x_B', returned \[1.0, 2.0\] \(list\)"),
        (lambda batch: batch | {"x_B": np.array(["a", "b"])}, r"as 'x_B', returned .*: it must .* of numbers"),
        (lambda batch: batch | {"x_B": np.zeros(3)}, r"as 'x_B', .* whose first axis is 2 rows"),
        (
            lambda batch: batch | ({} if (batch["segment_BT"] < 0).all() else {"x_B": np.zeros(2)}),
            "the same arrays for every batch: of padding it made",
        ),
        (
            lambda batch: batch | {"x_BT": np.zeros((len(batch["tokens_BT"]), 1 + batch["segment_BT"].max()))},
            r"as 'x_BT', returned 'float64 \[\d+\] a row' \(str\): it must return the same for every batch",
        ),
    ],
)
def test_a_collator(given, message):
    @dataclasses.dataclass(frozen=True)
    class Mine(AsIs):
        def __call__(self, batch, length, special, seed_B):
            made = super().__call__(batch, length, special, seed_B)
            return given(made) if len(seed_B) == 2 or (made["segment_BT"] < 0).all() else made

    made = Data(Given(TEXTS), length=16, batch=2, presentation=Mine())
    tokenizer = made.prepare(Bytes())
    with pytest.raises(InputError, match=message):
        made.blank(2)
        next(made.train(tokenizer, seed=0))


def test_a_packing():
    @dataclasses.dataclass(frozen=True)
    class Mine(ConcatThenSplit):
        def plan(self, *arguments):
            return [1, 2]

    made = Data(Given(TEXTS), length=16, batch=2, packing=Mine())
    with pytest.raises(InputError, match=r"Mine\.plan\(\) returned \[1, 2\] \(list\): it must return a Plan"):
        made.train(made.prepare(Bytes()), seed=0)


def test_a_document():
    class Mine(Text):
        def parts(self, tokenizer, rendering):
            return [([1, 2, 3], [True])]

    made = Data(Given([*TEXTS, *(Mine(f"{i}") for i in range(40))]), length=16, batch=2)
    with pytest.raises(InputError, match=r"Mine\.parts\(\) returned \(\[1, 2, 3\], \[True\]\) \(tuple\)"):
        made.train(made.prepare(Bytes()), seed=0)
