"""What a trained tokenizer can do, whatever its algorithm: text to ids and back, exactly, and streaming."""

from __future__ import annotations

import codecs
import dataclasses
import functools
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers

from llm_jax.core.errors import InputError, lookup
from llm_jax.core.files import digest, parse_json, user_path, write_atomically
from llm_jax.text.byte_level import GPT2_END_OF_TEXT, LETTERS, gpt2, letters_to_bytes
from llm_jax.text.special import ENDS, is_sentinel, specials_from

UNKNOWN = "\N{REPLACEMENT CHARACTER}".encode()  # how [UNK] reads
SPACE = "\N{LOWER ONE EIGHTH BLOCK}"  # how SentencePiece writes a space


class Tokenizer:
    """Text to token ids and back.

    `rust` encodes text. Special tokens live beside it and not in it, so no text, whatever it says, yields their ids;
    only "unk" is for the encoder to give, where the algorithm has one.

    Attributes:
      vocabulary: ids are 0 to `vocabulary - 1`, special tokens included.
      special: the id of each special token by name (`llm_jax.text.special`). Those of a published tokenizer are here
        under their own names too ("<|im_start|>").
      marks: as `special`, but a model may write them and `decode` shows their names ("<think>").
      beside: the ids of both; no text is encoded to them.
      ends: the ids that end a text or a turn.
      unsaid: the ids beside texts that a model is not to write: those that neither end one nor are marks or sentinels
        (`<extra_id_0>`), which `decode` shows by their names.
      lossless: `decode(encode(text)) == text` for every text.
      bytes_V: int32 [V], the bytes of text that each token stands for, as `decode` spells it; special tokens have 0.
        Exact where the tokenizer is lossless: the sum over `encode(text)` is `len(text.encode())`. Where it is not
        (white space is dropped, [UNK] stands for anything), `count_bytes` is.
      identity: a hash of everything that determines `encode`.
    """

    def __init__(
        self, rust: tokenizers.Tokenizer, special: Mapping[str, int], spelling: str, *,
        marks: Mapping[str, int] | None = None, ends: Iterable[int] | None = None,
    ):  # fmt: skip
        """`spelling` names how tokens are spelt as bytes: an entry of `SPELLINGS`. `ends` None: those of `ENDS`.

        Raises:
          InputError: there is no such spelling, or `rust` has special tokens, which a text could forge. (Other tokens
            that were added are text: words, runs of white space.)
        """
        rust = _plain(rust)
        added = rust.get_added_tokens_decoder()
        if forgeable := [token.content for token in added.values() if token.special]:
            raise InputError(
                f"{forgeable[0]!r} in a text would be read as that token: keep special tokens beside `rust`"
            )
        spells = lookup(SPELLINGS, spelling, "spelling of tokens")
        self.special, self.marks = dict(special), dict(marks or {})
        ended = [self.special[name] for name in ENDS if name in self.special] if ends is None else ends
        self.ends = frozenset(ended)
        self._rust, self._spelling = rust, spelling
        tokens = {i: token for token, i in rust.get_vocab().items()}
        own = {*self.special.values(), *self.marks.values()}
        self.beside = frozenset(own - {self.special.get("unk")})
        content = {name: i for name, i in self.special.items() if is_sentinel(name)} | self.marks
        self.unsaid = self.beside - self.ends - {*content.values()}
        self.vocabulary = 1 + max(*tokens, *own)
        text_ids = tokens.keys() - own
        spelt = {i: spells.added(tokens[i]) if i in added else spells.bytes(tokens[i]) for i in text_ids}
        self._bytes = [spelt.get(i, b"") for i in range(self.vocabulary)]
        self.bytes_V = np.array([len(b) for b in self._bytes], np.int32)
        if "unk" in self.special:
            self._bytes[self.special["unk"]] = UNKNOWN
        for name, i in content.items():
            self._bytes[i] = name.encode()
        self.lossless = (
            spells.lossless and "unk" not in self.special and rust.normalizer is None
            and set(tokens.values()).issuperset(spells.alphabet)
            and not any(token.lstrip or token.rstrip for token in added.values())
        )  # fmt: skip

    def having(self, special: Mapping[str, int] | None = None, ends: Iterable[int] = ()) -> Tokenizer:
        """The same with these `special` tokens and these `ends` besides its own."""
        special = self.special | dict(special or {})
        return Tokenizer(self._rust, special, self._spelling, marks=self.marks, ends={*self.ends, *ends})

    @functools.cached_property
    def identity(self) -> str:
        return digest(self._rust.to_str(), self._beside())

    def encode(self, text: str) -> list[int]:
        """The ids of `text`, and of nothing else: no special token is added, and none can be forged.

        Raises:
          InputError: the text has half a surrogate pair, which no encoding of text can hold.
        """
        return self._encoding(text).ids

    def spans(self, text: str, first: bool = True) -> tuple[list[int], list[int]]:
        """The ids of `text`, and the character of it at which each token ends.

        Not `first`: the text follows a special token. (Some vocabularies write a space before a text's first word.)

        Raises:
          InputError: as `encode`.
        """
        encoding = self._encoding(text, first)
        return encoding.ids, [end for _, end in encoding.offsets]

    @functools.cached_property
    def _later(self) -> tokenizers.Tokenizer:
        """What encodes a text that is not the first."""
        rust = self._rust.to_str()
        never = rust.replace('"prepend_scheme":"first"', '"prepend_scheme":"never"')
        return self._rust if never == rust else tokenizers.Tokenizer.from_str(never)

    def _encoding(self, text: str, first: bool = True) -> tokenizers.Encoding:
        try:
            return (self._rust if first else self._later).encode(text, add_special_tokens=False)
        except TypeError:
            check_text(text, "the text")
            raise

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` of each, in parallel on all cores (unless the environment sets TOKENIZERS_PARALLELISM=false)."""
        try:
            return [e.ids for e in self._rust.encode_batch_fast(list(texts), add_special_tokens=False)]
        except TypeError:
            for i, text in enumerate(texts):
                check_text(text, f"text {i}")
            raise

    def count_bytes(self, text: str, first: bool = True) -> list[int]:
        """The bytes of `text` that each token of `encode(text)` stands for; their sum is the whole text's, exactly.

        What the algorithm drops counts with the token after it, and at the end of the text with the last one. (A text
        that has no token, such as white space to WordPiece, has no counts.)
        """
        encoding = self._encoding(text, first)
        if self.lossless or not encoding.ids:
            return self.bytes_V[np.array(encoding.ids, int)].tolist()
        byte_at = np.cumsum([0, *(len(character.encode()) for character in text)])
        ends = [end for _, end in encoding.offsets[:-1]] + [len(text)]
        return np.diff(byte_at[ends], prepend=0).tolist()

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`. Special tokens are left out; bytes that are no UTF-8, and [UNK], read U+FFFD.

        Raises:
          InputError: an id is not in the vocabulary.
        """
        stream = self.stream()
        return "".join([*map(stream.push, ids), stream.flush()])

    def stream(self) -> StreamDecoder:
        return StreamDecoder(self)

    def bytes_of(self, token: int) -> bytes:
        """The bytes of one token.

        Raises:
          InputError: the id is not in the vocabulary.
        """
        if not 0 <= token < self.vocabulary:
            raise InputError(f"token id {token} is not in the vocabulary, which has ids 0 to {self.vocabulary - 1}")
        return self._bytes[token]

    @property
    def spelling(self) -> str:
        return self._spelling

    def rust(self) -> dict[str, Any]:
        """What encodes text, as the `tokenizers` package writes it to a file."""
        return json.loads(self._rust.to_str())

    @property
    def spaces_words(self) -> bool:
        """Whether every word is spelt with a space before it, which the first of a text did not have."""
        return SPELLINGS[self._spelling].spaces

    @property
    def padding(self) -> int:
        """An id for places without a token, which no model sees: `pad`, or where there is none `eos`, or 0."""
        return self.special.get("pad", self.special.get("eos", 0))

    def _beside(self) -> str:
        beside = dict(spelling=self._spelling, special=self.special, marks=self.marks, ends=sorted(self.ends))
        return json.dumps(beside, indent=1)

    def save(self, folder: Path) -> None:
        """Writes `tokenizer.json` (what the `tokenizers` package reads) and `special.json` beside it."""
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / "special.json", self._beside())
        write_atomically(folder / "tokenizer.json", self._rust.to_str(pretty=True))


def _plain(rust: tokenizers.Tokenizer) -> tokenizers.Tokenizer:
    """What encodes a text to its own tokens alone, however many: padding and truncation are for who makes batches."""
    if rust.padding is None and rust.truncation is None:
        return rust
    plain = tokenizers.Tokenizer.from_str(rust.to_str())  # the caller's stays as it is
    plain.no_padding()
    plain.no_truncation()
    return plain


class StreamDecoder:
    """Decodes a token at a time and emits only whole characters: the pieces joined are what `decode` gives."""

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._drop_space = tokenizer.spaces_words

    def push(self, token: int) -> str:
        """The characters that `token` completes; empty while one is only begun."""
        spelt = self._tokenizer.bytes_of(token)
        if spelt and self._drop_space:
            spelt, self._drop_space = spelt.removeprefix(b" "), False
        return self._utf8.decode(spelt)

    def flush(self) -> str:
        """At the end: U+FFFD for a character that was begun and not completed."""
        return self._utf8.decode(b"", final=True)


def check_text(text: str, what: str) -> None:
    """Nothing, if `text` can be encoded.

    Raises:
      InputError: it has half a surrogate pair; the message says where.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        code = ord(text[error.start])
        raise InputError(
            f"{what} is not valid Unicode: half a surrogate pair (U+{code:04X}) at character {error.start}"
        ) from None


def load_tokenizer(source: str | Path) -> Tokenizer:
    """The tokenizer that `Tokenizer.save` wrote to a folder, or "gpt2".

    GPT-2's ids keep their numbers; <|endoftext|> (50256) is both bos and eos, and the other special tokens follow it.

    Raises:
      InputError: there is no whole tokenizer there, or GPT-2's files are not installed.
    """
    if source == "gpt2":
        # bos and eos come first among the special tokens, so from one before <|endoftext|> pad is the one after it.
        special = specials_from(GPT2_END_OF_TEXT - 1) | {"bos": GPT2_END_OF_TEXT, "eos": GPT2_END_OF_TEXT}
        return Tokenizer(gpt2(), special, "letters")
    folder = user_path(source)
    try:
        beside = parse_json((folder / "special.json").read_text(encoding="utf-8"))
        special, spelling = beside["special"], beside["spelling"]
        marks, ends = beside.get("marks"), beside.get("ends")  # older folders have neither
        rust = (folder / "tokenizer.json").read_text(encoding="utf-8")
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "special.json is damaged"
        raise InputError(
            f"no tokenizer in {str(source)!r} ({reason}): give a folder with tokenizer.json and special.json, or 'gpt2'"
        ) from None
    try:
        trained = tokenizers.Tokenizer.from_str(rust)
    except Exception as error:  # what the Rust package raises has no narrower type
        raise InputError(f"{folder / 'tokenizer.json'} is damaged: {error}") from None
    return Tokenizer(trained, special, spelling, marks=marks, ends=ends)


_BYTE = re.compile("<0x([0-9A-F]{2})>")


def _piece_to_bytes(token: str) -> bytes:
    byte = _BYTE.fullmatch(token)
    return bytes.fromhex(byte[1]) if byte else token.encode()


def _metaspace_to_bytes(token: str) -> bytes:
    return _piece_to_bytes(token.replace(SPACE, " "))


def _word_to_bytes(token: str) -> bytes:
    return token[2:].encode() if token.startswith("##") else b" " + token.encode()


@dataclasses.dataclass(frozen=True)
class Spelling:
    """How tokens are spelt as bytes.

    Attributes:
      bytes: of one token.
      plain: whether a token that was added to the vocabulary is written as it is, and not as others are.
      spaces: the first word of a text is spelt with a space before it, which the text did not have.
      lossless: whether all of a text can be spelt, given tokens for the whole `alphabet`.
    """

    bytes: Callable[[str], bytes]
    spaces: bool = False
    lossless: bool = True
    alphabet: Sequence[str] = ()
    plain: bool = False

    def added(self, token: str) -> bytes:
        """Of a token that was added to the vocabulary."""
        return token.encode() if self.plain else self.bytes(token)


_BYTES = tuple(f"<0x{byte:02X}>" for byte in range(256))
SPELLINGS = dict(
    letters=Spelling(letters_to_bytes, alphabet=LETTERS, plain=True),  # in the byte-level alphabet
    pieces=Spelling(_piece_to_bytes, alphabet=_BYTES),  # as they are, with <0x0A> for a byte
    metaspace=Spelling(_metaspace_to_bytes, lossless=False),  # as pieces, with SPACE for a space
    prefixed=Spelling(_metaspace_to_bytes, spaces=True, lossless=False),  # the same, with one before the text
    words=Spelling(_word_to_bytes, spaces=True, lossless=False),  # as they are, with ## where a word goes on
)
