import itertools

import numpy as np
import pytest

from llm_jax.core.errors import InputError
from llm_jax.data.cache import corpus
from llm_jax.data.documents import (
    Comparison,
    Conversation,
    Encoded,
    Example,
    Labelled,
    Picture,
    Preference,
    Rendering,
    Text,
)
from llm_jax.text.byte_level import byte_level, bytes_first
from llm_jax.text.chat import Alpaca, ChatTemplate, Jinja, Message
from llm_jax.text.recipes import WordPiece
from llm_jax.text.tokenizer import Tokenizer

DOCUMENTS = [
    Text("plain text"),
    Conversation((Message("user", "hi"), Message("assistant", "yo <|eos|>"))),
    Example("1+1=", "2"),
    Text(""),
]


def test_documents_of_equal_content_are_equal_what_is_not_known_of_them_too():
    """On Python 3.13 a dataclass compares its fields with ==, and NaN is unequal to itself: unknown is None."""
    said, asked = (Message("user", "a"), Message("assistant", "b")), (Message("user", "a"),)
    for make in (
        lambda: Preference(asked, "b", "c"),
        lambda: Comparison(said, said),
        *(lambda d=d: d for d in DOCUMENTS),
    ):
        assert make() == make() and make().number is None
    assert Preference(asked, "b", "c", 2.0) == Preference(asked, "b", "c", 2.0) != Preference(asked, "b", "c")
    assert Labelled("a", 1).number == 1


def test_texts_and_examples_lie_between_bos_and_eos(tokenizer):
    bos, eos = tokenizer.special["bos"], tokenizer.special["eos"]
    assert Text("ab").tokens(tokenizer, Rendering()) == ([bos, 97, 98, eos], [False, True, True, True])
    assert Text("ab").tokens(tokenizer, Rendering(bos=False, eos=False)) == ([97, 98], [True, True])
    assert Text("ab").tokens(tokenizer, Rendering(learn="answers")) == ([bos, 97, 98, eos], [False] * 4)
    ids, learnt = Example("ab", "c").tokens(tokenizer, Rendering(learn="answers"))
    assert (ids, learnt) == ([bos, 97, 98, 99, eos], [False, False, False, True, True])


@pytest.mark.parametrize("learn", ["everything", "answers"])
def test_the_end_of_an_empty_answer_is_learnt(learn, tokenizer):
    """Or a model that should say nothing never learns to stop."""
    bos, eos, end = (tokenizer.special[name] for name in ("bos", "eos", "end_of_turn"))
    all_learnt = learn == "everything"
    for answer, prompt_eos in itertools.product(("", "c"), (False, True)):
        rendering = Rendering(learn=learn, prompt_eos=prompt_eos)
        ids, learnt = Example("ab", answer).tokens(tokenizer, rendering)
        assert ids == [bos, 97, 98, *[eos] * prompt_eos, *answer.encode(), eos]
        assert learnt == [False, *[all_learnt] * (2 + prompt_eos), *[True] * (len(answer) + 1)]
    assert Text("").tokens(tokenizer, Rendering(learn=learn)) == ([bos, eos], [False, all_learnt])
    picture = Picture(np.zeros((1, 1, 1), np.float32), "", 0)
    assert picture.tokens(tokenizer, Rendering(learn=learn)) == ([bos, eos], [False, True])
    ids, learnt = Conversation((Message("user", "q"), Message("assistant", ""))).tokens(
        tokenizer, Rendering(learn=learn)
    )
    assert (ids[-1], learnt[-1]) == (end, True)


@pytest.mark.parametrize("learn", ["everything", "answers"])
def test_conversations_are_rendered_by_the_template(tokenizer, learn):
    ids, learnt = DOCUMENTS[1].tokens(tokenizer, Rendering(learn=learn))
    want, answers = ChatTemplate().render(tokenizer, DOCUMENTS[1].messages)
    assert ids == want
    assert learnt == (answers if learn == "answers" else [True] * len(ids))


def test_what_was_encoded_in_a_batch_renders_the_same(tokenizer):
    encoded = Encoded(tokenizer, DOCUMENTS)
    for document in [*DOCUMENTS, Text("not met before")]:
        assert document.tokens(encoded, Rendering()) == document.tokens(tokenizer, Rendering())


def test_the_strings_make_up_the_text():
    for document in DOCUMENTS:
        assert all(string in document.text() for string in document.strings())


def test_a_tokenizer_without_bos_is_refused_unless_none_is_asked_for():
    bare = Tokenizer(byte_level(bytes_first((), ())), {"eos": 256}, "letters")
    with pytest.raises(InputError, match=r"no special token 'bos' for texts: set rendering.bos=False"):
        Text("a").tokens(bare, Rendering())
    assert Text("a").tokens(bare, Rendering(bos=False))[0] == [97, 256]
    assert bare.padding == 256


def test_a_template_s_own_words_count_as_text_too():
    """Where the tokenizer is lossy, bytes are counted text by text as they were encoded."""
    words = WordPiece(80).train(["ab cd ab cd abcd user"] * 9)
    template = Jinja("{% for m in messages %}{{ m.role + ': ' + m.content + ' ' + eos_token }}{% endfor %}")
    said = Conversation((Message("user", "ab  cd"), Message("assistant", "abcd")))
    made = corpus([said, Text("ab é")], words, Rendering(template=template))
    assert made.bytes is not None
    eos = words.special["eos"]
    counts = {at: made.bytes[a:b].sum() for at, (a, b) in enumerate(zip(made.offsets, made.offsets[1:], strict=False))}
    assert counts == {0: len("user: ab  cd assistant: abcd "), 1: len("ab é".encode())}
    assert not made.bytes[made.tokens == eos].any()


@pytest.mark.parametrize("template", [ChatTemplate(), Alpaca()])
def test_a_message_with_the_weight_0_is_not_learnt_whatever_else_is(tokenizer, template):
    """Neither what it says nor the token that ends it; with `learn='everything'` the rest is."""
    bad, good = Message("assistant", "bad", weight=0), Message("assistant", "good")
    said = Conversation((Message("user", "q"), bad, Message("user", "r"), good))
    ids, learnt = said.tokens(tokenizer, Rendering(learn="answers", template=template))
    everything = said.tokens(tokenizer, Rendering(template=template))
    assert everything[0] == ids
    end = template.end_of_turn(tokenizer)
    assert [i for i, yes in zip(ids, learnt, strict=True) if yes] == [*b"good", end]
    at = bytes(i if i < 256 else 0 for i in ids).index(b"bad")
    assert [i for i, yes in enumerate(everything[1]) if not yes] == [at, at + 1, at + 2, at + 3]


def test_reasoning_is_among_the_strings_and_changes_no_digest_of_others():
    plain = Message("user", "q")
    assert repr(plain) == "Message(role='user', content='q', calls=(), input='')"
    thought = Message("assistant", "a", reasoning="r", weight=0)
    assert repr(thought) == "Message(role='assistant', content='a', calls=(), input='', reasoning='r', weight=0)"
    for document in (Conversation((plain, thought)), Preference((plain, thought), "b", "c")):
        assert document.strings()[:3] == ("q", "r", "a")


@pytest.mark.parametrize(
    ("message", "why"),
    [
        (dict(role="user", reasoning="r"), "only the assistant reasons, not the user"),
        (dict(role="tool", weight=0), "only what the assistant says has a weight"),
        (dict(role="assistant", weight=0.5), "the weight of a message is 0 or 1, not 0.5"),
    ],
)
def test_messages_that_cannot_be(message, why):
    with pytest.raises(InputError, match=why):
        Message(content="", **message)
