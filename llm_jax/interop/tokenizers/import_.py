"""Published tokenizers and their chat templates, from the files that `transformers` keeps.

Text is encoded as it is there, but for one thing: no text yields a special token. Those that a published tokenizer
would recognise within a text are taken out of its Rust half and kept beside it, with the same ids. So are tokens that a
conversation is built of and a model writes (`<think>`). Added words, and tags of HTML as Gemma has them, are text.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator, Mapping, Sequence, Set
from pathlib import Path
from typing import Any

import tokenizers
from absl import logging

from llm_jax.core.errors import InputError
from llm_jax.core.files import read_json, reading
from llm_jax.interop import weights
from llm_jax.text.byte_level import LETTERS
from llm_jax.text.chat import ChatTemplate, Jinja
from llm_jax.text.guard import ROLE_NAMES
from llm_jax.text.tokenizer import SPACE, Tokenizer

# What special tokens do, and the settings of `transformers` that say which does it: the first that is set. (What stands
# for the unknown follows from the algorithm.)
ROLES = dict(bos=("bos_token", "cls_token"), eos=("eos_token", "sep_token"), pad=("pad_token",), mask=("mask_token",))
BYTES = frozenset(f"<0x{byte:02X}>" for byte in range(256))
# Tokens that conversations are built of, also where they are not called special and no chat template is there to tell.
STRUCTURAL = re.compile(
    r"<[|\uff5c].*[|\uff5c]>|</?(think|tools?|tool_calls?|tool_responses?|(start|end)_of_(turn|image|audio))>",
    re.DOTALL,
)
FLAGS = ("special", "single_word", "lstrip", "rstrip", "normalized")


@dataclasses.dataclass(frozen=True)
class Added:
    """A token that a published tokenizer recognises within a text, with the flags of tokenizer.json.

    Not `special`: `decode` shows it.
    """

    id: int
    content: str
    special: bool = True
    single_word: bool = False
    lstrip: bool = False
    rstrip: bool = False
    normalized: bool = False

    def forges(self, template: str) -> bool:
        """Whether a text must not yield it. What is not special is text, but for what conversations are built of."""
        if self.content.replace(SPACE, " ").isspace():
            return False
        written = not self.content.isalnum() and self.content in template
        return self.special or written or STRUCTURAL.fullmatch(self.content) is not None


def import_tokenizer(folder: str | Path, rows: int | None = None) -> tuple[Tokenizer, ChatTemplate]:
    """The tokenizer of a Hugging Face folder, and its chat template (ours, if it has none).

    It reads tokenizer.json, and where they are there tokenizer_config.json, special_tokens_map.json,
    chat_template.jinja, and for the ids that end a text generation_config.json or config.json.

    Args:
      rows: of the model's embedding, as of `assemble`.

    Raises:
      InputError: tokenizer.json is missing or damaged, of a kind that is not covered, or made for a larger embedding.
    """
    folder = Path(folder)
    rust = _json(folder / "tokenizer.json")
    if rust is None and (folder / "source.spm").exists():
        raise InputError(
            f"there is no tokenizer.json in {folder}, and Marian's source.spm and target.spm are not covered: "
            "in Python, interop.import_.read(interop.checkpoint.open_source(FOLDER)) gives its model and parameters"
        )
    if rust is None:
        raise InputError(f"there is no tokenizer.json in {folder}: save it with save_pretrained of a fast tokenizer")
    settings = (_json(folder / "special_tokens_map.json") or {}) | (_json(folder / "tokenizer_config.json") or {})
    settings["chat_template"] = _template(folder, settings.get("chat_template"))
    generation = _json(folder / "generation_config.json") or {}
    ends = generation.get("eos_token_id", (_json(folder / "config.json") or {}).get("eos_token_id"))
    try:
        return assemble(rust, settings, ends, rows)
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(f"a tokenizer file in {folder} is damaged: {type(error).__name__} {error}") from None


def assemble(
    rust: Mapping[str, Any], settings: Mapping[str, Any], ends: Any, rows: int | None = None
) -> tuple[Tokenizer, ChatTemplate]:
    """The tokenizer of a tokenizer.json and the settings of tokenizer_config.json.

    Args:
      ends: the id that ends a text, or a list of such ids.
      rows: of the model's embedding. Special tokens without a row are left out, with a warning: none is ever written.
        None: as many as there are tokens.

    Raises:
      InputError: it is of a kind that is not covered, `ends` are no ids of it, or a text can have a token without a
        row.
    """
    spelling = _spelling(rust)
    keys = [*(key for keys in ROLES.values() for key in keys), "unk_token"]
    named = {key: token for key in keys if (token := _content(settings.get(key)))}
    vocabulary = _vocabulary(rust["model"])
    ended = _ends(ends, vocabulary, rust, settings)
    source = settings.get("chat_template") or ""
    every = _added(rust, settings, vocabulary, named)
    added = {t.content: t for t in every if t.forges(source) or t.id in ended or t.content in named.values()}
    unknown = _unknown(rust["model"], spelling)
    beside = added if rows is None else _with_rows(rust, every, added, unknown, rows)
    ended = {i for i in ended if rows is None or i < rows}
    special = {t.content: t.id for t in beside.values() if t.special or t.id in ended or t.content in named.values()}
    if clash := special.keys() & ROLE_NAMES:
        raise InputError(f"the tokenizer has a special token {clash.pop()!r}, which is a name of ours")
    marks = {t.content: t.id for t in beside.values() if t.content not in special}
    special |= _roles(named, special) | ({} if unknown is None else {"unk": vocabulary[unknown]})
    ended |= {special["eos"]} if "eos" in special else set()
    kept = [token for token in every if token.content not in added]
    encoder = _encoder(rust, added.keys(), kept, unknown, rows)
    tokenizer = Tokenizer(encoder, special, spelling, marks=marks, ends=ended)
    if not source:
        return tokenizer, ChatTemplate()
    lstrip, rstrip = (tuple(n for n, t in added.items() if getattr(t, side)) for side in ("lstrip", "rstrip"))
    template = Jinja(source, tuple(name for name in added if name in source), lstrip, rstrip)
    if (end := template.end_of_turn(tokenizer)) is None:
        return tokenizer, template
    special["end_of_turn"] = end
    return Tokenizer(encoder, special, spelling, marks=marks, ends={*ended, end}), template


def _ends(ends: Any, vocabulary: Mapping[str, int], rust: Mapping[str, Any], settings: Mapping[str, Any]) -> set[int]:
    """The ids that end a text.

    Raises:
      InputError: they are no ids of this tokenizer.
    """
    found = [] if ends is None else ends if isinstance(ends, list) else [ends]
    last = max([*vocabulary.values(), *(token.id for token in _added(rust, settings, vocabulary, {}))], default=-1)
    if wrong := [end for end in found if type(end) is not int or not 0 <= end <= last]:
        raise InputError(
            f"eos_token_id={ends!r} in generation_config.json, or in config.json without it, has {wrong[0]!r}: it must "
            f"be one id from 0 to {last}, or a list of them"
        )
    return set(found)


def _roles(named: Mapping[str, str], special: Mapping[str, int]) -> dict[str, int]:
    """The ids of `bos`, `eos` and so on: of the first setting for each that is there."""
    tokens = {role: [named[key] for key in keys if key in named][:1] for role, keys in ROLES.items()}
    return {role: special[token] for role, found in tokens.items() for token in found if token in special}


def _with_rows(
    rust: Mapping[str, Any], every: Sequence[Added], added: Mapping[str, Added], unknown: str | None, rows: int
) -> dict[str, Added]:
    """Those of `added` that the embedding has a row for; warns of the others.

    Raises:
      InputError: there is another token without a row, which a text can have.
    """
    beside = added.keys() - {unknown}
    listed = [*_vocabulary(rust["model"]).items(), *((t.content, t.id) for t in every)]
    if plain := sorted({(i, piece) for piece, i in listed if i >= rows and piece not in beside}):
        raise InputError(
            f"the tokenizer has {len(plain)} tokens of text, {plain[0][1]!r} (id {plain[0][0]}) first, for which the "
            f"model has no row: its embedding has {rows}; use the tokenizer that it was trained with, or resize it "
            "(resize_token_embeddings of transformers)"
        )
    without = [name for name, token in added.items() if token.id >= rows]
    if without:
        logging.warning(
            "%d special tokens have no row in the model's embedding of %d: %s; they are left out and never written",
            len(without), rows, weights.listed(without),
        )  # fmt: skip
    return {name: token for name, token in added.items() if token.id < rows}


def _encoder(
    rust: Mapping[str, Any], beside: Set[str], kept: Sequence[Added], unknown: str | None, rows: int | None
) -> tokenizers.Tokenizer:
    """What encodes text: without the tokens that are kept `beside` it, with the added ones that are text.

    Raises:
      InputError: it is damaged, or would find an added token where the published one does not.
    """
    model = _without(rust["model"], beside, unknown, {t.content: t.id for t in kept})
    if isinstance(model["vocab"], list):  # beyond its rows are places of special tokens alone
        model["vocab"] = model["vocab"][:rows]
    bare = dict(rust, model=model, added_tokens=[], post_processor=None, truncation=None, padding=None)
    known = _vocabulary(rust["model"])
    new = [t for t in kept if t.content not in known and not t.content.isspace()]
    if partly := [t for t in new if t.single_word or (rust.get("normalizer") and not t.normalized)]:
        alone = _parsed(bare)  # they are in the model to be numbered, which must not find them where they are no match
        for token in partly:
            word = token.content
            elsewhere = {word} if token.single_word else {word.upper(), word.title()} - {word}
            if any(token.id in alone.encode(text, add_special_tokens=False).ids for text in elsewhere):
                raise InputError(
                    f"the added token {word!r} has single_word={token.single_word} and "
                    f"normalized={token.normalized}, which is not covered for it: add it with single_word=False and "
                    "normalized=True"
                )
    listed = [dataclasses.asdict(token) | dict(special=False) for token in sorted(kept, key=lambda token: token.id)]
    return _parsed(bare | dict(added_tokens=listed))


def _parsed(rust: Mapping[str, Any]) -> tokenizers.Tokenizer:
    try:
        return tokenizers.Tokenizer.from_str(json.dumps(rust))
    except Exception as error:  # what the Rust package raises has no narrower type
        raise InputError(f"tokenizer.json is damaged: {error}") from None


def _json(path: Path) -> dict[str, Any] | None:
    with reading(path):
        there = path.exists()
    return read_json(path) if there else None


def _template(folder: Path, setting: Any) -> str | None:
    """The chat template: in a file of its own, as a text, or the default one of a list."""
    with reading(path := folder / "chat_template.jinja"):
        if path.exists():
            return path.read_text(encoding="utf-8")
    if isinstance(setting, list):
        setting = {each["name"]: each["template"] for each in setting}.get("default")
    return setting


def _content(token: Any) -> str | None:
    return token["content"] if isinstance(token, dict) else token


def _vocabulary(model: Mapping[str, Any]) -> dict[str, int]:
    vocab = model["vocab"]
    return {piece: i for i, (piece, _) in enumerate(vocab)} if isinstance(vocab, list) else vocab


def _added(
    rust: Mapping[str, Any], settings: Mapping[str, Any], vocabulary: Mapping[str, int], named: Mapping[str, str]
) -> list[Added]:
    """The added tokens of both files, and those that have a role."""
    listed = {int(i): token for i, token in (settings.get("added_tokens_decoder") or {}).items()}
    listed |= {token["id"]: token for token in rust.get("added_tokens", ())}
    found = [Added(i, t["content"], **{f: bool(t.get(f)) for f in FLAGS}) for i, t in sorted(listed.items())]
    known = {token.content for token in found}
    unlisted = [token for token in dict.fromkeys(named.values()) if token not in known and token in vocabulary]
    return found + [Added(vocabulary[token], token) for token in unlisted]


def _kind(model: Mapping[str, Any]) -> str:
    """The algorithm, which older files leave to be guessed."""
    guess = "Unigram" if isinstance(model["vocab"], list) else "BPE" if "merges" in model else "WordPiece"
    return model.get("type", guess)


def _unknown(model: Mapping[str, Any], spelling: str) -> str | None:
    """The token that the algorithm gives for what it cannot spell, if there is anything."""
    if _kind(model) == "Unigram":
        return None if model.get("unk_id") is None else model["vocab"][model["unk_id"]][0]
    pieces, unknown = model["vocab"].keys(), model.get("unk_token")
    spells_all = pieces >= BYTES if model.get("byte_fallback") else spelling == "letters" and pieces >= {*LETTERS}
    return None if spells_all or unknown not in pieces else unknown


def _without(
    model: Mapping[str, Any], beside: Set[str], unknown: str | None, kept: Mapping[str, int]
) -> dict[str, Any]:
    """The model without the tokens `beside` it, which no text yields, and with the added ones that are `kept`: what
    reads it numbers these by their place in the model."""
    if _kind(model) == "Unigram":  # its ids are places in a list, and an empty piece is never found
        vocab = [["" if p in beside or p == unknown else p, score] for p, score in model["vocab"]]
        least = min(score for _, score in vocab)
        vocab += [["", least]] * (1 + max(kept.values(), default=-1) - len(vocab))
        for piece, i in kept.items():
            vocab[i] = [piece, vocab[i][1]]
        return dict(model, vocab=vocab)
    vocab = {piece: i for piece, i in model["vocab"].items() if piece not in beside or piece == unknown}
    vocab |= kept
    if _kind(model) == "WordPiece":
        return dict(model, vocab=vocab)
    pairs = [tuple(m.split(" ")) if isinstance(m, str) else tuple(m) for m in model["merges"]]
    gone = {*beside, unknown}
    merges = [[a, b] for a, b in pairs if not gone & {a, b, a + b}]
    return dict(model, vocab=vocab, merges=merges, unk_token=unknown)


def _spelling(rust: Mapping[str, Any]) -> str:
    """How the tokens are spelt: an entry of `llm_jax.text.tokenizer.SPELLINGS`."""
    model, decoder = rust["model"], list(_steps(rust.get("decoder")))
    before = [*_steps(rust.get("normalizer")), *_steps(rust.get("pre_tokenizer"))]
    kind = _kind(model)
    if kind not in ("BPE", "WordPiece", "Unigram"):
        raise InputError(f"tokenizer.json is a {kind}, which is not covered: choose from BPE, Unigram, WordPiece")
    if kind == "WordPiece":
        if model.get("continuing_subword_prefix", "##") != "##":
            raise InputError(f"WordPiece with {model['continuing_subword_prefix']!r} within words is not covered")
        return "words"
    if odd := [s for s in ("continuing_subword_prefix", "end_of_word_suffix") if model.get(s)]:
        raise InputError(f"tokenizer.json has {odd[0]}={model[odd[0]]!r}, which is not covered")
    if any(step["type"] == "ByteLevel" for step in before + decoder):
        if any(step["type"] == "ByteLevel" and step.get("add_prefix_space") for step in before):
            raise InputError("tokenizer.json has a ByteLevel with add_prefix_space=true, which is not covered")
        return "letters"
    for step in decoder:
        if step["type"] == "Metaspace":
            scheme = step.get("prepend_scheme", "always" if step.get("add_prefix_space") else "never")
            return "metaspace" if scheme == "never" else "prefixed"
    if any(step["type"] == "Replace" and step.get("content") == " " for step in decoder):
        stripped = any(step["type"] == "Strip" and step.get("start") for step in decoder)
        return "prefixed" if stripped else "metaspace"
    return "pieces"


def _steps(part: Mapping[str, Any] | None) -> Iterator[Mapping[str, Any]]:
    """A normaliser, pre-tokenizer or decoder as its single steps."""
    if part is None:
        return
    inner = [part[key] for key in ("normalizers", "pretokenizers", "decoders") if key in part]
    if not inner:
        yield part
    for step in inner[0] if inner else ():
        yield from _steps(step)
