"""Calls of tools: what an assistant asks programs to do, as it writes it in its turn."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Sequence
from typing import Any

from llm_jax.core.errors import InputError
from llm_jax.core.files import parse_json
from llm_jax.text.tokenizer import check_text

NAME = re.compile(r"[\w.:/-]+")  # what needs no quoting wherever a template writes it
BEGIN, END = "<tool_call>", "</tool_call>"


@dataclasses.dataclass(frozen=True)
class Call:
    """A tool's name, and what it is called with: the text of a JSON object, which is kept as `to_json` writes it.

    Raises:
      InputError: it is no such name, or no JSON object.
    """

    name: str
    arguments: str = "{}"

    def __post_init__(self):
        if not NAME.fullmatch(self.name):
            raise InputError(f"{self.name[:40]!r} is no name of a tool: use letters, digits, and any of _ . : / -")
        value = read_json(self.arguments, what := f"what {self.name} is called with")
        if not isinstance(value, dict):
            raise InputError(f"{what} is not a JSON object but {self.arguments[:40]!r}")
        object.__setattr__(self, "arguments", to_json(value, what))

    def written(self) -> str:
        return f'{BEGIN}\n{{"name": "{self.name}", "arguments": {self.arguments}}}\n{END}'


def write(content: str, calls: Sequence[Call]) -> str:
    """What is said, then each call: JSON between `<tool_call>` and `</tool_call>`, as Hermes and Qwen do."""
    return "\n".join([*([content] if content else []), *(call.written() for call in calls)])


def read(text: str) -> tuple[str, tuple[Call, ...]]:
    """The content and the calls that `write` would write so. Calls end a turn: others, and broken ones, are content."""
    at = text.find(BEGIN)
    while at >= 0:
        if calls := _calls(text[at:]):
            return text[:at].removesuffix("\n"), calls
        at = text.find(BEGIN, at + 1)
    return text, ()


def _calls(text: str) -> tuple[Call, ...]:
    """The calls that the text consists of; none if there is anything else."""
    calls = []
    while text := text.strip():
        before, _, body = text.partition(BEGIN)
        try:
            value, end = json.JSONDecoder().raw_decode(body := body.lstrip())
            calls.append(Call(value["name"], to_json(value["arguments"], "what it is called with")))
        except (ValueError, LookupError, TypeError, RecursionError):  # an InputError is a ValueError
            return ()
        between, closed, text = body[end:].partition(END)
        if before or not closed or between.strip():
            return ()
    return tuple(calls)


def to_json(value: Any, what: str) -> str:
    """The value as text, in the one way that is used for tools.

    Raises:
      InputError: a number in it is not finite, or a text in it is not valid Unicode.
    """
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    except (ValueError, TypeError, RecursionError) as error:
        raise InputError(f"{what} cannot be written as JSON: {error}") from None
    check_text(text, what)
    return text


def read_json(text: str, what: str) -> Any:
    """What the text says.

    Raises:
      InputError: it is no JSON.
    """
    try:
        return parse_json(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{what} is no JSON: {error}") from None
