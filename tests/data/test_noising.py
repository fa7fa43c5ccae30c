"""Masked tokens: BERT's rates, whole words, what is never masked, and that masks are new in training alone."""

import itertools

import numpy as np
import pytest

from llm_jax.core.errors import InputError
from llm_jax.data.documents import Rendering
from llm_jax.data.noising import Masked, words
from llm_jax.data.packing import PACKINGS, BestFit, One, Windows
from llm_jax.data.pipeline import Data
from llm_jax.data.presentation import Vocabulary
from llm_jax.data.sources import PythonHelp
from llm_jax.data.split import ByHash
from llm_jax.text.recipes import RECIPES, Characters, WordPiece
from llm_jax.text.tokenizer import Tokenizer


def raw(tokenizer: Tokenizer, texts: list[str], length: int):
    """A row for each text, framed and padded."""
    special, shape = tokenizer.special, (len(texts), length)
    token_BT, segment_BT = np.full(shape, special["pad"], np.int32), np.full(shape, -1, np.int32)
    for row, text in enumerate(texts):
        ids = [special["bos"], *tokenizer.encode(text), special["eos"]][:length]
        token_BT[row, : len(ids)], segment_BT[row, : len(ids)] = ids, 0
    return dict(tokens_BT=token_BT, segment_BT=segment_BT, position_BT=np.zeros(shape, np.int32))


def test_the_rates_are_berts(tokenizer):
    rng = np.random.default_rng(0)
    texts = [rng.integers(97, 123, 900).astype(np.uint8).tobytes().decode() for _ in range(60)]
    batch, special = raw(tokenizer, texts, 1000), Vocabulary(tokenizer)
    made = Masked(0.15)({**batch}, 1000, special, [(0, row) for row in range(60)])
    before, after, chosen = batch["tokens_BT"], made["tokens_BT"], made["weight_BT"] == 1
    ordinary = before < 256
    np.testing.assert_array_equal(made["targets_BT"], before)
    np.testing.assert_array_equal(after[~chosen], before[~chosen])
    assert not chosen[~ordinary].any() and set(made["weight_BT"].flat) == {0.0, 1.0}
    n, k = ordinary.sum(), chosen.sum()
    assert abs(k / n - 0.15) < 4 * np.sqrt(0.15 * 0.85 / n)
    masked, same = (after == special["mask"])[chosen].mean(), (after == before)[chosen].mean()
    drawn = after[chosen & (after != special["mask"]) & (after != before)]
    for found, share in ((masked, 0.8), (same, 0.1 + 0.1 / 256), (len(drawn) / k, 0.1 - 0.1 / 256)):
        assert abs(found - share) < 4 * np.sqrt(share * (1 - share) / k)
    assert drawn.max() < 256 and len(set(drawn)) > 200  # of all ordinary tokens, and no special ones
    per_row = chosen.sum(1)
    assert per_row.std() > 5  # the tokens are chosen independently


def test_of_every_row_something_is_chosen(tokenizer):
    batch = raw(tokenizer, ["abc", "de", "f"] * 40, 8)
    made = Masked(0.01)(batch, 8, Vocabulary(tokenizer), [(0, row) for row in range(120)])
    chosen = made["weight_BT"] == 1
    assert (chosen.sum(1) == 1).mean() > 0.9 and chosen.any(1).all()
    assert {int(place) for place in chosen[::3].argmax(1)} == {1, 2, 3}  # whichever it is


def test_whole_words():
    texts = ["unbelievable understanding of the undertakings, re-entering 1234567 (naïveté)!"] * 400
    tokenizer = WordPiece(vocabulary=200).train([*texts, "abcdefghijklmnopqrstuvwxyz" * 2])
    batch, special = raw(tokenizer, texts, 160), Vocabulary(tokenizer)
    word_T = words(batch["tokens_BT"], batch["segment_BT"], special)[0]
    ids = batch["tokens_BT"][0]
    firsts = sorted(set(word_T[batch["segment_BT"][0] == 0]))
    spelt = " ".join(tokenizer.decode(ids[word_T == first]) for first in firsts)
    assert spelt.strip() == "unbelievable understanding of the undertakings , re - entering 1234567 ( naïveté ) !"
    made = Masked(0.2, whole_words=True)(batch, 160, special, [(1, row) for row in range(400)])
    chosen = made["weight_BT"] == 1
    for first in sorted(set(word_T)):
        together = chosen[:, word_T == first]
        assert (together.all(1) | ~together.any(1)).all()
    rates = np.array([chosen[:, first].mean() for first in sorted(set(word_T)) if chosen[:, first].any()])
    assert len(rates) == len(firsts) - 2 and abs(rates.mean() - 0.2) < 4 * np.sqrt(0.16 / 400 / len(rates))


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_words_by_every_tokenizer(recipe):
    texts = ["well, don't stop: the 2nd naïve café's door " * 9, "abcdefghijklmnopqrstuvwxyz" * 3]
    tokenizer = recipe().train(texts)
    batch, special = raw(tokenizer, ["the café, 2nd door"], 40), Vocabulary(tokenizer)
    ids = batch["tokens_BT"][0]
    word_T, real = words(batch["tokens_BT"], batch["segment_BT"], special)[0], batch["segment_BT"][0] == 0
    spelt = [tokenizer.decode(ids[(word_T == first) & real]).strip() for first in sorted(set(word_T[real]))]
    assert [word for word in spelt if word] == ["the", "café", ",", "2nd", "door"]
    assert not set(special.ordinary_N) & set(tokenizer.special.values())


@pytest.mark.parametrize("packing", PACKINGS.values(), ids=PACKINGS)
def test_training_masks_anew_and_evaluation_always_the_same(packing, words, tokenizer):
    how = {One: One("split"), Windows: Windows(7)}.get(packing) or packing()
    data = Data(words(30, 20), length=24, batch=8, packing=how, presentation=Masked(), split=ByHash(0.3), shuffle=False)
    first, again = (list(data.evaluation(tokenizer)) for _ in range(2))
    for one, other in zip(first, again, strict=True):
        for name in one:
            np.testing.assert_array_equal(one[name], other[name])
    shown: dict[bytes, list[bytes]] = {}  # in one order always, so that each epoch has the rows of the one before
    for batch in itertools.islice(data.train(tokenizer, seed=0), 40):
        for token, target, segment in zip(*(batch[n] for n in ("tokens_BT", "targets_BT", "segment_BT")), strict=True):
            if (segment >= 0).sum() > 15:
                shown.setdefault(target.tobytes(), []).append(token.tobytes())
    assert len(shown) > 5 and all(len(seen) > 3 and len(set(seen)) > 1 for seen in shown.values())
    blank = data.blank(8)
    assert {n: (a.shape, a.dtype) for n, a in blank.items()} == {n: (a.shape, a.dtype) for n, a in first[0].items()}
    assert not blank["weight_BT"].any()


@pytest.mark.parametrize("packing", [One(), BestFit()], ids=str)
def test_every_token_is_shown_the_last_one_included(packing, words, tokenizer):
    data = Data(words(20, 20), length=25, batch=4, packing=packing, presentation=Masked(), split=ByHash(0.0))
    whole, seen = {document.text() for document in data.documents("train")}, set()
    for batch in itertools.islice(data.train(tokenizer, seed=1), 12):
        for target, segment, place in zip(batch["targets_BT"], batch["segment_BT"], batch["position_BT"], strict=True):
            for number in range(segment.max() + 1):
                ids = target[segment == number]
                assert ids[0] == tokenizer.special["bos"] and ids[-1] == tokenizer.special["eos"]
                np.testing.assert_array_equal(place[segment == number], np.arange(len(ids)))
                seen.add(tokenizer.decode(ids))
    assert seen == whole
    with pytest.raises(
        InputError, match=r"documents are longer than a row \(the longest has 25 tokens, a row holds 9\)"
    ):
        next(Data(words(20, 20), length=9, packing=One(), presentation=Masked()).train(tokenizer, seed=0))


def test_quotes_and_dashes_are_no_letters():
    text = "\u201cnai\u0308ve\u201d\u2014caf\u00e9\u3002"
    tokenizer = Characters().train([text])
    batch, special = raw(tokenizer, [text], 20), Vocabulary(tokenizer)
    ids, real = batch["tokens_BT"][0], batch["segment_BT"][0] == 0
    word_T = words(batch["tokens_BT"], batch["segment_BT"], special)[0]
    spelt = [tokenizer.decode(ids[(word_T == first) & real]) for first in sorted(set(word_T[real]))]
    assert [word for word in spelt if word] == ["\u201c", "nai\u0308ve", "\u201d", "\u2014", "caf\u00e9", "\u3002"]


def test_answers_alone_are_refused(tokenizer, words):
    with pytest.raises(InputError, match="Masked knows no answers: set data"):
        Data(words(), presentation=Masked(), rendering=Rendering(learn="answers")).train(tokenizer, seed=0)


def test_a_tokenizer_without_a_mask_is_refused(tokenizer):
    special = {name: i for name, i in tokenizer.special.items() if name != "mask"}
    bare = Tokenizer(tokenizer._rust, special, "letters")
    with pytest.raises(InputError, match="this tokenizer has none"):
        Data(PythonHelp(), presentation=Masked(), rendering=Rendering()).train(bare, seed=0)
