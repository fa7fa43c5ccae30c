import pytest

from llm_jax.data.documents import Conversation, Encoded, Example, Rendering, Text
from llm_jax.text.chat import ChatTemplate, Message

DOCUMENTS = [
    Text("plain text"),
    Conversation((Message("user", "hi"), Message("assistant", "yo <|eos|>"))),
    Example("1+1=", "2"),
    Text(""),
]


def test_texts_and_examples_lie_between_bos_and_eos(tokenizer):
    bos, eos = tokenizer.special["bos"], tokenizer.special["eos"]
    assert Text("ab").tokens(tokenizer, Rendering()) == ([bos, 97, 98, eos], [False, True, True, True])
    assert Text("ab").tokens(tokenizer, Rendering(bos=False, eos=False)) == ([97, 98], [True, True])
    assert Text("ab").tokens(tokenizer, Rendering(learn="answers")) == ([bos, 97, 98, eos], [False] * 4)
    ids, learnt = Example("ab", "c").tokens(tokenizer, Rendering(learn="answers"))
    assert (ids, learnt) == ([bos, 97, 98, 99, eos], [False, False, False, True, True])


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
