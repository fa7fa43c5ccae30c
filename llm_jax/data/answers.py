"""The answer that is known to a document, as a model says it: what a model's own answer is compared with."""

from __future__ import annotations

import dataclasses

from llm_jax.data.documents import Conversation, Document, Example, Picture, Rendering
from llm_jax.text.chat import Jinja, Message
from llm_jax.text.tokenizer import UNKNOWN, Tokenizer

THOUGHT = "</think>"  # what ends a thought


@dataclasses.dataclass(frozen=True)
class Answer:
    """An answer.

    Attributes:
      text: as the document has it.
      taught: what a model writes that says exactly what it was taught: templates trim, tokenizers space words out.
        The empty thought that a template writes before an answer is left out.
      tokens: how many tokens that is, with the empty thought, and without the token that ends it.
      sayable: whether a model can write it at all. If the tokenizer knows no token for a part of it, what is taught
        has [UNK] there, which is no answer: `taught` is the text then, which no model writes.
      thinks: whether a model may think before it gives the answer, so that `tokens` says nothing of how long it writes.
    """

    text: str
    taught: str
    tokens: int
    sayable: bool
    thinks: bool = False


def known_answer(document: Document) -> str | None:
    """An example's answer, a picture's caption; of a conversation `answer`, or else its final reply; None: none is."""
    match document:
        case Example():
            return document.answer
        case Picture():
            return document.caption
        case Conversation() if document.answer is not None:
            return document.answer
        case Conversation() if document.messages and document.messages[-1].role == "assistant":
            return document.messages[-1].text()
        case _:
            return None


def answer_of(document: Document, tokenizer: Tokenizer, rendering: Rendering, anew: bool = False) -> Answer | None:
    """The answer that is known to a document; None where none is.

    Args:
      anew: whether what is written is no continuation of the prompt, as a translation is none.

    Raises:
      InputError: the template cannot write it.
    """
    text = known_answer(document)
    if text is None:
        return None
    if isinstance(document, Conversation):
        said = document.messages[-1] if document.answer is None else Message("assistant", document.answer)
        document = dataclasses.replace(document, messages=(*document.asked, dataclasses.replace(said, weight=1)))
    ids, learnt = document.tokens(tokenizer, dataclasses.replace(rendering, learn="answers"))
    end = max((i + 1 for i, learns in enumerate(learnt) if learns), default=0)
    begin = max((i + 1 for i, learns in enumerate(learnt[:end]) if not learns), default=0)
    if end > begin and ids[end - 1] in tokenizer.ends:
        end -= 1
    stream = tokenizer.stream()
    for token in () if anew or isinstance(document, Conversation) else ids[:begin]:
        stream.push(token)
    taught = as_answered(document, "".join([*map(stream.push, ids[begin:end]), stream.flush()]))
    if THOUGHT not in text:
        taught = without_thought(taught)
    thinks = isinstance(document, Conversation) and _thinks(tokenizer, rendering)
    sayable = UNKNOWN.decode() not in taught or UNKNOWN.decode() in text
    return Answer(text, taught if sayable else text, end - begin, sayable, thinks)


def as_answered(document: Document, text: str) -> str:
    """What a model wrote in answer to a document. A call of a tool is the same call however its JSON is spaced."""
    return Message.reply(text).text() if isinstance(document, Conversation) else text


def without_thought(said: str, wanted: str = "") -> str:
    """What a model said after it thought, to be compared with `wanted`; the whole, if a thought is wanted too.

    Line breaks stand between a thought and what is said: there are as many as `wanted` begins with.
    """
    if THOUGHT not in said or THOUGHT in wanted:
        return said
    before = wanted[: len(wanted) - len(wanted.lstrip("\n"))]
    return before + said.rpartition(THOUGHT)[2].lstrip("\n")


def _thinks(tokenizer: Tokenizer, rendering: Rendering) -> bool:
    """Whether the tokenizer or the template knows the end of a thought."""
    template = rendering.settled.template
    marked = THOUGHT in tokenizer.marks or THOUGHT in tokenizer.special
    return marked or (isinstance(template, Jinja) and THOUGHT in template.source)
