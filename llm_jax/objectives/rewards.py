"""How good a completion is: functions of texts, which policies are trained on and reports measure."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import sys
from collections.abc import Mapping, Sequence
from types import FunctionType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from llm_jax.core.errors import InputError, nearest
from llm_jax.core.parts import conform
from llm_jax.core.serialization import resolve
from llm_jax.core.user_modules import module_name, user_modules
from llm_jax.data.answers import answer_of, as_answered, known_answer, without_thought
from llm_jax.data.documents import Conversation, Document, Example, Preference, Rendering
from llm_jax.layers.tokens import PADDING, Tokens
from llm_jax.models.heads import Scorer
from llm_jax.models.pretrained import Pretrained
from llm_jax.objectives.reward import Reward, check_order
from llm_jax.text.chat import Message
from llm_jax.text.tokenizer import Tokenizer

GIVEN: dict[str, FunctionType] = {}  # the functions that this process was handed, by the names that manifests keep


@dataclasses.dataclass(frozen=True)
class Function(Reward):
    """A plain function `f(prompts, completions, examples)` that returns a number for each completion.

    It may ask for more by name, as any `Reward`: `f(prompts, completions, examples, completion_ended, nums=None)`.

    `name` is "module:function", or "file.py:function" of a file that was run: an experiment's own, or with --modules.
    Of this project only the files of experiments have such functions.

    Raises:
      InputError: where it is asked, the file was not run, or has no such function.
    """

    name: str

    def __post_init__(self) -> None:
        file, _, function = self.name.rpartition(":")
        if file.endswith(".py"):
            object.__setattr__(self, "name", f"{module_name(file)}:{function}")

    @classmethod
    def of(cls, function: FunctionType) -> Function:
        """The part that stands for a function in an experiment.

        Raises:
          InputError: its name does not say which it is, so that no manifest could keep it.
        """
        if not function.__qualname__.isidentifier():  # of a lambda, or within another function
            raise InputError(
                f"the reward {function.__qualname__} has no name that a manifest could keep: write it with def, at the "
                "top of your file"
            )
        made = cls(f"{function.__module__}:{function.__name__}")
        GIVEN[made.name] = function
        return made

    def __call__(self, prompts, completions, examples, **more):
        return self._found()(prompts, completions, examples, **more)

    def called(self):
        return self.name.rpartition(":")[2]

    def signature(self):
        return inspect.signature(self._found())

    def check(self):
        check_order(self.signature(), self.called())

    def _found(self) -> FunctionType:
        if self.name in GIVEN:
            return GIVEN[self.name]
        found = resolve(self.name, user_modules(), "a reward")
        if not isinstance(found, FunctionType) or self.name.startswith("llm_jax."):
            module = sys.modules[self.name.rpartition(":")[0]]
            theirs = [f for f in vars(module).values() if isinstance(f, FunctionType)]
            own = [f.__name__ for f in theirs if f.__module__ == module.__name__]
            raise InputError(
                f"a reward names {self.name!r}, which is no function of an experiment or a file of yours: "
                f"{nearest(self.called(), own)}"
            )
        return found


def as_reward(given: Reward | FunctionType) -> Reward:
    """The reward itself, or that which asks a plain function.

    Raises:
      InputError: it is neither: a class, a bound method, an object that can be called.
    """
    if isinstance(given, FunctionType):
        return Function.of(given)
    if isinstance(given, Reward):
        return given
    raise InputError(
        f"a reward is a function written with def, or a Reward, whose settings a manifest keeps: "
        f"{given!r:.60} is neither. Make its class one: a frozen dataclass that extends "
        "llm_jax.objectives.reward.Reward, with its settings as fields"
    )


@dataclasses.dataclass(frozen=True)
class ExactAnswer(Reward):
    """1 where the completion, without white space around it, is the answer that is known; else 0.

    That is an example's answer; of a conversation its `answer`, or else its final reply. In a training or a report it
    reads as what a model says that says exactly what it was taught (`llm_jax.data.answers`). What a completion thinks,
    up to the last `</think>`, is not compared, unless the answer that is known has a thought in it.

    Raises:
      InputError: no answer is known to a document.
    """

    def __call__(self, prompts, completions, examples):
        return _exact(completions, examples, {e: text for e in {*examples} if (text := known_answer(e)) is not None})

    def check_prompts(self, documents):
        if without := sum(known_answer(document) is None for document in documents):
            raise InputError(f"{NO_ANSWER}: {without} of {len(documents)} have none")

    def ready(self, tokenizer, rendering, frozen):
        return _Comparing(tokenizer, rendering)


@dataclasses.dataclass(frozen=True)
class _Comparing(Reward):
    """`ExactAnswer` where it is known how texts became tokens, and so what they read when they are texts again."""

    tokenizer: Tokenizer
    rendering: Rendering

    def __call__(self, prompts, completions, examples):
        known = {e: answer for e in {*examples} if (answer := answer_of(e, self.tokenizer, self.rendering))}
        return _exact(completions, examples, {e: answer.taught for e, answer in known.items()})

    def called(self):
        return ExactAnswer.__name__


NO_ANSWER = (
    "ExactAnswer needs documents to which one answer is known: examples, and conversations with an answer or a reply "
    "at the end"
)


def _exact(completions: Sequence[str], examples: Sequence[Document], wanted: Mapping[Document, str]) -> np.ndarray:
    if any(example not in wanted for example in examples):
        raise InputError(NO_ANSWER)
    same = [
        without_thought(as_answered(example, text), wanted[example]).strip() == wanted[example].strip()
        for example, text in zip(examples, completions, strict=True)
    ]
    return np.array(same, np.float64)


@dataclasses.dataclass(frozen=True)
class ModelReward(Reward):
    """The score that a reward model, the Scorer of another run, gives to the prompt with its completion.

    It reads what it would have been trained on: an example with this answer, or the conversation with this reply; but
    of a completion that was cut off, nothing that would end it. Text may become more tokens than it was drawn as (a
    byte that is no character is one token drawn, and three read): of what has no room then the judge reads the
    beginning, and a warning counts such completions.

    Raises:
      InputError: the run's model is no Scorer, or a text is longer than it reads.
    """

    judge: Pretrained

    def check_room(self, longest, tokens, tokenizer, rendering):
        scorer = conform(self.judge.model, Scorer, f"the model of {self.judge.run}")
        reply = _reply_in(completed(longest, "a"), tokenizer, rendering)
        closing = len(reply.ids) - reply.after
        if (most := scorer.limit()) is not None and tokens + closing > most:
            beside = f", and {closing} that close it" if closing else ""
            raise InputError(
                f"the reward model of {self.judge.run} reads {most} tokens, and the longest prompt has with its "
                f"completion {tokens}{beside}: set data.length={most - closing} or less, or lower data.max_tokens"
            )

    def ready(self, tokenizer, rendering, frozen):
        scorer = conform(self.judge.model, Scorer, f"the model of {self.judge.run}")
        return _Judging(scorer, self.judge.params(frozen), tokenizer, rendering)


@dataclasses.dataclass(frozen=True)
class _Judging(Reward):
    """A reward model at work."""

    scorer: Scorer
    params: Any
    tokenizer: Tokenizer
    rendering: Rendering

    def __call__(
        self, prompts: Any, completions: Any, examples: Any, completion_ended: Any = True,
        completion_lengths: Any = None,
    ):  # fmt: skip
        whole = [completed(example, text) for example, text in zip(examples, completions, strict=True)]
        read = [_reply_in(document, self.tokenizer, self.rendering) for document in whole]
        ended_B = np.broadcast_to(completion_ended, len(read))
        ids = [reply.ids if ended else reply.ids[: reply.end] for reply, ended in zip(read, ended_B, strict=True)]
        most = self.scorer.limit()
        if most is not None and (longer := [row for row, text in enumerate(ids) if len(text) > most]):
            if completion_lengths is not None:  # those that were drawn as no more tokens than fit are cut, not refused
                drawn = {row: read[row].begin + completion_lengths[row] for row in longer}
                closing = {row: len(ids[row]) - read[row].after for row in longer if ended_B[row]}
                longer = [row for row in longer if drawn[row] + closing.get(row, 0) > most]
            if longer:
                longest = max(len(ids[row]) for row in longer)
                raise InputError(
                    f"a completion has {longest} tokens with its prompt, the reward model reads {most}: lower "
                    "data.length or data.max_tokens, of a report its max_tokens"
                )
            logging.warning(
                "%d of %d completions are more tokens when their text is read again than when they were drawn: of "
                "such the reward model reads the first %d, prompt included",
                sum(len(text) > most for text in ids), len(ids), most,
            )  # fmt: skip
            ids = [text[:most] for text in ids]
        longest = max(map(len, ids))
        padded = min(1 << (longest - 1).bit_length(), most or longest * 2)  # so that few lengths are compiled
        ids_BT, real_BT = np.zeros((len(ids), padded), np.int32), np.zeros((len(ids), padded), bool)
        for row, text in enumerate(ids):
            ids_BT[row, : len(text)], real_BT[row, : len(text)] = text, True
        return np.asarray(_scores(self.scorer, self.params, ids_BT, real_BT), np.float64)


class _Reply(NamedTuple):
    """A document that ends with a reply.

    Attributes:
      begin, end: the reply's tokens are `ids[begin:end]`.
      after: where what is learnt ends: after the token that ends the reply, if one does.
    """

    ids: list[int]
    begin: int
    end: int
    after: int


def _reply_in(document: Document, tokenizer: Tokenizer, rendering: Rendering) -> _Reply:
    ids, learnt = document.tokens(tokenizer, dataclasses.replace(rendering, learn="answers"))
    after = max((i + 1 for i, learns in enumerate(learnt) if learns), default=len(ids))
    begin = max((i + 1 for i, learns in enumerate(learnt[:after]) if not learns), default=0)
    return _Reply(ids, begin, after - (after > begin and ids[after - 1] in tokenizer.ends), after)


@functools.partial(jax.jit, static_argnums=0)
def _scores(scorer: Scorer, params: Any, ids_BT: jax.Array, real_BT: jax.Array) -> jax.Array:
    at = Tokens(Tokens.of(ids_BT.shape).position_BT, jnp.where(real_BT, 0, PADDING))
    scores: Any = scorer.apply({"params": params}, ids_BT, at, method="reward")
    return scores


def completed(document: Document, completion: str) -> Document:
    """The document with this as the example's answer, or as the assistant's reply at the end.

    Raises:
      InputError: it has no place for an answer.
    """
    if isinstance(document, Example):
        return dataclasses.replace(document, answer=completion)
    if isinstance(document, Conversation):
        return dataclasses.replace(document, messages=(*document.asked, Message("assistant", completion)))
    if isinstance(document, Preference):
        return Conversation((*document.messages, Message("assistant", completion)))
    raise InputError(f"a {type(document).__name__} has no place for an answer: use examples or conversations")


REWARDS = dict(ExactAnswer=ExactAnswer, Function=Function, ModelReward=ModelReward)
