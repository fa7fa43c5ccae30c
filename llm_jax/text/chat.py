"""Conversations as tokens, and which of those tokens the assistant says."""

from __future__ import annotations

import dataclasses
import datetime
import functools
import json
from collections.abc import Mapping, Sequence
from typing import Any

from absl import logging

from llm_jax.core.errors import InputError, nearest
from llm_jax.core.parts import Part
from llm_jax.core.returned import unusable
from llm_jax.text import calls, jinja
from llm_jax.text.calls import Call
from llm_jax.text.guard import Names, encoded
from llm_jax.text.special import ROLES
from llm_jax.text.tokenizer import Tokenizer
from llm_jax.text.traced import OTHER, TEMPLATE, Traced, calls_of, content_of, trace
from llm_jax.text.turns import Turns, shared


@dataclasses.dataclass(frozen=True)
class Message:
    """What one side says. `role` is system, user, assistant or tool; an assistant may end its turn with calls of tools.

    What a tool answers is a message too: the first answers the first call that has none yet. The `input` of an
    instruction is how its content ends, below an empty line: a template may write it apart (`Alpaca`).

    Attributes:
      reasoning: what the assistant thinks before it says the content; only some templates have a place for it.
      weight: 0 keeps what the assistant says here out of the loss.

    Raises:
      InputError: there is no such role, the content does not end with the input, another than the assistant calls,
        reasons or has the weight 0, or the weight is neither 0 nor 1.
    """

    role: str
    content: str
    calls: tuple[Call, ...] = ()
    input: str = ""
    reasoning: str = ""
    weight: int = 1

    def __post_init__(self):
        if self.input and not self.content.endswith(f"\n\n{self.input}"):
            raise InputError("the content of a message must end with its input, below an empty line")
        if self.role not in ROLES:
            raise InputError(f"no role named {self.role!r} in a conversation: {nearest(self.role, ROLES)}")
        if self.calls and self.role != "assistant":
            raise InputError(f"only the assistant calls tools, not the {self.role}")
        if self.reasoning and self.role != "assistant":
            raise InputError(f"only the assistant reasons, not the {self.role}")
        if self.weight not in (0, 1):
            raise InputError(f"the weight of a message is 0 or 1, not {self.weight}")
        if not self.weight and self.role != "assistant":
            raise InputError(f"only what the assistant says has a weight, not what the {self.role} does")

    def __repr__(self) -> str:
        """Without what says nothing: documents are told apart by the hash of this."""
        always = ("role", "content", "calls", "input")
        said = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        shown = [
            f"{f.name}={said[f.name]!r}"
            for f in dataclasses.fields(self)
            if f.name in always or said[f.name] != f.default
        ]
        return f"Message({', '.join(shown)})"

    @classmethod
    def asked(cls, instruction: str, input: str = "") -> Message:
        """What a user asks for, and what it is to be done with."""
        return cls("user", f"{instruction}\n\n{input}" if input else instruction, input=input)

    @property
    def instruction(self) -> str:
        """The content without the input."""
        return self.content.removesuffix(f"\n\n{self.input}") if self.input else self.content

    @classmethod
    def reply(cls, text: str) -> Message:
        """The assistant's turn that a model wrote."""
        return cls("assistant", *calls.read(text))

    def text(self) -> str:
        """The whole turn, with its calls and without its reasoning."""
        return calls.write(self.content, self.calls)


NO_REASONING = (
    "has no place for the assistant's reasoning: set data.rendering.template to one that writes it, such as the Jinja "
    "of Qwen 3, or write it in the content, between <think> and </think>"
)


@dataclasses.dataclass(frozen=True)
class ChatTemplate(Part):
    """`bos`, then for each message the token of its role, its text, `end_of_turn`.

    All of these are special tokens, so no text can end its turn or take another role. Tools that the assistant may call
    are a message of the system, a line each.
    """

    def tokens(self) -> tuple[str, ...]:
        """The special tokens that it writes, besides those that every tokenizer trained here has."""
        return ()

    def end_of_turn(self, tokenizer: Tokenizer) -> int | None:
        """The special token that it puts after what the assistant says; None, with a warning, if that is not known."""
        try:
            ids, learn = rendered(self, tokenizer, [Message("user", "a"), Message("assistant", "b")])
        except InputError as error:
            logging.warning("the token that ends a turn is not known: %s", error)
            return None
        learnt = [i for i, yes in zip(ids, learn, strict=True) if yes]
        return learnt[-1] if learnt and learnt[-1] in tokenizer.special.values() else None

    def ending(self, tokenizer: Tokenizer) -> Tokenizer:
        """The tokenizer, to which the end of this template's turns is one too: a model may say it, and stops there."""
        known = {*self.tokens()} & tokenizer.special.keys()
        end = self.end_of_turn(tokenizer) if known else None
        return tokenizer if end is None or end in tokenizer.ends else tokenizer.having(ends=(end,))

    def render(
        self, tokenizer: Tokenizer, messages: Sequence[Message], reply: bool = False, tools: Sequence[str] = (),
        live: bool = False,
    ) -> tuple[list[int], list[bool]]:  # fmt: skip
        """The tokens, and which of them are to be learnt: the assistant's texts and the `end_of_turn` after each.

        With `reply` the assistant's role token comes last, for a model to go on from. Each of `tools` is a JSON object
        that describes one (as in OpenAI's interface). A conversation that is `live` is held now: where a template
        writes the date, that is today's; in data it is always the same, so that a run sees the same tokens when it goes
        on tomorrow, and again where the cache is gone. Nothing is learnt of a message with the weight 0.

        Raises:
          InputError: the tokenizer lacks one of the special tokens, or the template has no place for reasoning.
        """
        if any(message.reasoning for message in messages):
            raise InputError(f"{type(self).__name__} {NO_REASONING}")

        def special(name: str) -> int:
            return _token(self, tokenizer.special, name)

        ids, learn = [special("bos")], [False]
        if tools:
            messages = [Message("system", "\n".join(tools)), *messages]
        texts = tokenizer.encode_batch([message.text() for message in messages])
        for message, text in zip(messages, texts, strict=True):
            said = [*text, special("end_of_turn")]
            ids += [special(message.role), *said]
            learn += [False] + [message.role == "assistant" and message.weight == 1] * len(said)
        if reply:
            ids, learn = [*ids, special("assistant")], [*learn, False]
        return ids, learn


def rendered(
    template: ChatTemplate, tokenizer: Tokenizer, messages: Sequence[Message], reply: bool = False,
    tools: Sequence[str] = (), live: bool = False,
) -> tuple[list[int], list[bool]]:  # fmt: skip
    """`template.render(...)`; what a user's own template returns is looked at first.

    Raises:
      InputError: as `ChatTemplate.render`; or it returned anything but token ids with a mask of the same length.
    """
    given: Any = template.render(tokenizer, messages, reply, tools, live)
    if type(template).__module__.startswith("llm_jax."):
        return given
    name = f"{type(template).__name__}.render()"
    wanted = f"a list of token ids from 0 to {tokenizer.vocabulary - 1}, and one of as many booleans: what is learnt"
    if not (isinstance(given, tuple) and len(given) == 2 and all(isinstance(side, Sequence) for side in given)):
        raise unusable(name, given, wanted)
    ids, learn = given
    if len(ids) != len(learn):
        raise unusable(name, f"{len(ids)} ids and {len(learn)} booleans", wanted)
    if not all(isinstance(i, int) and 0 <= i < tokenizer.vocabulary for i in ids):
        raise unusable(name, ids, wanted)
    return list(ids), list(learn)


@dataclasses.dataclass(frozen=True)
class Jinja(ChatTemplate):
    """A template in the language of Hugging Face's `chat_template`, with the same tokens as `transformers` makes of it.

    Special tokens that the template writes become their ids; in a content they are text like any other (but for the
    tokenizer's `marks` in what the assistant says, which a model wrote). Tokens of the
    text between two special tokens may span a content and what the template writes beside it, as in `transformers`;
    one is the assistant's if its last character is. So is the special token after a content, where only white space
    lies between. What a template rewrites (as Qwen 3's does what is between `<think>` and `</think>`), a turn with
    reasoning, without content, or with calls of tools is learnt from where a reply would begin to the special token
    that ends it.

    Attributes:
      source: the template.
      needs: special tokens that it writes, which a tokenizer must have.
      lstrip, rstrip: those of them that swallow the white space before, or after, them.
    """

    source: str
    needs: tuple[str, ...] = ()
    lstrip: tuple[str, ...] = ()
    rstrip: tuple[str, ...] = ()

    def tokens(self):
        return self.needs

    def render(
        self, tokenizer: Tokenizer, messages: Sequence[Message], reply: bool = False, tools: Sequence[str] = (),
        live: bool = False,
    ) -> tuple[list[int], list[bool]]:  # fmt: skip
        """As `ChatTemplate.render`.

        Raises:
          InputError: the tokenizer lacks a special token, the template refuses the conversation, or has no place for
            its tools, their calls or the reasoning of the last turn, or (but for a `reply`) it rewrites what the
            assistant says, and what comes before, so that what is to be learnt cannot be told, or writes calls in a
            form in which `Message.reply` would not read them; or it makes special tokens in a way in which they cannot
            be told from those that a text spells.
        """
        names = Names(tokenizer.special, tokenizer.marks)
        for name in self.needs:
            _token(self, tokenizer.special | tokenizer.marks, name)
        fields = jinja.reasoning_fields(self.source)
        if any(message.reasoning for message in messages) and not fields:
            raise InputError(f"the chat template {NO_REASONING}")
        said = _traced(messages, fields)
        described = trace([json.loads(tool) for tool in tools], OTHER)
        variables = {
            f"{name}_token": Traced(names.roles[name], TEMPLATE)
            for name in ("bos", "eos", "pad", "unk", "mask")
            if name in names.roles
        }
        today = datetime.datetime.now() if live else jinja.DATE

        def write(messages: Sequence[Mapping[str, Any]], reply: bool = True) -> Traced:
            return jinja.write(self.source, messages, reply, variables, described, today)

        written = write(said, reply)
        if messages and messages[-1].reasoning and not reply:  # of earlier turns many templates leave it out
            bare = [*said[:-1], {name: value for name, value in said[-1].items() if name not in fields}]
            if write(bare, reply) == written:
                raise InputError("the chat template leaves out the reasoning of the last turn")
        assistant = [turn for turn, message in enumerate(messages) if message.role == "assistant"]
        found = [*names.find(written, {of(turn) for turn in assistant for of in (content_of, calls_of)})]
        opening = _opening(self.source, tuple(variables.items())) if assistant else Traced()
        turns = Turns(written, found, opening, lambda turn: write(said[:turn]))
        learnt = [False] * len(written)
        for turn in assistant:
            message = messages[turn]
            wanted = message.weight == 1 and not reply
            begin = end = 0
            if message.calls:
                begin, end = turns.calls(turn, message.calls, wanted)
            elif message.weight:
                begin, end = turns.content(turn, message.content, wanted)
            if message.weight:
                learnt[begin:end] = [True] * (end - begin)
        ids = [*encoded(tokenizer, str.__str__(written), found, self.lstrip, self.rstrip)]
        return [i for i, _ in ids], [at >= 0 and learnt[at] for _, at in ids]


def _token(template: ChatTemplate, special: Mapping[str, int], name: str) -> int:
    if name not in special:
        raise InputError(
            f"{type(template).__name__} writes a special token {name!r}, which this tokenizer lacks: set "
            "data.rendering.template to one that it was made for, or to Alpaca(), which needs none for turns"
        )
    return special[name]


@functools.lru_cache(maxsize=16)
def _opening(source: str, variables: tuple[tuple[str, Traced], ...]) -> Traced:
    """What the template adds to a question for a reply to begin; nothing, if that cannot be asked."""
    asked = _traced([Message("user", "a")])
    try:
        without, opened = (jinja.write(source, asked, reply, dict(variables)) for reply in (False, True))
    except InputError:
        return Traced()
    return opened[shared(opened, without) :]


def _traced(messages: Sequence[Message], reasoning: Sequence[str] = ()) -> list[dict[str, Any]]:
    """The messages as templates get them, with reasoning in each of the `reasoning` fields.

    Calls are numbered, and answers have the numbers of the calls.
    """
    said, waiting, number = [], [], 0
    for turn, message in enumerate(messages):
        content, called = content_of(turn), calls_of(turn)
        record: dict[str, Any] = dict(content=Traced(message.content, content))
        if message.reasoning:
            record |= dict.fromkeys(reasoning, Traced(message.reasoning, content))
        if message.input:
            apart = dict(instruction=message.instruction, input=message.input)
            record |= trace(apart, content)
        if message.role == "tool" and waiting:
            record |= waiting.pop(0)
        for call in message.calls:
            known = dict(
                tool_call_id=f"call{number:05}", name=Traced(call.name, OTHER)
            )  # nine letters, as Mistral asks
            function = trace(dict(name=call.name, arguments=json.loads(call.arguments)), called)
            record.setdefault("tool_calls", []).append(
                dict(id=known["tool_call_id"], type="function", function=function)
            )
            waiting.append(known)
            number += 1
        said.append(trace(dict(role=message.role, **record), TEMPLATE))
    return said


@dataclasses.dataclass(frozen=True)
class ChatML(Jinja):
    """`<|im_start|>` and the role, the content, `<|im_end|>`."""

    source: str = jinja.CHATML
    needs: tuple[str, ...] = ("<|im_start|>", "<|im_end|>")


@dataclasses.dataclass(frozen=True)
class Llama3(Jinja):
    """Meta's: the role between `<|start_header_id|>` and `<|end_header_id|>`, the content trimmed, `<|eot_id|>`."""

    source: str = jinja.LLAMA3
    needs: tuple[str, ...] = ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")


@dataclasses.dataclass(frozen=True)
class Alpaca(Jinja):
    """Stanford's two prompts in plain text, with or without an input, for tokenizers without tokens for turns.

    They are of one turn; here `### Instruction:` may follow again, and a system's message is said in place of theirs.
    """

    source: str = jinja.ALPACA


TEMPLATES = dict(ChatTemplate=ChatTemplate, Jinja=Jinja, ChatML=ChatML, Llama3=Llama3, Alpaca=Alpaca)
