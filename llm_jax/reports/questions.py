"""What held-out documents ask of a finished model, and what it answers."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from llm_jax.core.errors import InputError
from llm_jax.core.parts import conform
from llm_jax.data.answers import Answer, answer_of, as_answered, without_thought
from llm_jax.data.documents import Conversation, Example
from llm_jax.data.pipeline import SplitName
from llm_jax.engine.trained import Finished
from llm_jax.inference.language_model import LanguageModel
from llm_jax.models.model import Generator, Translator


@dataclasses.dataclass(frozen=True)
class Question:
    prompt: str | Conversation
    answer: Answer
    room: int | None  # how many tokens the model can write after the prompt; None: there is no bound


@dataclasses.dataclass(frozen=True)
class Asked:
    """Questions of a split, of which `cut` are not asked whole; and how many have no room for an answer."""

    split: SplitName
    questions: list[Question]
    cut: int
    left_out: int

    def lines(self) -> list[str]:
        """What there is to say of these."""
        count, said = len(self.questions) + self.left_out, []
        if self.cut:
            said.append(f"  {self.cut} of {count} prompts are cut, as they are in the rows of the data")
        if self.left_out:
            said.append(f"  {self.left_out} of {count} prompts leave no room for an answer: they are left out")
        if longer := sum(q.room is not None and q.answer.tokens > q.room for q in self.questions):
            said.append(f"  {longer} answers have more tokens than there is room for: they cannot be given")
        return said

    def metrics(self) -> dict[str, float]:
        """How many were left out, where some were."""
        return {f"{self.split}_left_out": float(self.left_out)} if self.left_out else {}


def questions(finished: Finished, split: SplitName, limit: int) -> Asked:
    """The first `limit` (0: all) that the model can be asked.

    Raises:
      InputError: there are none.
    """
    lm = writing(finished)
    anew, cut, left_out = isinstance(lm.model, Translator), 0, 0
    found: list[Question] = []
    for document in finished.documents(split):
        if not isinstance(document, Example | Conversation):
            continue
        if answer := answer_of(document, finished.tokenizer, finished.rendering, anew):
            shown = finished.shortened(document)
            asked = shown.prompt if isinstance(shown, Example) else Conversation(shown.asked, shown.tools)
            if (room := lm.room(asked)) == 0:
                left_out += 1
                continue
            cut += shown is not document
            found.append(Question(asked, answer, room))
        if limit and len(found) == limit:
            break
    if not found and left_out:
        raise InputError(
            f"none of {left_out} {split} prompts leaves room for an answer in the model's context of {lm.context} "
            "tokens: raise data.length"
        )
    if not found:
        raise InputError(
            "answers can be judged of examples, and of conversations with an answer or a reply at the end, "
            f"and the {split} documents have none"
        )
    return Asked(split, found, cut, left_out)


def no_room(left_out: int, count: int, max_tokens: int) -> str:
    """The line of a report that says so many of its prompts were left out."""
    return f"  {left_out} of {count} prompts leave no room for max_tokens={max_tokens}: they are left out"


def writing(finished: Finished) -> LanguageModel:
    """The run as a language model that goes on from a text alone.

    Raises:
      InputError: it does not write, or not from text alone.
    """
    model = conform(finished.lm.model, Generator, "model")
    if model.beside():
        what = " and ".join(model.beside())
        raise InputError(f"a {type(model).__name__} reads {what} beside each prompt, and here are texts alone")
    model.ahead()
    return finished.lm


def answers(lm: LanguageModel, asked: Sequence[Question], batch: int) -> list[str]:
    """What the model answers greedily, without what it thinks before it.

    That is no longer than the longest answer wanted, and a token to end it, or than there is room after the prompt; a
    thought may fill the context.
    """
    thinks = any(q.answer.thinks for q in asked)
    longest = None if thinks else max(q.answer.tokens for q in asked) + 1
    given = []
    for some in (asked[i : i + batch] for i in range(0, len(asked), batch)):
        most = [min(bounds) for q in some if (bounds := [n for n in (longest, q.room) if n is not None])]
        said = lm.generate([q.prompt for q in some], max_tokens=most or None, temperature=0.0)
        for question, text in zip(some, said, strict=True):
            whole = text if isinstance(question.prompt, str) else as_answered(question.prompt, text)
            given.append(without_thought(whole, question.answer.taught))
    return given
