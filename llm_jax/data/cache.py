"""What is made of texts once and kept on disk: trained tokenizers, and tokenised corpora, mapped into memory."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
import os
import pickle
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from absl import logging

from llm_jax.core.code import code_hash
from llm_jax.core.errors import InputError
from llm_jax.core.files import cache_folder, delete, digest, parse_json, reading, write_atomically
from llm_jax.core.parts import trusted, walk
from llm_jax.core.serialization import to_json
from llm_jax.data import border
from llm_jax.data.documents import Document, Encoded, Rendering
from llm_jax.text.recipes import TokenizerRecipe
from llm_jax.text.tokenizer import Tokenizer, load_tokenizer

FORMAT = "llm_jax corpus 3"
PACKAGES = ("jinja2", "tokenizers")  # not of this project, and they decide what the tokens of a text are
HEADER = 512  # bytes: a line of JSON, padded with spaces; then offsets, bytes, numbers, tokens, learnt
BATCH = 512  # documents encoded at once


class Corpus:
    """Documents as token ids, one after another.

    Attributes:
      tokens: uint16 or int32 [N], the token ids.
      learnt: bool [N], whether a token is to be learnt as a target. The first token of a document never is.
      offsets: int64 [documents + 1], where each document begins, and the end.
      bytes: int32 [N], the bytes of text that each token stands for, where the token alone does not tell; or None.
      numbers: float32 [documents], what is known of each besides its text (`number`); None if nothing is of any. Where
        a document has several numbers, [documents, most of one]: after those of a document NaN.
      whole: whether a document counts though nothing of its text is learnt.
      made_of: a hash of the documents, the tokenizer and the settings of the rendering; not of code.
      content: a hash of what is in it.
    """

    whole: ClassVar[bool] = False

    def __init__(self, path: Path):
        self.path = path
        self._map()

    def _map(self) -> None:
        with self.path.open("rb") as file:
            self.header = parse_json(file.read(HEADER))
        documents, tokens, dtype = self.header["documents"], self.header["tokens"], np.dtype(self.header["dtype"])
        self.made_of, self.content = self.header["made_of"], self.header["sha256"]
        file = np.asarray(np.memmap(self.path, np.uint8, "r"))  # plain arrays are indexed faster than memmaps
        counted = tokens if self.header["counted"] else 0
        width = int(self.header["numbered"])  # true is one number each
        sizes = [HEADER, 8 * (documents + 1), 4 * counted, 4 * documents * width, dtype.itemsize * tokens, tokens]
        ends = np.cumsum(sizes)
        self.offsets = file[ends[0] : ends[1]].view(np.int64)
        self.bytes = file[ends[1] : ends[2]].view(np.int32) if counted else None
        self.numbers = file[ends[2] : ends[3]].view(np.float32) if width else None
        if self.numbers is not None and width > 1:
            self.numbers = self.numbers.reshape(documents, width)
        self.tokens = file[ends[3] : ends[4]].view(dtype)
        self.learnt = file[ends[4] : ends[5]].view(np.bool_)

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path}  # a worker maps the file again instead of being sent its content

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.path = state["path"]
        self._map()


def corpus(documents: Sequence[Document], tokenizer: Tokenizer, rendering: Rendering) -> Corpus:
    """The documents as token ids, from the cache if they are there and whole, and were made by the code of today.

    Where code of a user's own decides and cannot be told (`code_hash`), they are tokenised every time.

    Raises:
      InputError: the cache cannot be read or written.
    """
    said = {name: value for name, value in _json(rendering).items() if value is not None}  # as before there was more
    made_of = digest(FORMAT, tokenizer.identity, json.dumps(said), *map(repr, documents))
    code, own = _code_of(documents, tokenizer, rendering), _own(documents, rendering)
    folder = cache_folder("corpora")
    if code is not None and own is not None:
        path = folder / f"{digest(made_of, code, *own)}.tokens"
        with reading(path):
            fault = _fault(path) if path.exists() else "absent"
        if fault is None:
            return Corpus(path)
        if fault != "absent":
            logging.warning("the cached corpus %s is damaged (%s): making it again", path, fault)
    else:
        path = None
    content = _tokenise(documents, tokenizer, rendering, made_of)
    if path is None:
        path = folder / f"{digest(content)}.tokens"  # kept for the workers to read, and never found by what made it
    with _writing("corpus", folder):
        write_atomically(path, content)
    return Corpus(path)


def _json(rendering: Rendering) -> dict[str, Any]:
    said = to_json(rendering.settled)
    assert isinstance(said, dict)
    return said


def _code_of(documents: Sequence[Document], tokenizer: Tokenizer, rendering: Rendering) -> str | None:
    """A hash of the code that decides the tokens of documents; None where it cannot be told."""
    held = (value for document in documents for value in vars(document).values())
    inside = {type(each) for value in held for each in (value if isinstance(value, tuple) else (value,))}
    parts = {type(part) for chosen in (rendering, rendering.settled) for _, part in walk(chosen)}
    code = code_hash(Corpus, type(tokenizer), *map(type, documents), *inside, *parts)
    return None if code is None else digest(code, *map(importlib.metadata.version, PACKAGES))


def _own(documents: Sequence[Document], rendering: Rendering) -> list[bytes] | None:
    """All that documents and a rendering of the user's own classes hold: of ours, settings and `repr` say it."""
    own = [each for each in (rendering, *documents) if not trusted(type(each).__module__, ())]
    try:
        return [pickle.dumps(each) for each in own]
    except (pickle.PicklingError, AttributeError, TypeError):
        return None


def trained(recipe: TokenizerRecipe, texts: Iterable[str], special: Sequence[str] = ()) -> Tokenizer:
    """`recipe.train(texts, special)`, from the cache if it is there and whole, and was made by the code of today.

    Where the recipe is a user's own, and its code cannot be told (`code_hash`), it is trained every time.

    Raises:
      InputError: as `TokenizerRecipe.train`; or the cache cannot be read or written.
    """
    code = code_hash(Tokenizer, *(type(part) for _, part in walk(recipe)))
    if code is None:
        return border.tokenizer(recipe, recipe.train(texts, special) if special else recipe.train(texts))
    texts = list(texts)
    versions = map(importlib.metadata.version, PACKAGES)
    key = digest(code, *versions, json.dumps([to_json(recipe), *special]), *texts)
    folder = cache_folder("tokenizers") / key
    with reading(folder):
        if (kept := _whole(folder)) is not None:
            return kept
    tokenizer = border.tokenizer(recipe, recipe.train(texts, special))
    with _writing("tokenizer", folder.parent):
        _keep(tokenizer, folder)
    return tokenizer


def _whole(folder: Path) -> Tokenizer | None:
    """The cached tokenizer; None if there is none, or if it is not what was kept."""
    if not folder.exists():
        return None
    try:
        tokenizer = load_tokenizer(folder)
        if tokenizer.identity == (folder / "identity").read_text(encoding="utf-8", errors="replace"):
            return tokenizer
        fault = "its checksum differs"
    except (InputError, FileNotFoundError) as error:
        fault = str(error)
    logging.warning("the cached tokenizer %s is damaged (%s): training it again", folder, fault)
    with contextlib.suppress(OSError):  # where it stays, the next run says this again
        delete(folder)
    return None


def _keep(tokenizer: Tokenizer, folder: Path) -> None:
    """Renamed when whole. Whoever kept it first at the same time kept the same."""
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as beside:
        saving = Path(beside) / folder.name
        tokenizer.save(saving)
        write_atomically(saving / "identity", tokenizer.identity)
        try:
            os.replace(saving, folder)
        except OSError:
            if not folder.exists():
                raise


@contextlib.contextmanager
def _writing(what: str, folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InputError(
            f"cannot write the {what} cache {folder} ({error.strerror}): "
            "free some space, or set LLM_JAX_CACHE to another folder"
        ) from None


def _fault(path: Path) -> str | None:
    """What is wrong with a cached corpus; None if nothing is."""
    with path.open("rb") as file:
        try:
            header = parse_json(file.read(HEADER))
        except ValueError:
            return "no header"
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        return "not of this format"
    return None if header.get("sha256") == found else "its checksum differs"


def _tokenise(documents: Sequence[Document], tokenizer: Tokenizer, rendering: Rendering, made_of: str) -> bytes:
    dtype = np.dtype(np.uint16 if tokenizer.vocabulary <= 2**16 else np.int32)
    tokens, learnt, counts, lengths = [np.empty(0, dtype)], [np.empty(0, bool)], [np.empty(0, np.int32)], [0]
    numbers: list[tuple[float, ...]] = []
    for batch in _progress([documents[i : i + BATCH] for i in range(0, len(documents), BATCH)]):
        encoded = Encoded(tokenizer, batch)
        for document in batch:
            encoded.said.clear()
            given: Any = document.parts(encoded, rendering)  # pyright: ignore[reportArgumentType]
            parts = [part for part in border.parts(document, tokenizer.vocabulary, given) if part[0]]
            for ids, learns in parts:
                tokens.append(np.asarray(ids, dtype))
                learnt.append(np.asarray([False, *learns[1:]], bool))
                lengths.append(len(ids))
                number = document.number
                numbers.append(number if isinstance(number, tuple) else () if number is None else (number,))
            if parts and not tokenizer.lossless:
                counts.append(_bytes_of(encoded, [i for ids, _ in parts for i in ids]))
    width = max(map(len, numbers), default=0)
    known = np.full((len(numbers), width), np.nan, np.float32)
    for row, number in enumerate(numbers):
        known[row, : len(number)] = number
    numbered = width if width > 1 else not np.isnan(known).all()
    known = known if numbered else known[:0]
    content = (
        np.cumsum(lengths, dtype=np.int64),
        np.concatenate(counts),
        known,
        *map(np.concatenate, (tokens, learnt)),
    )
    body = b"".join(array.tobytes() for array in content)
    header = dict(
        format=FORMAT,
        documents=len(lengths) - 1,
        tokens=len(content[3]),
        dtype=dtype.name,
        counted=not tokenizer.lossless,
        numbered=numbered,
        made_of=made_of,
        sha256=hashlib.sha256(body).hexdigest(),
    )
    return json.dumps(header).encode().ljust(HEADER - 1) + b"\n" + body


def _bytes_of(encoded: Encoded, ids: list[int]) -> np.ndarray:
    """The bytes of what was encoded that each of a document's tokens stands for; special tokens stand for none."""
    tokenizer = encoded.tokenizer
    bytes_N = np.zeros(len(ids), np.int32)
    bytes_N[~np.isin(ids, [*tokenizer.beside])] = [n for said in encoded.said for n in tokenizer.count_bytes(*said)]
    return bytes_N


def _progress(batches: list[Sequence[Document]]) -> Any:
    if len(batches) < 4 or not sys.stderr.isatty():
        return batches
    import rich.console
    import rich.progress

    return rich.progress.track(batches, "tokenising", console=rich.console.Console(stderr=True), transient=True)
