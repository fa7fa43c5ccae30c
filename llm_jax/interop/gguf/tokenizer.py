"""The vocabulary in a GGUF file as a tokenizer.json, so that it becomes a tokenizer as every published one does."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import tokenizers
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers

from llm_jax.core.errors import InputError, lookup
from llm_jax.text.tokenizer import SPACE

Field = Callable[[str], Any]  # a value of the metadata by its name; None if it is absent
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)  # tokenizer.ggml.token_type

# Patterns of words. Llama 3's has numbers of up to three digits, Qwen's single ones.
_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def _split(digits: str) -> pre_tokenizers.PreTokenizer:
    words = Regex(f"{_CONTRACTIONS}|{digits}|{_REST}")
    return _one_after_another(
        pre_tokenizers.Split(words, "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    )


def _one_after_another(*steps: Any) -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence([*steps])


# tokenizer.ggml.pre: how text is cut before byte-level BPE. What is cut off stays whole, if it is a token.
PRE: dict[str, Callable[[], dict[str, Any]]] = {
    "gpt-2": lambda: dict(pre_tokenizer=pre_tokenizers.ByteLevel(add_prefix_space=False)),
    "smollm": lambda: dict(
        pre_tokenizer=_one_after_another(
            pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)
        )
    ),
    "llama-bpe": lambda: dict(pre_tokenizer=_split(r"\p{N}{1,3}"), whole=True),
    "qwen2": lambda: dict(pre_tokenizer=_split(r"\p{N}"), normalizer=normalizers.NFC()),
}


def adds_bos(field: Field) -> bool:
    """Whether texts begin with `bos`: as the file says, or by llama.cpp's rule."""
    told = field("tokenizer.ggml.add_bos_token")
    by_rule = field("tokenizer.ggml.model") == "llama" or field("tokenizer.ggml.pre") == "llama-bpe"
    return by_rule if told is None else bool(told)


def published(field: Field) -> tuple[dict[str, Any], dict[str, Any], list[int]]:
    """The content of tokenizer.json, the settings of tokenizer_config.json, and the ids that end a text.

    Raises:
      InputError: the vocabulary is of a kind that is not covered, or there is none.
    """
    tokens, types = field("tokenizer.ggml.tokens"), field("tokenizer.ggml.token_type")
    if tokens is None:
        raise InputError("the GGUF file has no tokenizer")
    types = types or [NORMAL] * len(tokens)
    rust = lookup(MODELS, str(field("tokenizer.ggml.model")), "tokenizer of GGUF")(field, tokens, types)
    content = json.loads(rust.to_str())
    content["added_tokens"] = [
        dict(
            id=i, content=token, special=kind != USER_DEFINED, single_word=False, lstrip=False, rstrip=False,
            normalized=False,
        )
        for i, (token, kind) in enumerate(zip(tokens, types, strict=True))
        if kind in (UNKNOWN, CONTROL, USER_DEFINED, UNUSED)
    ]  # fmt: skip
    ids = {
        name: field(f"tokenizer.ggml.{name}_token_id") for name in ("bos", "eos", "padding", "unknown", "mask", "eot")
    }
    for name, i in ids.items():
        if i is not None and not 0 <= i < len(tokens):
            raise InputError(f"the GGUF file has tokenizer.ggml.{name}_token_id={i}, and {len(tokens)} tokens")
    names = dict(bos="bos_token", eos="eos_token", padding="pad_token", unknown="unk_token", mask="mask_token")
    settings = {theirs: tokens[ids[name]] for name, theirs in names.items() if ids[name] is not None}
    settings["chat_template"] = field("tokenizer.chat_template")
    return content, settings, [ids[name] for name in ("eos", "eot") if ids[name] is not None]


def _byte_level(field: Field, tokens: Sequence[str], types: Sequence[int]) -> tokenizers.Tokenizer:
    pre = lookup(PRE, str(field("tokenizer.ggml.pre")), "way of cutting text in GGUF (tokenizer.ggml.pre)")()
    merges = [tuple(merge.split(" ")) for merge in field("tokenizer.ggml.merges") or ()]
    vocab = {token: i for i, token in enumerate(tokens)}
    rust = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=merges, ignore_merges=pre.pop("whole", False)))
    for name, part in pre.items():
        setattr(rust, name, part)
    rust.decoder = decoders.ByteLevel()
    return rust


def _sentencepiece(field: Field, tokens: Sequence[str], types: Sequence[int]) -> tokenizers.Tokenizer:
    """SentencePiece's BPE: of the pairs that make a piece, the one with the best score is joined first."""
    scores = field("tokenizer.ggml.scores")
    if scores is None:
        raise InputError("the GGUF file lacks tokenizer.ggml.scores")
    joined = {
        token: score
        for token, score, kind in zip(tokens, scores, types, strict=True)
        if kind == NORMAL or (kind == USER_DEFINED and token.replace(SPACE, " ").isspace())
    }
    vocab = {token: i for i, token in enumerate(tokens)}
    unknown = next((token for token, kind in zip(tokens, types, strict=True) if kind == UNKNOWN), None)
    model = models.BPE(vocab=vocab, merges=_merges(joined), unk_token=unknown, byte_fallback=True, fuse_unk=True)
    rust = tokenizers.Tokenizer(model)
    spaces, prefix = normalizers.Replace(" ", SPACE), field("tokenizer.ggml.add_space_prefix")
    back: list[Any] = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if prefix is None or prefix:
        rust.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), spaces])
        back.append(decoders.Strip(" ", 1, 0))
    else:
        rust.normalizer = spaces
    rust.decoder = decoders.Sequence(back)
    return rust


def _merges(scores: Mapping[str, float]) -> list[tuple[str, str]]:
    """Every way to make a piece of two others, best piece first."""
    best_first = sorted(scores, key=lambda piece: -scores[piece])
    return [
        (piece[:at], piece[at:])
        for piece in best_first
        for at in range(1, len(piece))
        if piece[:at] in scores and piece[at:] in scores
    ]


MODELS = dict(gpt2=_byte_level, llama=_sentencepiece)
