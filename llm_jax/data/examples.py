"""Examples shown as two sides: a source to read and a target to write, or two texts of one meaning."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from llm_jax.core.errors import InputError
from llm_jax.core.parts import Size, show
from llm_jax.data.cache import Corpus
from llm_jax.data.documents import Document, Example
from llm_jax.data.packing import One, Plan, ramps
from llm_jax.data.presentation import Presentation, shortened_where
from llm_jax.text.cut import beginning
from llm_jax.text.special import frame


@dataclasses.dataclass(frozen=True)
class SourceAndTarget(Presentation):
    """Examples as pairs of a source to read and a target to write, of at most `sources` and `data.length` tokens.

    The batch has `source_BS`, `source_segment_BS` and `source_position_BS` beside the usual arrays, which hold the
    targets: each begins with `bos` (in whose place a model may read a `start` of its own) and is to end with `eos`. A
    pair has one segment number on both sides. With `data.packing=BestFit("refuse")` several share a row, with `One()`
    none do; where `too_long` is "truncate", a source and a target keep their first tokens, and a source those around
    its text (`bos`, and `eos` where `rendering.prompt_eos`).
    """

    sources: Size = 64

    def __call__(self, batch, length, special, seed_B):
        segment_BT, learnt_BT = batch["segment_BT"], batch["weight_BT"] > 0
        real_BT = segment_BT >= 0
        opens_BT = learnt_BT & ~np.pad(learnt_BT, ((0, 0), (1, 0)))[:, :-1]  # where the target of a pair begins
        opens_BT |= learnt_BT & (batch["position_BT"] == 0)
        reads_BT = real_BT & (~learnt_BT | opens_BT)  # the last token of a source predicts the first of its target
        given = dict(tokens=batch["tokens_BT"], segment=segment_BT)
        source = _gathered(given, reads_BT, self.sources, special["pad"])
        shifted_BT = np.where(opens_BT, special.get("bos", special["pad"]), batch["tokens_BT"])
        given = dict(
            tokens=shifted_BT, targets=batch["targets_BT"], weight=batch["weight_BT"], segment=segment_BT,
            bytes=batch["bytes_BT"],
        )  # fmt: skip
        target = _gathered(given, learnt_BT, length, special["pad"])
        return dict(
            source_BS=source["tokens"],
            source_segment_BS=source["segment"],
            source_position_BS=_positions(source["segment"]),
            tokens_BT=target["tokens"],
            targets_BT=target["targets"],
            weight_BT=target["weight"],
            segment_BT=target["segment"],
            position_BT=_positions(target["segment"]),
            bytes_BT=target["bytes"],
        )

    def row(self, length):
        return self.sources + length  # one more than a pair needs: the tokens of both sides, less one, have targets

    def source(self):
        return self.sources

    def plan(self, packing, corpus, length, rng):
        """Documents are packed by the side that fills more of its room, so that both sides of a row fit."""
        begin, end, cut = _cuts(corpus)
        source, target = cut - begin, end - cut
        if getattr(packing, "too_long", None) == "refuse":
            self._refuse_long(source, target, length)
        elif (longer := source > self.sources).any():
            raise InputError(
                f"{longer.sum()} of {len(longer)} sources have more than data.presentation.sources={self.sources} "
                "tokens though their prompts were cut: raise it"
            )
        fill = np.maximum(-(-source * length // self.sources), target)
        plan = packing.plan(np.append(0, np.cumsum(fill + 1)), length, rng)
        assert isinstance(plan, Plan), "a packing with too_long lists its pieces"
        document = np.searchsorted(np.cumsum(fill + 1), plan.start, side="right")
        start = begin[document]
        stop = np.minimum(end, cut + length)[document]
        return Plan(start, stop - 1 - start, plan.first)

    def shortened(self, document, tokenizer, rendering, length):
        """With the beginning of its prompt that leaves room for the tokens around it."""
        if not isinstance(document, Example):
            return document
        settled = rendering.settled
        around = [*frame(tokenizer.special, "bos", settled.bos), *frame(tokenizer.special, "eos", settled.prompt_eos)]
        if len(around) >= self.sources:
            raise InputError(
                f"data.presentation.sources={self.sources} has no room for a token of a source beside the "
                f"{len(around)} around it: raise it"
            )
        prompt = beginning(document.prompt, tokenizer, self.sources - len(around))
        return document if prompt == document.prompt else dataclasses.replace(document, prompt=prompt)

    def fitted(self, documents, corpus, tokenizer, rendering, length, cuts):
        begin, _, cut = _cuts(corpus)
        long_N = cut - begin > self.sources if cuts else np.zeros(0, bool)
        return shortened_where(
            long_N, documents, lambda d: self.shortened(d, tokenizer, rendering, length), "SourceAndTarget"
        )

    def _refuse_long(self, source: np.ndarray, target: np.ndarray, length: int) -> None:
        long = (source > self.sources) | (target > length)
        if long.any():
            raise InputError(
                f"{long.sum()} of {len(long)} pairs are too long (the longest source has {source.max()} tokens, the "
                f"longest target {target.max()}): raise data.presentation.sources={self.sources} and "
                f"data.length={length}, or set data.packing.too_long to 'truncate'"
            )

    def check(self, rendering, packing):
        if rendering.learn != "answers" or not (rendering.eos and (rendering.bos or rendering.prompt_eos)):
            raise InputError(
                "SourceAndTarget tells sources from targets by what is learnt: set data.rendering=Rendering("
                "learn='answers'), with eos, and with bos or prompt_eos"
            )
        if getattr(packing, "too_long", None) not in ("refuse", "truncate"):
            raise InputError(
                f"SourceAndTarget keeps pairs whole, which data.packing={show(packing, whole=True)} does not: use "
                "BestFit(too_long='refuse') or One()"
            )

    def check_documents(self, documents):
        _check_examples(documents, "SourceAndTarget")


@dataclasses.dataclass(frozen=True)
class TwoTexts(Presentation):
    """Examples as two texts of one meaning, of at most `data.length` tokens each: for an encoder to compare.

    The prompt is in `source_BS`, `source_segment_BS` and `source_position_BS`, the answer in `tokens_BT`, `segment_BT`
    and `position_BT`, each between `bos` and `eos`. `data.packing` is One(): with "truncate" a text keeps its
    beginning.
    """

    def __call__(self, batch, length, special, seed_B):
        made = {}
        for number, names in enumerate((("source", "BS", "source_"), ("tokens", "BT", ""))):
            chosen_BT = batch["segment_BT"] == number
            given = _gathered(dict(tokens=batch["tokens_BT"]), chosen_BT, length, special["pad"])["tokens"]
            size_B = chosen_BT.sum(1)
            token_BT = np.full_like(given, special["pad"])
            for row in np.flatnonzero(size_B).tolist():
                ids = given[row, : size_B[row]].tolist()
                ids = ([special["bos"]] * (ids[0] != special["bos"]) + ids)[:length]
                ids = ids if ids[-1] == special["eos"] else [*ids[: length - 1], special["eos"]]
                token_BT[row, : len(ids)], size_B[row] = ids, len(ids)
            segment_BT = np.where(np.arange(length)[None] < size_B[:, None], 0, -1).astype(np.int32)
            name, axes, before = names
            made[f"{name}_{axes}"] = token_BT
            made[f"{before}segment_{axes}"], made[f"{before}position_{axes}"] = segment_BT, _positions(segment_BT)
        return made

    def row(self, length):
        return 2 * length

    def plan(self, packing, corpus, length, rng):
        """Two pieces a row: the tokens that are not learnt, and those that are."""
        if length < 3:
            raise InputError(f"data.length={length} has no room for a token between bos and eos: raise it")
        begin, end, cut = _cuts(corpus)
        order = np.arange(len(begin)) if rng is None else rng.permutation(len(begin))
        size = np.stack([cut - begin, end - cut], 1)[order]
        room = np.array([length - 1, length - 1])  # `bos` or `eos` may have to be added
        if getattr(packing, "too_long", None) == "refuse" and (size > room).any():
            raise InputError(
                f"{(size > room).any(1).sum()} of {len(size)} examples have a text of more than {length - 1} tokens "
                f"(the longest has {size.max()}): raise data.length={length}, or set data.packing=One('truncate')"
            )
        start = np.stack([begin, cut], 1)[order]
        return Plan(start.reshape(-1), np.minimum(size, room).reshape(-1), np.arange(0, 2 * len(size) + 1, 2))

    def check(self, rendering, packing):
        if rendering.learn != "answers" or not (rendering.bos and rendering.eos):
            raise InputError(
                "TwoTexts tells the texts of an example apart by what is learnt: set data.rendering=Rendering("
                "learn='answers'), with bos and eos"
            )
        if not isinstance(packing, One) or packing.too_long == "split":
            raise InputError(
                f"TwoTexts shows an example a row: set data.packing=One(), not {show(packing, whole=True)}"
            )

    def check_documents(self, documents):
        _check_examples(documents, "TwoTexts")


def _cuts(corpus: Corpus) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Where each document begins and ends, and where what is learnt of it begins: its answer, or `eos` alone.

    Raises:
      InputError: nothing is learnt of one (a user's own kind of example).
    """
    begin, end, learnt = corpus.offsets[:-1], corpus.offsets[1:], np.flatnonzero(corpus.learnt)
    first = np.searchsorted(learnt, begin)
    if (without := first == np.searchsorted(learnt, end)).any():
        raise InputError(f"of {without.sum()} of {len(without)} examples nothing is learnt: they have no second side")
    return begin, end, learnt[first]


def _check_examples(documents: Sequence[Document], name: str) -> None:
    for document in documents:
        if not isinstance(document, Example):
            raise InputError(f"{name} needs examples with a prompt and an answer, not a {type(document).__name__}")


def _gathered(arrays: dict[str, np.ndarray], chosen_BT: np.ndarray, length: int, pad: int) -> dict[str, np.ndarray]:
    """Of each row, the chosen places moved together to the left of rows of `length`."""
    row, _ = np.nonzero(chosen_BT)
    place = ramps(chosen_BT.sum(1))
    empty = dict(tokens=pad, targets=pad, segment=-1)
    moved = {}
    for name, array in arrays.items():
        moved[name] = np.full((len(chosen_BT), length), empty.get(name, 0), array.dtype)
        moved[name][row, place] = array[chosen_BT]
    return moved


def _positions(segment_BT: np.ndarray) -> np.ndarray:
    """Each token's position within its segment; 0 in padding."""
    place_T = np.arange(segment_BT.shape[1], dtype=np.int32)[None]
    begins_BT = np.diff(segment_BT, axis=1, prepend=-2) != 0
    position_BT = place_T - np.maximum.accumulate(np.where(begins_BT, place_T, 0), axis=1)
    return np.where(segment_BT >= 0, position_BT, 0).astype(np.int32)


PRESENTATIONS = dict(SourceAndTarget=SourceAndTarget, TwoTexts=TwoTexts)
