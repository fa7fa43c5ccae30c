"""What sources yield (texts, conversations, prompts with answers, pairs to compare, pictures), as token ids."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from llm_jax.core.errors import InputError
from llm_jax.core.parts import Part, Size, settings
from llm_jax.text.chat import ChatTemplate, Message, rendered
from llm_jax.text.special import frame
from llm_jax.text.tokenizer import Tokenizer

Ids = tuple[list[int], list[bool]]  # token ids of a document, and which of them are learnt


@dataclasses.dataclass(frozen=True)
class Rendering(Part):
    """How documents become token ids.

    `bos` and `eos` go around texts and examples; conversations are rendered by the `template`, which has its own.
    With `prompt_eos` the prompt of an example, and so the source of a translation, ends with `eos` as well (BART, T5).
    Between two texts of a `TextPair` stand as many `eos` as `separators` says (one; RoBERTa has two).
    `learn="answers"` puts the loss only on what the assistant says and on `Example.answer`: a plain text has no answer.
    Of pairs to compare, what is learnt is always what is compared. A message with the weight 0 is never learnt.

    None leaves a setting to the run that a training begins from (`init_from`). Where it begins from none, there is
    `bos` and `eos`, no `prompt_eos`, and the template is `ChatTemplate()`.
    """

    bos: bool | None = None
    eos: bool | None = None
    learn: Literal["everything", "answers"] = "everything"
    template: ChatTemplate | None = None
    prompt_eos: bool | None = None
    separators: Size | None = None

    @functools.cached_property
    def settled(self) -> _Settled:
        """The same with nothing left to another run: what documents are rendered by."""
        return _Settled(**{name: said for name in settings(self) if (said := getattr(self, name)) is not None})

    def after(self, before: Rendering) -> Rendering:
        """The same with what it leaves to another run as `before` says it; a manifest keeps this."""
        unsaid = {name: getattr(before.settled, name) for name in settings(self) if getattr(self, name) is None}
        return dataclasses.replace(self, **unsaid)

    def enclose(self, tokenizer: Tokenizer, ids: list[int], learnt: list[bool], end: bool) -> Ids:
        """The same between `bos` and `eos`; `end` says whether `eos` is learnt, which no token of an empty text can."""
        before = frame(tokenizer.special, "bos", self.settled.bos)
        after = frame(tokenizer.special, "eos", self.settled.eos)
        return before + ids + after, [False] * len(before) + learnt + [end] * len(after)


@dataclasses.dataclass(frozen=True)
class _Settled(Rendering):
    """A rendering that leaves nothing to another run. Its defaults are what is done where nothing is said."""

    bos: bool = True
    eos: bool = True
    template: ChatTemplate = ChatTemplate()
    prompt_eos: bool = False  # `separators` stays None, which is one: so say older manifests too


def _columns() -> Any:
    """The field `columns` of a document that may be a prompt: what a record says besides, by name, for rewards."""
    return dataclasses.field(default_factory=dict, kw_only=True, repr=False, compare=False)


class _Document:
    """What the kinds of documents share.

    Attributes:
      number: what is known of it besides its text: a class, a margin, several classes. None: nothing.
    """

    number: float | tuple[float, ...] | None = None

    def text(self) -> str:
        """All that it says."""
        raise NotImplementedError

    def group(self) -> str:
        """What it shares with documents that a split must not part from it: its prompt, where it has one."""
        return self.text()

    def groups(self) -> tuple[str, ...]:
        """All such things, where there are several."""
        return (self.group(),)

    def strings(self) -> tuple[str, ...]:
        """The strings that `parts` encodes: known beforehand, they are encoded in one parallel batch."""
        raise NotImplementedError

    def tokens(self, tokenizer: Tokenizer, rendering: Rendering) -> Ids:
        """Its token ids, and which of them are learnt."""
        raise NotImplementedError

    def parts(self, tokenizer: Tokenizer, rendering: Rendering) -> list[Ids]:
        """The texts that a corpus keeps of it, one after another: one, but for documents that compare several."""
        return [self.tokens(tokenizer, rendering)]


@dataclasses.dataclass(frozen=True)
class Text(_Document):
    """A plain text; `part_of` is the group of the document that it was taken from, if it is not one by itself."""

    content: str
    part_of: str | None = dataclasses.field(default=None, kw_only=True, repr=False, compare=False)

    def text(self) -> str:
        return self.content

    def group(self) -> str:
        return self.content if self.part_of is None else self.part_of

    def strings(self) -> tuple[str, ...]:
        return (self.content,)

    def tokens(self, tokenizer: Tokenizer, rendering: Rendering) -> Ids:
        ids = tokenizer.encode(self.content)
        learns = rendering.learn == "everything"
        return rendering.enclose(tokenizer, ids, [learns] * len(ids), learns)


@dataclasses.dataclass(frozen=True)
class Labelled(Text):
    """A text and its class, by name or by number, or another number that is known of it.

    A name has a number once the data knows the names of all classes, in their order (`Data.labels`).
    """

    label: int | float | str

    @property
    def number(self) -> float | None:
        return None if isinstance(self.label, str) else float(self.label)


@dataclasses.dataclass(frozen=True)
class MultiLabelled(Text):
    """A text and all the classes that it is of, by name or by number: several, one, or none."""

    labels: tuple[int | str, ...]

    @property
    def number(self) -> tuple[float, ...]:
        """Of the classes that have one; names have a number once the data knows all of them, in their order."""
        return tuple(float(label) for label in self.labels if not isinstance(label, str))


@dataclasses.dataclass(frozen=True)
class TextPair(_Document):
    """Two texts that are read together, such as a premise and a hypothesis, or a query and a passage.

    Between them stands `eos`. Pairs that share a text are held out together. Of the tokens those up to the second text
    are marked as learnt, which tells the two apart (`WithLabel`): nothing else is learnt of a pair than its label.

    Attributes:
      label: as of `Labelled`; None: it is not known.
    """

    first: str
    second: str
    label: int | float | str | None = None

    @property
    def number(self) -> float | None:
        return None if self.label is None or isinstance(self.label, str) else float(self.label)

    def text(self) -> str:
        return f"{self.first}\n{self.second}"

    def group(self) -> str:
        return self.first

    def groups(self) -> tuple[str, ...]:
        return self.first, self.second

    def strings(self) -> tuple[str, ...]:
        return self.first, self.second

    def tokens(self, tokenizer: Tokenizer, rendering: Rendering) -> Ids:
        first, second = (tokenizer.encode(text) for text in (self.first, self.second))
        first = joined(tokenizer.special, rendering.settled.separators, first)
        return rendering.enclose(tokenizer, first + second, [True] * len(first) + [False] * len(second), False)


def joined(special: Mapping[str, int], separators: int | None, first: list[int]) -> list[int]:
    """The first of two texts with what stands between them.

    Raises:
      InputError: the tokenizer has no `eos`.
    """
    if "eos" not in special:
        raise InputError("this tokenizer has no special token 'eos' to stand between two texts: train another")
    return first + frame(special, "eos", True) * (separators or 1)


def _said(messages: Sequence[Message]) -> tuple[str, ...]:
    return tuple(text for m in messages for text in (*([m.reasoning] if m.reasoning else []), m.text()))


def _opening(messages: Sequence[Message]) -> str:
    """What is said before the first reply that is learnt; everything, where there is none.

    It is the same for all replies to a prompt, and for each conversation and its beginning. An assistant that speaks
    first does not reply.
    """
    asked = [number for number, message in enumerate(messages) if message.role != "assistant"]
    first = asked[0] if asked else len(messages)
    replies = (i for i, m in enumerate(messages) if i > first and m.role == "assistant" and m.weight)
    return "\n".join(message.text() for message in messages[: next(replies, len(messages))])


@dataclasses.dataclass(frozen=True)
class Conversation(_Document):
    """Messages, and the JSON objects that describe the tools that the assistant may call (as in OpenAI's interface).

    Attributes:
      answer: what is known to be the right answer, for rewards and reports to compare with. No model reads it.
      columns: the other fields of its record, which rewards may ask for by name. No model reads them.
    """

    messages: tuple[Message, ...]
    tools: tuple[str, ...] = ()
    answer: str | None = None
    columns: Mapping[str, Any] = _columns()

    @property
    def asked(self) -> tuple[Message, ...]:
        """What a reply is to be written to: all of it, but for what the assistant says at the end."""
        ends = bool(self.messages) and self.messages[-1].role == "assistant"
        return self.messages[:-1] if ends else self.messages

    def text(self) -> str:
        return "\n".join(self.strings())

    def group(self) -> str:
        return _opening(self.messages)

    def strings(self) -> tuple[str, ...]:
        described = ("\n".join(self.tools),) if self.tools else ()
        return (*described, *_said(self.messages))

    def tokens(self, tokenizer: Tokenizer, rendering: Rendering) -> Ids:
        render = functools.partial(rendered, rendering.settled.template)
        ids, learnt = render(tokenizer, self.messages, tools=self.tools)
        if rendering.learn == "answers":
            return ids, learnt
        if all(message.weight for message in self.messages):
            return ids, [True] * len(ids)
        weighty = [dataclasses.replace(message, weight=1) for message in self.messages]
        _, all_learnt = render(tokenizer, weighty, tools=self.tools)
        return ids, [learns or not would for learns, would in zip(learnt, all_learnt, strict=True)]


@dataclasses.dataclass(frozen=True)
class Example(_Document):
    """A prompt and its answer, encoded apart, so that the prompt alone has the same ids when it is to be answered.

    `columns` are as those of a `Conversation`.
    """

    prompt: str
    answer: str
    columns: Mapping[str, Any] = _columns()

    def text(self) -> str:
        return self.prompt + self.answer

    def group(self) -> str:
        return self.prompt

    def strings(self) -> tuple[str, ...]:
        return self.prompt, self.answer

    def tokens(self, tokenizer: Tokenizer, rendering: Rendering) -> Ids:
        prompt, answer = tokenizer.encode(self.prompt), tokenizer.encode(self.answer)
        prompt = [*prompt, *frame(tokenizer.special, "eos", rendering.settled.prompt_eos)]
        learnt = [rendering.learn == "everything"] * len(prompt) + [True] * len(answer)
        return rendering.enclose(tokenizer, prompt + answer, learnt, True)


@dataclasses.dataclass(frozen=True)
class Preference(_Document):
    """A conversation up to a reply, and two replies, of which one is preferred: by `margin`, if that is known.

    It is two texts, the chosen and the rejected. Only the reply is learnt of them, not what was said before. `columns`
    are as those of a `Conversation`.

    Raises:
      InputError: a reply is blank.
    """

    messages: tuple[Message, ...]
    chosen: str
    rejected: str
    margin: float | None = None
    columns: Mapping[str, Any] = _columns()

    def __post_init__(self) -> None:
        for name in ("chosen", "rejected"):
            if not getattr(self, name).strip():
                raise InputError(f"the {name} reply of a preference is blank: there is nothing to compare")

    @property
    def number(self) -> float | None:
        return self.margin

    def text(self) -> str:
        return "\n".join(self.strings())

    def group(self) -> str:
        return _opening(self.messages) if self.messages else self.text()

    def strings(self) -> tuple[str, ...]:
        return (*_said(self.messages), self.chosen, self.rejected)

    def parts(self, tokenizer: Tokenizer, rendering: Rendering) -> list[Ids]:
        return [self._replied(tokenizer, rendering, reply) for reply in (self.chosen, self.rejected)]

    def _replied(self, tokenizer: Tokenizer, rendering: Rendering, reply: str) -> Ids:
        ids, learnt = rendered(rendering.settled.template, tokenizer, (*self.messages, Message("assistant", reply)))
        end = max((i + 1 for i, learns in enumerate(learnt) if learns), default=0)
        begin = max((i + 1 for i, learns in enumerate(learnt[:end]) if not learns), default=0)
        return ids, [begin <= i < end for i in range(len(ids))]  # the last thing that the assistant says


@dataclasses.dataclass(frozen=True)
class Comparison(_Document):
    """Two conversations, of which one is preferred as a whole: by `margin`, if that is known. All of both is learnt.

    Those that begin alike are a group. A source that compares a conversation with several others holds out
    conversations, not pairs, by a `validation` of its own.
    """

    chosen: tuple[Message, ...]
    rejected: tuple[Message, ...]
    margin: float | None = None

    @property
    def number(self) -> float | None:
        return self.margin

    def text(self) -> str:
        return "\n".join(self.strings())

    def group(self) -> str:
        opening = _opening(self.chosen)
        return opening if opening == _opening(self.rejected) else self.text()

    def strings(self) -> tuple[str, ...]:
        return _said((*self.chosen, *self.rejected))

    def parts(self, tokenizer: Tokenizer, rendering: Rendering) -> list[Ids]:
        both = [rendered(rendering.settled.template, tokenizer, said)[0] for said in (self.chosen, self.rejected)]
        return [(ids, [True] * len(ids)) for ids in both]


@dataclasses.dataclass(frozen=True, eq=False)
class Picture(_Document):
    """An image, what it is called, and the number of its class. Its tokens are those of the caption, all learnt."""

    image_YXA: np.ndarray  # float32
    caption: str
    label: int

    def __repr__(self) -> str:
        return f"Picture({self.identity()}, {self.caption!r}, {self.label})"

    def identity(self) -> str:
        """The digest of its pixels: many images have one caption."""
        return hashlib.sha256(self.image_YXA.tobytes()).hexdigest()

    def text(self) -> str:
        return self.caption

    def group(self) -> str:
        return self.identity()

    def strings(self) -> tuple[str, ...]:
        return (self.caption,)

    def tokens(self, tokenizer: Tokenizer, rendering: Rendering) -> Ids:
        ids = tokenizer.encode(self.caption)
        return rendering.enclose(tokenizer, ids, [True] * len(ids), True)


Document = Text | TextPair | Conversation | Example | Preference | Comparison | Picture


def check_weights(documents: Iterable[Document], name: str) -> None:
    """Nothing, if no message has the weight 0, where all of a text is learnt.

    Raises:
      InputError: one has.
    """
    for document in documents:
        match document:
            case Conversation():
                said = document.messages
            case Comparison():
                said = (*document.chosen, *document.rejected)
            case _:
                said = ()
        if not all(message.weight for message in said):
            raise InputError(f"{name} would train on a message with the weight 0 too: leave such messages out")


class Encoded:
    """A tokenizer that has met the strings of `documents` already: what it renders is encoded in one parallel batch.

    Attributes:
      said: the strings that were encoded, in order, with whether each was the first of its text.
    """

    def __init__(self, tokenizer: Tokenizer, documents: Sequence[Document]):
        self.tokenizer, self.special, self.marks = tokenizer, tokenizer.special, tokenizer.marks
        self.vocabulary = tokenizer.vocabulary
        strings = list(dict.fromkeys(string for document in documents for string in document.strings()))
        self.known = dict(zip(strings, tokenizer.encode_batch(strings), strict=True))
        self.said: list[tuple[str, bool]] = []

    def encode(self, text: str) -> list[int]:
        self.said.append((text, True))
        known = self.known.get(text)
        return self.tokenizer.encode(text) if known is None else known

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        return [self.encode(text) for text in texts]

    def spans(self, text: str, first: bool = True) -> tuple[list[int], list[int]]:
        self.said.append((text, first))
        return self.tokenizer.spans(text, first)
