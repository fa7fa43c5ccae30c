"""Texts to be restored by a model that reads what is left of them and writes: BART, T5, UL2, prefix language models."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import numpy as np

from llm_jax.core.errors import InputError
from llm_jax.core.parts import Part, Positive, Range, Size, show
from llm_jax.data.documents import check_weights
from llm_jax.data.noising import ProperShare
from llm_jax.data.packing import One, Windows
from llm_jax.data.presentation import Presentation, Vocabulary, check_learns_all, whole
from llm_jax.text.special import sentinel


class Denoiser(Part):
    """Takes something from a text: `denoiser(text_N, special, rng)` gives what is read and what is to be written."""

    def __call__(
        self, text_N: np.ndarray, special: Vocabulary, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        raise NotImplementedError

    def room(self, tokens: int) -> tuple[int, int]:
        """How many tokens both have at most, of a text with so many."""
        raise NotImplementedError

    def check(self, special: Vocabulary, tokens: int) -> None:
        """Nothing, if there are the special tokens that texts of up to so many tokens need.

        Raises:
          InputError: there are not.
        """


@dataclasses.dataclass(frozen=True)
class SpanCorruption(Denoiser):
    """T5's: spans that make up `density` of the text, `span` tokens long on average, are to be written in turn.

    Where one was, and before it where it is written, stands a sentinel: `<extra_id_0>` for the first, and so on. The
    first token is kept, as in T5's code; all ways to take so many tokens in so many spans are as likely (Raffel et al.
    2020). T5's code always takes the last token. That hardly shows in its windows of 512 tokens; of a short text it
    would take the end and nothing else.
    """

    density: ProperShare = 0.15
    span: Annotated[float, Range(least=1)] = 3.0

    def __call__(self, text_N, special, rng):
        taken, spans = self.counts(len(text_N))
        if not spans:
            return text_N, text_N[:0]
        kept = _cut(len(text_N) - taken + 1, spans + 1, rng)[:-1]  # what is left at the end may be nothing
        sizes = np.stack([kept, _cut(taken, spans, rng)], 1).reshape(-1)
        *pieces, end = np.split(text_N, np.cumsum(sizes))
        marks = [np.array([special[sentinel(i)]], text_N.dtype) for i in range(spans)]
        source = [piece for pair in zip(pieces[::2], marks, strict=True) for piece in pair]
        target = [piece for pair in zip(marks, pieces[1::2], strict=True) for piece in pair]
        return np.concatenate([*source, end]), np.concatenate(target)

    def counts(self, tokens: int) -> tuple[int, int]:
        """How many of a text's tokens are taken, in how many spans."""
        if tokens < 2:
            return 0, 0
        taken = min(max(round(tokens * self.density), 1), tokens - 1)
        return taken, min(max(round(taken / self.span), 1), taken, tokens - taken)

    def room(self, tokens):
        taken, spans = self.counts(tokens)
        return tokens - taken + spans, taken + spans

    def check(self, special, tokens):
        needed = max(self.counts(n)[1] for n in range(tokens + 1))
        there = next((i for i in range(needed) if sentinel(i) not in special), needed)
        if there < needed:
            raise InputError(
                f"{show(self, whole=True)} needs {needed} sentinels for texts of {tokens} tokens, and the tokenizer "
                f"has {there}: set tokenizer.sentinels={needed}, or a larger span"
            )


def _cut(tokens: int, pieces: int, rng: np.random.Generator) -> np.ndarray:
    """The sizes of so many pieces, none of them empty."""
    cuts = np.sort(rng.choice(tokens - 1, pieces - 1, replace=False)) + 1
    return np.diff(cuts, prepend=0, append=tokens)


@dataclasses.dataclass(frozen=True)
class TextInfilling(Denoiser):
    """BART's: the sentences in another order, and one `mask` in the place of each of some spans; all is to be written.

    The spans make up `share` of the tokens, rounded up; their lengths are drawn from a Poisson distribution with mean
    `span`, where an empty one puts a `mask` between two tokens; the last is as long as is still missing. Sentences end
    with a token that ends with ".", "!" or "?" (Lewis et al. 2020).
    """

    share: ProperShare = 0.3
    span: Positive = 3.0
    permute_sentences: bool = True

    def __call__(self, text_N, special, rng):
        if not len(text_N):
            return text_N, text_N
        read_N = _permuted(text_N, special, rng) if self.permute_sentences else text_N
        taken = int(np.ceil(self.share * len(text_N)))
        drawn = rng.poisson(self.span, taken)
        drawn[-1] = taken  # enough, should all others be short
        sizes = drawn[: np.argmax(np.cumsum(drawn) >= taken) + 1]
        sizes[-1] -= sizes.sum() - taken
        left = np.ones(len(text_N) - taken + len(sizes), int)  # how many tokens each of those in the source stands for
        masks = np.sort(rng.choice(len(left), len(sizes), replace=False))
        left[masks] = sizes
        place = np.minimum(np.cumsum(left) - left, len(text_N) - 1)
        is_mask = np.isin(np.arange(len(left)), masks)
        return np.where(is_mask, special["mask"], read_N[place]).astype(text_N.dtype), text_N

    def room(self, tokens):
        return tokens, tokens

    def check(self, special, tokens):
        if "mask" not in special:
            raise InputError("TextInfilling puts a special token 'mask' in texts, and this tokenizer has none")


def _permuted(text_N: np.ndarray, special: Vocabulary, rng: np.random.Generator) -> np.ndarray:
    ends = np.flatnonzero(special.stops_V[text_N]) + 1
    sentences = [piece for piece in np.split(text_N, ends) if len(piece)]
    return np.concatenate([sentences[i] for i in rng.permutation(len(sentences))])


@dataclasses.dataclass(frozen=True)
class Suffix(Denoiser):
    """A text is cut at any place: its beginning is read, the rest is to be written (prefix LM; Raffel et al. 2020).

    A Decoder learns so from whole texts, with `AsIs()` and the mask `Prefix(n)`: NextToken gives the targets that it
    shows weight 0.
    """

    def __call__(self, text_N, special, rng):
        cut = rng.integers(1, len(text_N)) if len(text_N) > 1 else len(text_N)
        return text_N[:cut], text_N[cut:]

    def room(self, tokens):
        return max(tokens - 1, min(tokens, 1)), max(tokens - 1, 0)


UL2 = (
    SpanCorruption(0.15, 3.0), SpanCorruption(0.15, 8.0), Suffix(), SpanCorruption(0.5, 3.0), SpanCorruption(0.5, 8.0),
    SpanCorruption(0.15, 64.0), SpanCorruption(0.5, 64.0),
)  # fmt: skip  # two R-denoisers, the S-denoiser, four X-denoisers


@dataclasses.dataclass(frozen=True)
class MixtureOfDenoisers(Denoiser):
    """Of each row another of several takes something, all as often (Tay et al. 2023, UL2; without tokens for modes)."""

    denoisers: Annotated[tuple[Denoiser, ...], Range(least=1)] = UL2

    def __call__(self, text_N, special, rng):
        return self.denoisers[rng.integers(len(self.denoisers))](text_N, special, rng)

    def room(self, tokens):
        sources, targets = zip(*(denoiser.room(tokens) for denoiser in self.denoisers), strict=True)
        return max(sources), max(targets)

    def check(self, special, tokens):
        for denoiser in self.denoisers:
            denoiser.check(special, tokens)


@dataclasses.dataclass(frozen=True)
class Denoising(Presentation):
    """A text a row: what `denoiser` leaves of it is the source, what it wants written the target.

    The batch has the arrays of `SourceAndTarget`, with `bytes_BT` 0: the loss is not that of the text. A source has at
    most `sources` tokens and keeps the text's own `bos` and `eos`; a target begins with `bos` (or `pad`, where the
    tokenizer has no `bos`: T5) and ends with `eos`, and has at most `data.length` tokens, `eos` included. Rows are as
    long as both allow (`row`). `data.packing` is One(), or Windows(stride), which pays documents no heed, as T5 does.
    Every epoch takes anew; evaluation takes always the same.
    """

    denoiser: Denoiser = SpanCorruption()
    sources: Size = 64

    def __call__(self, batch, length, special, seed_B):
        rows, pad = len(batch["tokens_BT"]), special["pad"]
        source_BS = np.full((rows, self.sources), pad, np.int32)
        token_BT, target_BT = (np.full((rows, length), pad, np.int32) for _ in range(2))
        reads_B, writes_B = np.zeros(rows, int), np.zeros(rows, int)
        for row in np.flatnonzero((batch["segment_BT"] >= 0).any(1)).tolist():
            before, text, after = _unframed(batch["tokens_BT"][row][batch["segment_BT"][row] >= 0], special)
            source, target = self.denoiser(text, special, np.random.default_rng(seed_B[row]))
            source, target = np.concatenate([before, source, after]), np.append(target, special["eos"])
            reads_B[row], writes_B[row] = len(source), len(target)
            source_BS[row, : len(source)] = source
            target_BT[row, : len(target)] = target
            token_BT[row, : len(target)] = np.append(special.get("bos", pad), target[:-1])
        source_segment_BS, source_position_BS = _places(reads_B, self.sources)
        segment_BT, position_BT = _places(writes_B, length)
        return dict(
            source_BS=source_BS,
            source_segment_BS=source_segment_BS,
            source_position_BS=source_position_BS,
            tokens_BT=token_BT,
            targets_BT=target_BT,
            weight_BT=(segment_BT >= 0).astype(np.float32),
            segment_BT=segment_BT,
            position_BT=position_BT,
            bytes_BT=np.zeros((rows, length), np.int32),
        )

    def row(self, length):
        """The most tokens, `bos` and `eos` included, of which (and of fewer) both sides surely fit.

        Raises:
          InputError: not even one token's do.
        """
        tokens = 0
        while tokens < self.sources + length and self._fits(tokens + 1, length):
            tokens += 1
        if not tokens:
            raise InputError(
                f"data.presentation.sources={self.sources} and data.length={length} have no room for a text: raise them"
            )
        return tokens

    def _fits(self, tokens: int, length: int) -> bool:
        for framed in range(min(tokens, 2) + 1):
            source, target = self.denoiser.room(tokens - framed)
            if source + framed > self.sources or target + 1 > length:
                return False
        return True

    def source(self):
        return self.sources

    def plan(self, packing, corpus, length, rng):
        return whole(packing, corpus.offsets, self.row(length), rng, "data.presentation.sources and data.length")

    def check(self, rendering, packing):
        check_learns_all(rendering, "Denoising")
        if not isinstance(packing, (One, Windows)):
            raise InputError(
                f"Denoising shows a text a row, which data.packing={show(packing, whole=True)} does not: use "
                "One('split') or Windows(stride)"
            )

    def check_documents(self, documents):
        super().check_documents(documents)
        check_weights(documents, "Denoising")

    def check_vocabulary(self, special, length):
        if "eos" not in special:
            raise InputError("Denoising ends targets with a special token 'eos', and this tokenizer has none")
        self.denoiser.check(special, self.row(length))


def _unframed(ids_N: np.ndarray, special: Vocabulary) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """`bos`, if the text begins with it; the text; `eos`, if it ends with it."""
    first = int(ids_N[0] == special.get("bos"))
    last = len(ids_N) - int(len(ids_N) > first and ids_N[-1] == special["eos"])
    return ids_N[:first], ids_N[first:last], ids_N[last:]


def _places(size_B: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Segments (0, and -1 in padding) and positions of rows with so many tokens."""
    place_BT = np.broadcast_to(np.arange(length, dtype=np.int32)[None], (len(size_B), length))
    real_BT = place_BT < size_B[:, None]
    return np.where(real_BT, 0, -1).astype(np.int32), np.where(real_BT, place_BT, 0).astype(np.int32)


DENOISERS = dict(
    SpanCorruption=SpanCorruption, TextInfilling=TextInfilling, Suffix=Suffix, MixtureOfDenoisers=MixtureOfDenoisers
)
PRESENTATIONS = dict(Denoising=Denoising)
