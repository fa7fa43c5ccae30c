"""Recipes of tokenizers: which algorithm, with how large a vocabulary; `train` makes the tokenizer from texts.

The same texts always give the same tokenizer, to the bit.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

import tokenizers
from absl import logging
from tokenizers import Regex, models, normalizers, pre_tokenizers, trainers

from llm_jax.core.errors import InputError
from llm_jax.core.parts import Count, Part, Size
from llm_jax.text.byte_level import LETTERS, byte_level, bytes_first
from llm_jax.text.special import specials_from
from llm_jax.text.tokenizer import Tokenizer, check_text, load_tokenizer

UNK = "[UNK]"
LONGEST = 1000  # characters of a piece that is learnt from: what it costs grows with the square of that
PAIR_RECURS = 2  # a pair of symbols must occur so often to be merged: one that occurs once teaches nothing


class TokenizerRecipe(Part):
    """How a tokenizer is made. `vocabulary` is the largest number of ids, special tokens included.

    `sentinels` is how many of these stand for spans that were taken from a text (`SpanCorruption`).
    """

    def train(self, texts: Iterable[str], special: Sequence[str] = ()) -> Tokenizer:
        """The tokenizer learnt from `texts`, with `special` tokens besides the usual ones: those of a chat template.

        Raises:
          InputError: there is no text, it is not valid Unicode, or the vocabulary is too small for the algorithm.
        """
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class Bpe(TokenizerRecipe):
    """Byte pair encoding (Sennrich et al. 2016) of bytes (Radford et al. 2019). Ids 0..255 are the bytes; lossless."""

    vocabulary: Size = 4096
    sentinels: Count = 0

    def train(self, texts: Iterable[str], special: Sequence[str] = ()) -> Tokenizer:
        room = _room(self, self.vocabulary, self.sentinels, special, fixed=256, least=0)
        rust = byte_level(models.BPE())
        rust.train_from_iterator(
            _bounded(_checked(texts), byte_level(models.BPE())),
            trainers.BpeTrainer(
                vocab_size=256 + room, initial_alphabet=list(LETTERS), min_frequency=PAIR_RECURS, show_progress=False
            ),
        )
        learnt = json.loads(rust.to_str())["model"]
        in_order = sorted(learnt["vocab"], key=learnt["vocab"].__getitem__)
        model = bytes_first(in_order, [(left, right) for left, right in learnt["merges"]])
        return Tokenizer(byte_level(model), specials_from(len(in_order), self.sentinels, special), "letters")


@dataclasses.dataclass(frozen=True)
class WordPiece(TokenizerRecipe):
    """WordPiece (Schuster & Nakajima 2012) as in BERT, cased. Id 0 is [UNK], for words it cannot spell.

    Lossy: white space becomes one space between tokens that begin a word, and control characters are dropped.
    """

    vocabulary: Size = 4096
    sentinels: Count = 0

    def train(self, texts: Iterable[str], special: Sequence[str] = ()) -> Tokenizer:
        room = _room(self, self.vocabulary, self.sentinels, special, fixed=1, least=64)
        characters, texts = _without_rare_characters(texts, room)
        # Given first and in order, since the trainer numbers what it meets in no certain order, and ties go by number.
        letters = [c for c in characters if c.isprintable() and not c.isspace()]
        first = [UNK, *letters, *(f"##{letter}" for letter in letters)]
        rust = self._rust(models.WordPiece(unk_token=UNK))
        rust.train_from_iterator(
            _bounded(texts, self._rust(models.WordPiece(unk_token=UNK))),
            trainers.WordPieceTrainer(
                vocab_size=1 + room, special_tokens=first, min_frequency=PAIR_RECURS, show_progress=False
            ),
        )
        vocab = json.loads(rust.to_str())["model"]["vocab"]
        ids = {"unk": vocab[UNK]} | specials_from(len(vocab), self.sentinels, special)
        return Tokenizer(self._rust(models.WordPiece(vocab=vocab, unk_token=UNK)), ids, "words")

    def _rust(self, model: models.WordPiece) -> tokenizers.Tokenizer:
        rust = tokenizers.Tokenizer(model)
        rust.normalizer = normalizers.BertNormalizer(lowercase=False, strip_accents=False)
        rust.pre_tokenizer = pre_tokenizers.BertPreTokenizer()  # splits "[UNK]" in a text in three: no forging
        return rust


@dataclasses.dataclass(frozen=True)
class Unigram(TokenizerRecipe):
    """Unigram language model (Kudo 2018), with bytes (ids 0..255) for characters without a piece: lossless.

    Spaces are ordinary characters, at the start of a word's first piece; there is no normalisation.
    """

    vocabulary: Size = 4096
    sentinels: Count = 0

    def train(self, texts: Iterable[str], special: Sequence[str] = ()) -> Tokenizer:
        room = _room(self, self.vocabulary, self.sentinels, special, fixed=256, least=64)
        _, texts = _without_rare_characters(texts, room)  # the rare ones are left to the bytes
        rust = self._rust(models.Unigram())
        no_nul = (text.replace("\0", "") for text in texts)  # it means the end of a sentence to the trainer
        rust.train_from_iterator(
            _bounded(no_nul, self._rust(models.Unigram())),
            trainers.UnigramTrainer(vocab_size=1 + room, unk_token=UNK, special_tokens=[UNK], show_progress=False),
        )
        pieces = _without_noise(json.loads(rust.to_str())["model"]["vocab"][1:])
        vocab = [(f"<0x{byte:02X}>", 0.0) for byte in range(256)] + pieces
        # The algorithm asks for an unknown token; the bytes stand in for it always, so any id will do.
        model = models.Unigram(vocab=vocab, unk_id=0, byte_fallback=True)
        return Tokenizer(self._rust(model), specials_from(len(vocab), self.sentinels, special), "pieces")

    def _rust(self, model: models.Unigram) -> tokenizers.Tokenizer:
        rust = tokenizers.Tokenizer(model)
        # GPT-2's pattern of words. It cuts "<0x41>" in a text into "<", "0", "x", ...: no forging of bytes.
        words = Regex(r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+")
        rust.pre_tokenizer = pre_tokenizers.Split(words, "isolated")
        return rust


@dataclasses.dataclass(frozen=True)
class Gpt2(TokenizerRecipe):
    """GPT-2's own vocabulary (50,257 ids, then the special tokens that it lacks); learns nothing. Lossless."""

    def train(self, texts: Iterable[str], special: Sequence[str] = ()) -> Tokenizer:
        gpt2 = load_tokenizer("gpt2")
        known = gpt2.special | {"<|endoftext|>": gpt2.special["eos"]}
        new = [name for name in dict.fromkeys(special) if name not in known]
        asked = {name: known[name] for name in special if name in known}
        return gpt2.having(asked | {name: gpt2.vocabulary + i for i, name in enumerate(new)})


@dataclasses.dataclass(frozen=True)
class Characters(TokenizerRecipe):
    """The characters of the training texts, in the order of their code points; [UNK] for every other character."""

    sentinels: Count = 0

    def train(self, texts: Iterable[str], special: Sequence[str] = ()) -> Tokenizer:
        characters = set()
        for text in _checked(texts):
            characters.update(text)
        vocab = {token: i for i, token in enumerate([*sorted(characters), UNK])}
        rust = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=[], unk_token=UNK))
        return Tokenizer(rust, {"unk": vocab[UNK]} | specials_from(len(vocab), self.sentinels, special), "pieces")


@dataclasses.dataclass(frozen=True)
class Words(TokenizerRecipe):
    """The most frequent words and marks of punctuation, id 1 the most frequent; id 0 is [UNK], for all others.

    Lossy, as `WordPiece`; with `lowercase` the case of letters is lost too.
    """

    vocabulary: Size = 10_000
    lowercase: bool = False
    sentinels: Count = 0

    def train(self, texts: Iterable[str], special: Sequence[str] = ()) -> Tokenizer:
        room = _room(self, self.vocabulary, self.sentinels, special, fixed=1, least=1)
        counts: Counter[str] = Counter()
        split = self._rust(models.WordLevel(vocab={UNK: 0}, unk_token=UNK))
        assert split.normalizer is not None and split.pre_tokenizer is not None
        for text in _checked(texts):
            counts.update(w for w, _ in split.pre_tokenizer.pre_tokenize_str(split.normalizer.normalize_str(text)))
        by_frequency = sorted(counts, key=lambda word: (-counts[word], word))[:room]
        vocab = {word: i for i, word in enumerate([UNK, *by_frequency])}
        ids = {"unk": 0} | specials_from(len(vocab), self.sentinels, special)
        return Tokenizer(self._rust(models.WordLevel(vocab=vocab, unk_token=UNK)), ids, "words")

    def _rust(self, model: models.WordLevel) -> tokenizers.Tokenizer:
        rust = tokenizers.Tokenizer(model)
        rust.normalizer = normalizers.BertNormalizer(lowercase=self.lowercase, strip_accents=False)
        rust.pre_tokenizer = pre_tokenizers.BertPreTokenizer()  # as for WordPiece: no forging of [UNK]
        return rust


@dataclasses.dataclass(frozen=True)
class Bytes(TokenizerRecipe):
    """The 256 bytes; learns nothing. Lossless."""

    sentinels: Count = 0

    def train(self, texts: Iterable[str], special: Sequence[str] = ()) -> Tokenizer:
        ids = specials_from(256, self.sentinels, special)
        return Tokenizer(byte_level(bytes_first((), ()), words=False), ids, "letters")


def _checked(texts: Iterable[str]) -> Iterator[str]:
    something = False
    for i, text in enumerate(texts):
        check_text(text, f"text {i} of the corpus")
        something = something or bool(text.strip())
        yield text
    if not something:
        raise InputError("the corpus is empty: a tokenizer has nothing to learn from")


def _bounded(texts: Iterable[str], rust: tokenizers.Tokenizer) -> Iterator[str]:
    """The texts, cut within pieces (words, runs of white space) of more than `LONGEST` characters; a warning counts.

    `rust` is not the tokenizer that is being trained on them: that is locked.
    """
    assert rust.pre_tokenizer is not None
    cut = longest = 0
    for text in texts:
        begin = 0
        for _, (start, end) in rust.pre_tokenizer.pre_tokenize_str(text) if _has_long(text) else ():
            if end - start > LONGEST:
                cut, longest = cut + 1, max(longest, end - start)
                for at in range(start + LONGEST, end, LONGEST):
                    yield text[begin:at]
                    begin = at
        yield text[begin:]
    if cut:
        logging.warning(
            "the tokenizer learns from pieces of at most %d characters: %d longer ones (words, runs of white space; "
            "the longest has %d) were cut to learn from. If they are no language, leave them out of the data",
            LONGEST, cut, longest,
        )  # fmt: skip


def _has_long(text: str) -> bool:
    """Whether there may be a piece of more than `LONGEST` characters: none has white space within it, and others."""
    if len(text) <= LONGEST:
        return False
    runs = (*text.split(), *re.findall(r"\s{32,}", text))
    return max(map(len, runs), default=0) >= LONGEST


def _room(
    recipe: TokenizerRecipe, vocabulary: int, sentinels: int, special: Sequence[str], fixed: int, least: int
) -> int:
    """The ids left to learn, when `fixed` ones and the special ones are taken; the algorithm needs `least` of them."""
    taken = fixed + len(specials_from(0, sentinels, special))
    if vocabulary < taken + least:
        needs = f"it needs {taken + least} or more"
        raise InputError(f"{type(recipe).__name__}(vocabulary={vocabulary}) is too small: {needs}")
    return vocabulary - taken


def _without_rare_characters(texts: Iterable[str], room: int) -> tuple[list[str], list[str]]:
    """The most frequent characters, so many that most of the vocabulary is left to longer tokens, by code point; and
    the texts without the others."""
    texts = list(_checked(texts))
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(text)
    by_frequency = sorted(counts, key=lambda c: (-counts[c], c))
    kept, rare = by_frequency[: room // 4], by_frequency[room // 4 :]
    nothing = dict.fromkeys(map(ord, rare))
    return sorted(kept), [text.translate(nothing) for text in texts]


def _without_noise(pieces: list[tuple[str, float]]) -> list[tuple[str, float]]:
    """The pieces that the Unigram trainer learnt, best first, less what differs from one training to the next.

    It sums in no certain order, so that the last digits of a score are noise. Characters that it had pruned come
    back with the lowest score plus 0, 0.0001, 0.0002 ... in no certain order: all of them get the lowest.
    """
    lowest = min((score for _, score in pieces), default=0.0)
    restored = lowest + 1e-4 * sum(len(piece) == 1 for piece, _ in pieces)
    scores = {piece: lowest if len(piece) == 1 and score < restored else score for piece, score in pieces}
    return sorted(((piece, round(score, 4)) for piece, score in scores.items()), key=lambda p: (-p[1], p[0]))


RECIPES = dict(
    Bpe=Bpe, WordPiece=WordPiece, Unigram=Unigram, Gpt2=Gpt2, Characters=Characters, Words=Words, Bytes=Bytes,
)  # fmt: skip
