"""A model that says exactly what it was taught is right, whatever the tokenizer and the template do to a text."""

import json
from typing import Any

import numpy as np
import pytest

from llm_jax.core.errors import InputError
from llm_jax.data.answers import answer_of, known_answer
from llm_jax.data.documents import Conversation, Example, Labelled, Picture, Preference, Rendering, Text
from llm_jax.inference.language_model import LanguageModel
from llm_jax.layers.attention import Attention
from llm_jax.layers.block import Block
from llm_jax.layers.embedding import Embed
from llm_jax.layers.feedforward import FeedForward
from llm_jax.models.decoder import Decoder
from llm_jax.models.stack import Stack
from llm_jax.objectives.rewards import ExactAnswer
from llm_jax.reports.captions import Captions
from llm_jax.reports.text import ExactMatch
from llm_jax.rl.completions import Prompt, _text
from llm_jax.text.calls import Call
from llm_jax.text.chat import Alpaca, ChatML, ChatTemplate, Jinja, Llama3, Message
from llm_jax.text.recipes import Bpe, Bytes, Characters, Unigram, WordPiece

TEXTS = ["Hello, world! It isn't 3.5.", "    if x:\n        return 42", "42\n", " caf\u00e9  (a b)", "one two", "x"]
LINES = Jinja("{% for m in messages %}{{ m.role + ': ' + m.content | trim + eos_token + '\n' }}{% endfor %}"
              "{{ 'assistant: ' if add_generation_prompt }}")  # fmt: skip
TEMPLATES = [ChatTemplate(), ChatML(), Llama3(), Alpaca(), LINES]
MODEL = Decoder(Embed(8, 10**6), Stack((Block(Attention(1, 1, 8), FeedForward(8)),), 1))
RECIPES = dict(bytes=Bytes(), bpe=Bpe(300), characters=Characters(), words=WordPiece(300), unigram=Unigram(400))


@pytest.fixture(scope="module", params=RECIPES)
def tokenizer(request):
    names = dict.fromkeys(name for template in TEMPLATES for name in template.tokens())
    said = [*TEXTS, "q user assistant Below is an instruction <tool_call>", *map(json.dumps, TEXTS)]
    return RECIPES[request.param].train(said * 9, tuple(names))


def taught(document, tokenizer, rendering):
    """The ids that a model learns to write, and the ids that end it."""
    ids, learnt = document.tokens(tokenizer, rendering)
    begin = learnt.index(True)
    end = next(i for i in range(begin, len(ids)) if ids[i] in tokenizer.ends)
    return ids[begin:end]


def documents():
    for text in TEXTS:
        yield Example("q", text), None
        for template in TEMPLATES:
            yield Conversation((Message("user", "q"), Message("assistant", text))), template
    called = Message("assistant", "See.", (Call("f", json.dumps(dict(a=TEXTS[0]))), Call("g")))
    yield Conversation((Message("user", "q"), called)), ChatML()


class Says:
    """Writes these ids, in place of a model."""

    def __init__(self, ids):
        self.ids, self.finished = ids, False

    def advance(self):
        self.finished = True
        return self.ids


def language_model(tokenizer, rendering, ids):
    class Silent(LanguageModel):
        def _begin(self, *_: Any):
            return Says([ids])

    return Silent(MODEL, None, tokenizer, template=rendering.settled.template)


@pytest.mark.parametrize(("document", "template"), [*documents()])
def test_who_says_what_was_taught_is_right(document, template, tokenizer):
    rendering = Rendering(learn="answers", template=template or ChatTemplate())
    tokenizer = rendering.settled.template.ending(tokenizer)
    ids = taught(document, tokenizer, rendering)
    text = _text(tokenizer, Prompt.of(document, tokenizer, rendering), ids)
    reward = ExactAnswer().ready(tokenizer, rendering, None)
    known = answer_of(document, tokenizer, rendering)
    assert known is not None and known.text == known_answer(document)
    assert reward([""], [text], [document]).tolist() == [float(known.sayable)]
    assert reward([""], [text + "?"], [document]).tolist() == [0.0]
    if tokenizer.lossless and type(document) is Example:
        assert known.taught == document.answer and known.sayable

    lm = language_model(tokenizer, rendering, ids)
    finished: Any = type("Finished", (), dict(
        lm=lm, tokenizer=tokenizer, rendering=rendering, documents=lambda self, split: [document],
        shortened=lambda self, document: document,
    ))()  # fmt: skip
    found = ExactMatch()(finished)
    assert found.metrics == {"validation_exact_match": float(known.sayable)}
    assert any("cannot be given" in line for line in found.lines) == (not known.sayable)


def test_what_published_examples_become():
    words = WordPiece(120).train(["hello , world ! 42"] * 9)
    example = answer_of(Example("hello", "hello, world!"), words, Rendering())
    assert example is not None and example.taught.strip() == "hello , world !" and example.text == "hello, world!"
    trimmed = Conversation((Message("user", "q"), Message("assistant", "42\n")))
    byte = Llama3().ending(Bytes().train([], Llama3().tokens()))
    reply = answer_of(trimmed, byte, Rendering(template=Llama3()))
    assert reply is not None and (reply.text, reply.taught, reply.tokens, reply.sayable) == ("42\n", "42", 2, True)


def test_an_answer_with_a_part_that_no_token_stands_for_is_never_right():
    """Nobody's [UNK] is the right answer, though it is what was taught."""
    words = WordPiece(120).train(["one two"] * 9)
    document = Example("one", "two \u4e09")
    known = answer_of(document, words, Rendering())
    assert known is not None and not known.sayable and known.taught == document.answer
    text = _text(words, Prompt.of(document, words, Rendering()), words.encode(document.answer))
    assert ExactAnswer().ready(words, Rendering(), None)([""], [text], [document]).tolist() == [0.0]


def test_which_answer_is_known():
    asked, said = Message("user", "q"), Message("assistant", "2 + 2 = 4", weight=0)
    byte = Bytes().train([])
    for document, text in (
        (Conversation((asked,), answer="4"), "4"),
        (Conversation((asked, said), answer="4"), "4"),
        (Conversation((asked, said)), "2 + 2 = 4"),
        (Picture(np.zeros((1, 1, 1), np.float32), "four", 4), "four"),
    ):
        known = answer_of(document, byte, Rendering())
        assert known is not None and (known.text, known.taught, known.tokens) == (text, text, len(text))
        assert ExactAnswer()(["q"], [f" {text} "], [document]).tolist() == [1.0]
    for document in (Text("a"), Labelled("a", 1), Conversation((asked,)), Preference((asked,), "a", "b")):
        assert answer_of(document, byte, Rendering()) is None
        for reward in (ExactAnswer(), ExactAnswer().ready(byte, Rendering(), None)):
            with pytest.raises(InputError, match="ExactAnswer needs documents to which one answer is known"):
                reward(["q"], ["a"], [document])


def test_captions_are_compared_as_they_were_taught():
    words = WordPiece(120).train(["it is one!"] * 9)
    pictures = [Picture(np.zeros((2, 2, 1), np.float32), caption, 1) for caption in ("it is one!", "one")]
    ids = taught(pictures[0], words, Rendering())
    lm = language_model(words, Rendering(), ids)
    lm.generate = lambda prompts, **_: [_text(words, Prompt(pictures[0], (words.special["bos"],), ""), ids)] * 2  # pyright: ignore[reportAttributeAccessIssue]
    finished: Any = type("Finished", (), dict(
        lm=lm, tokenizer=words, rendering=Rendering(), documents=lambda self, split: pictures
    ))()  # fmt: skip
    assert Captions(drawn=0)(finished).lines == ["validation: 1/2 captions exact"]
