"""What a source is, and sources that are files: texts, JSON lines, records."""

from __future__ import annotations

import dataclasses
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from llm_jax.core.errors import InputError, nearest
from llm_jax.core.files import parse_json, reading, user_path
from llm_jax.core.parts import Part
from llm_jax.data.documents import Document, Text
from llm_jax.data.fields import Unread
from llm_jax.data.records import document_of


class Source(Part):
    """Yields documents, in the same order each time. An experiment may make its own: subclass, and yield."""

    def documents(self) -> Iterator[Document]:
        """All documents; those to train on, where `validation` yields the others."""
        raise NotImplementedError

    def validation(self) -> Iterator[Document] | None:
        """The documents held out, where the source brings its own split; None leaves it to `Data.split`."""
        return None

    def class_names(self) -> tuple[str, ...] | None:
        """The names of the classes, in the order of their numbers, where its documents have classes by number."""
        return None

    def components(self) -> tuple[tuple[Source, float], ...]:
        """The sources that this one mixes, with their weights."""
        return ((self, 1.0),)


def _exists(path: Path) -> None:
    with reading(path):
        if path.exists():
            return
        beside = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        raise InputError(f"there is no {path}: {nearest(path.name, beside[:20])}")


def bytes_of(path: Path) -> bytes:
    _exists(path)
    with reading(path):
        return path.read_bytes()


def _refuse_folder(error: OSError) -> None:
    raise InputError(f"cannot read the folder {error.filename}: {error.strerror}")


def decode(data: bytes, where: object, offset: int = 0) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{where} is not UTF-8: byte {offset + error.start} is 0x{data[error.start]:02x}") from None


def texts(text: str, separator: str) -> Iterator[Text]:
    """The texts between separators. An end of a line in the separator is one in the text, however either writes it."""
    lines = separator.replace("\r\n", "\n").split("\n")
    between = re.compile(r"(?:\r\n|(?<!\r)\n|\r(?!\n))".join(map(re.escape, lines)))
    for piece in between.split(text) if separator else [text]:
        if piece.strip():
            yield Text(piece)


@dataclasses.dataclass(frozen=True)
class TextFiles(Source):
    """A text file, or every `.txt` below a folder: a document a file, or a document between two `separator`s."""

    path: str
    separator: str = ""

    def documents(self) -> Iterator[Document]:
        for path in self.files():
            yield from texts(decode(bytes_of(path), path), self.separator)

    def files(self) -> list[Path]:
        path = user_path(self.path)
        with reading(path):
            if not path.is_dir():
                return [path]
        found = []
        for folder, _, names in os.walk(path, onerror=_refuse_folder):  # `rglob` would pass over what it cannot read
            with reading(folder):
                found += [p for p in (Path(folder, n) for n in names if n.endswith(".txt")) if p.is_file()]
        if not found:
            raise InputError(f"there is no .txt file in the folder {path}")
        return sorted(found)


@dataclasses.dataclass(frozen=True)
class JsonLines(Source):
    """A JSON object a line, or a list of them that is the whole file.

    Each has its text in `field`, or is `{"messages": [{"role", "content"}]}` (OpenAI's format, with `tool_calls` and
    `tools`), `{"prompt", "completion"}`, or `{"instruction", "input", "output"}` (Alpaca's). A prompt is messages, or
    the text that a user says; alone it is one to write a reply to (`Rollouts`). `{"prompt", "answer"}` are plain texts.
    Replies to compare are `{"prompt" or "messages", "chosen", "rejected"}`, with a `"margin"` if it is known; they are
    texts or messages, and may be whole conversations that begin alike. Beside a text in `field` there may be its
    `"label"`: the name of its class, or the number of it from 0 on, or any other number (`WithNumber`); or its
    `"labels"`, a list of all the classes that it is of, by name or by number (`WithLabels`). Where there is
    a text in the field `pair` too, both are read together: `field="premise", pair="hypothesis"`.

    A message of the assistant may have its reasoning (`"reasoning_content"`, `"thinking"` or `"reasoning"`), and the
    `"weight"` 0, which keeps it out of the loss. Beside messages, prompts and instructions there may be what the
    `"system"` says first, and the `"answer"` (`"solution"`, `"ground_truth"`) that is known to be right, for rewards
    and reports. A field that is null is absent. All other fields of a record with a prompt are its `columns`, which
    rewards may ask for by name (`llm_jax.objectives.reward.Reward`). What no text is made of, and what is not read, is
    named once, with how often it stands there; fields that would change what is trained are refused.
    """

    path: str
    field: str = "text"
    pair: str = "text_pair"

    def documents(self) -> Iterator[Document]:
        unread = Unread(self.path)
        for record, where in json_records(self.path):
            yield document_of(record, self.field, where, unread, self.pair)
        unread.tell()


def json_records(path: str) -> Iterator[tuple[Any, str]]:
    """The JSON values of a file, a line each or in one list, and where each of them is.

    Raises:
      InputError: the file cannot be read, or is no JSON.
    """
    content = bytes_of(user_path(path))
    if content.lstrip()[:1] == b"[":
        for number, record in enumerate(_parsed(decode(content, path), path)):
            yield record, f"{path}, record {number}"
        return
    offset = 0
    for number, line in enumerate(content.split(b"\n"), 1):
        where = f"{path}:{number}"
        if line.strip():
            yield _parsed(decode(line, where, offset), where), where
        offset += len(line) + 1


def _parsed(text: str, where: str) -> Any:
    try:
        return parse_json(text)
    except json.JSONDecodeError as error:
        line = f" of line {error.lineno}" if error.lineno > 1 else ""
        raise InputError(f"{where} is not JSON: {error.msg} at column {error.colno}{line}") from None
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, brackets in thousands of brackets
        raise InputError(f"{where} cannot be read as JSON: {error}") from None


@dataclasses.dataclass(frozen=True)
class ArrayRecord(Source):
    """An ArrayRecord file, whose records are UTF-8 texts, or JSON objects as in `JsonLines`."""

    path: str
    field: str = "text"

    def documents(self) -> Iterator[Document]:
        from array_record.python.array_record_module import ArrayRecordReader  # a native library: only where it is used

        _exists(path := user_path(self.path))
        try:
            reader = ArrayRecordReader(str(path))
            records = reader.read_all()
        except (RuntimeError, ValueError, IndexError) as error:
            raise InputError(f"{self.path} is no ArrayRecord file: {str(error).splitlines()[0]}") from None
        unread = Unread(self.path)
        for number, record in enumerate(records):
            where = f"{self.path}, record {number}"
            text = decode(record, where)
            try:
                value = parse_json(text) if text.startswith("{") else None
            except (ValueError, RecursionError):
                value = None
            if value is not None:
                yield document_of(value, self.field, where, unread)
            elif text.strip():
                yield Text(text)
        unread.tell()


FILES = dict(TextFiles=TextFiles, JsonLines=JsonLines, ArrayRecord=ArrayRecord)
