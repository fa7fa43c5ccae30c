import dataclasses
import errno
import math
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
from absl import logging

from llm_jax.core import code
from llm_jax.core.errors import InputError
from llm_jax.core.user_modules import load_module
from llm_jax.data import cache
from llm_jax.data.documents import Conversation, Example, Rendering, Text
from llm_jax.data.pipeline import Data
from llm_jax.data.sources import Source
from llm_jax.data.split import ByHash
from llm_jax.text.chat import Message
from llm_jax.text.recipes import Bpe, Bytes

DOCUMENTS = [Text("the first"), Example("2+2=", "4"), Text("the third")]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("LLM_JAX_CACHE", str(tmp_path))
    return tmp_path / "corpora"


@pytest.fixture
def tokenised(monkeypatch):
    """Counts how often a corpus is tokenised."""
    calls = []
    inner = cache._tokenise
    monkeypatch.setattr(cache, "_tokenise", lambda *args: calls.append(1) or inner(*args))
    return calls


def test_a_corpus_holds_the_tokens_of_every_document(tokenizer):
    made = cache.corpus(DOCUMENTS, tokenizer, Rendering(learn="answers"))
    for i, document in enumerate(DOCUMENTS):
        here = slice(*made.offsets[i : i + 2])
        ids, learnt = document.tokens(tokenizer, Rendering(learn="answers"))
        assert made.tokens[here].tolist() == ids and made.learnt[here].tolist() == learnt
    assert made.tokens.dtype == np.uint16


def test_the_first_token_of_a_document_is_never_learnt(tokenizer):
    made = cache.corpus(DOCUMENTS, tokenizer, Rendering(bos=False))
    assert not made.learnt[made.offsets[:-1]].any() and made.learnt.sum() == len(made.tokens) - 3


def test_it_is_tokenised_once_for_a_text_a_tokenizer_and_a_rendering(tokenizer, tokenised, folder):
    for _ in range(3):
        cache.corpus(DOCUMENTS, tokenizer, Rendering())
    assert len(tokenised) == 1
    cache.corpus(DOCUMENTS, Bytes().train([]), Rendering())
    assert len(tokenised) == 1, "an equal tokenizer is the same"
    cache.corpus(DOCUMENTS[:2], tokenizer, Rendering())
    cache.corpus([Text("the first"), Text("2+2=4"), Text("the third")], tokenizer, Rendering())
    cache.corpus(DOCUMENTS, tokenizer, Rendering(eos=False))
    cache.corpus(DOCUMENTS, Bpe(300).train(d.text() for d in DOCUMENTS), Rendering())
    assert len(tokenised) == 5 == len(list(folder.iterdir()))


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[:-1],
        lambda data: data[:100],
        lambda data: b"",
        lambda data: data[:-1] + bytes([data[-1] ^ 1]),
        lambda data: b"\x93" + data[1:],
        lambda data: b"[]" + data[2:].replace(data[2:512], b" " * 510),
        lambda data: data.replace(b"corpus 3", b"corpus 0"),
    ],
    ids=["cut", "no header", "empty", "bit flipped", "not JSON", "no object", "old format"],
)
def test_a_damaged_entry_is_made_again_saying_so(tokenizer, tokenised, folder, damage, monkeypatch):
    said = []
    monkeypatch.setattr(logging, "warning", lambda text, *args: said.append(text % args))
    whole = cache.corpus(DOCUMENTS, tokenizer, Rendering())
    content = whole.path.read_bytes()
    whole.path.write_bytes(damage(content))
    again = cache.corpus(DOCUMENTS, tokenizer, Rendering())
    assert again.path.read_bytes() == content and len(tokenised) == 2
    assert len(said) == 1 and "is damaged" in said[0] and str(whole.path) in said[0]


def test_a_worker_is_sent_the_path_and_not_the_corpus(tokenizer):
    made = cache.corpus([Text("long " * 10_000)], tokenizer, Rendering())
    sent = pickle.dumps(made)
    assert len(sent) < 1000
    np.testing.assert_array_equal(pickle.loads(sent).tokens, made.tokens)


def test_a_full_disk_is_one_clear_line(tokenizer, monkeypatch):
    def full(path, content):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(cache, "write_atomically", full)
    with pytest.raises(InputError, match=r"cannot write the corpus cache .*No space left on device.*LLM_JAX_CACHE"):
        cache.corpus(DOCUMENTS, tokenizer, Rendering())


def test_wide_vocabularies_get_wide_tokens(tokenizer, monkeypatch):
    monkeypatch.setattr(tokenizer, "vocabulary", 2**16 + 1)
    assert cache.corpus([Text("wide")], tokenizer, Rendering()).tokens.dtype == np.int32


def test_a_cache_that_cannot_be_read_is_named(tokenizer, monkeypatch):
    cache.corpus(DOCUMENTS, tokenizer, Rendering())

    def refuse(path):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(cache, "_fault", refuse)
    with pytest.raises(InputError, match=r"cannot read .*\.tokens: Permission denied"):
        cache.corpus(DOCUMENTS, tokenizer, Rendering())


# ---------------------------------------------------------------------------------------------------- tokenizers


TEXTS = ["the cat sat on the mat " * 20, "the dog sat on the log " * 20]


@pytest.fixture
def trainings(monkeypatch):
    """Counts how often a BPE is trained."""
    calls = []
    inner = Bpe.train
    monkeypatch.setattr(Bpe, "train", lambda *args: calls.append(1) or inner(*args))
    return calls


def test_a_tokenizer_is_trained_once_for_a_recipe_and_its_texts(trainings):
    first = cache.trained(Bpe(vocabulary=290), iter(TEXTS))
    again = cache.trained(Bpe(vocabulary=290), iter(TEXTS))
    assert len(trainings) == 1 and again.identity == first.identity
    assert again.encode("the cat") == first.encode("the cat")
    cache.trained(Bpe(vocabulary=280), iter(TEXTS))
    cache.trained(Bpe(vocabulary=290), reversed(TEXTS))
    assert len(trainings) == 3


@pytest.mark.parametrize("file", ["tokenizer.json", "special.json", "identity"])
@pytest.mark.parametrize("damage", [None, lambda text: text[:-3], lambda text: text.replace("1", "2")])
def test_a_damaged_tokenizer_is_trained_again_saying_so(trainings, folder, file, damage, monkeypatch):
    said = []
    monkeypatch.setattr(logging, "warning", lambda text, *args: said.append(text % args))
    first = cache.trained(Bpe(vocabulary=290), TEXTS)
    path = next((folder.parent / "tokenizers").glob(f"*/{file}"))
    path.write_text(damage(path.read_text())) if damage else path.unlink()
    again = cache.trained(Bpe(vocabulary=290), TEXTS)
    assert again.identity == first.identity and len(trainings) == 2
    assert len(said) == 1 and "is damaged" in said[0] and path.parent.name in said[0]
    assert cache.trained(Bpe(vocabulary=290), TEXTS).identity == first.identity and len(trainings) == 2


def test_a_users_own_recipe_is_trained_every_time(trainings):
    class Own(Bpe):
        pass

    for _ in range(2):
        cache.trained(Own(vocabulary=290), TEXTS)
    assert len(trainings) == 2


def test_a_full_disk_while_keeping_a_tokenizer_is_one_clear_line(monkeypatch):
    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(cache, "_keep", full)
    with pytest.raises(InputError, match=r"cannot write the tokenizer cache .*No space left on device.*LLM_JAX_CACHE"):
        cache.trained(Bpe(vocabulary=290), TEXTS)


@dataclasses.dataclass(frozen=True)
class Several(Text):
    """A document of several texts, of which something is known besides."""

    number: float | None = None

    def parts(self, tokenizer, rendering):
        return [Text(word).tokens(tokenizer, rendering) for word in self.content.split()]


def test_a_document_of_several_texts_and_its_number(tokenizer):
    made = cache.corpus([Several("a bc", 2.5), Several("d", -1.0)], tokenizer, Rendering())
    assert made.offsets.tolist() == [0, 3, 7, 10]
    assert made.numbers is not None and made.numbers.tolist() == [2.5, 2.5, -1.0]
    assert cache.corpus([Several("a bc"), Several("d")], tokenizer, Rendering()).numbers is None


# ------------------------------------------------------------------------------------------------- code decides


OWN = """
import dataclasses
from llm_jax.data.documents import Rendering, Text
from llm_jax.text.chat import ChatTemplate, Message
from llm_jax.text.recipes import Bpe

@dataclasses.dataclass(frozen=True)
class Own(ChatTemplate):
    def render(self, tokenizer, messages, reply=False, tools=(), live=False):
        ids, learn = super().render(tokenizer, messages, reply, tools, live)
        return ids, [template for _ in learn]

class Said(Message):
    def text(self):
        return self.content * message

class Saying(Text):
    def __init__(self, content, hidden):
        super().__init__(content)
        object.__setattr__(self, "hidden", hidden)
    def tokens(self, tokenizer, rendering):
        return tokenizer.encode(self.hidden), [document for _ in self.hidden]

@dataclasses.dataclass(frozen=True)
class Enclosing(Rendering):
    def enclose(self, tokenizer, ids, learnt, end):
        return ids * rendering, learnt * rendering

@dataclasses.dataclass(frozen=True)
class Recipe(Bpe):
    def train(self, texts, special=()):
        return Bpe(vocabulary=recipe).train(texts, special)
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    """Loads a user's file with one place of it changed, as a new process does that begins after the change."""
    monkeypatch.setattr(code, "STARTED", math.inf)
    monkeypatch.setattr("llm_jax.core.user_modules._sources", {})  # workers of later tests are not sent these files

    def load(after="", **said):
        path = tmp_path / "cache_own.py"
        written = dict(template=True, message=1, document=True, rendering=1, recipe=280) | said
        path.write_text(OWN + "\n".join(f"{name} = {value!r}" for name, value in written.items()) + after)
        sys.modules.pop("user_cache_own", None)
        code._source.cache_clear()
        return load_module(path)

    yield load
    del sys.modules["user_cache_own"]
    code._source.cache_clear()


def _corpus_of(module, kind, tokenizer, hidden="of it"):
    document, rendering = Text("a text"), Rendering(learn="answers")
    if kind in ("template", "message"):
        document = Conversation((module.Said("user", "hi"), Message("assistant", "yo")))
        rendering = Rendering(learn="answers", template=module.Own() if kind == "template" else None)
    if kind == "document":
        document = module.Saying("a text", hidden)
    if kind == "rendering":
        rendering = module.Enclosing()
    return cache.corpus([document, Text("another")], tokenizer, rendering)


CHANGED = dict(template=False, message=2, document=False, rendering=2)


@pytest.mark.parametrize("kind", CHANGED)
def test_a_change_of_the_users_own_code_is_seen_and_tokenises_once(own, kind, tokenizer, tokenised):
    made = []
    for said in ({}, {}, {kind: CHANGED[kind]}, {}):
        found = _corpus_of(own(**said), kind, tokenizer)
        made.append((found.tokens.tolist(), found.learnt.tolist()))
    assert made[0] == made[1] == made[3] != made[2]
    assert len(tokenised) == 2


def test_all_that_a_document_of_the_users_own_holds_counts(own, tokenizer):
    assert repr(own().Saying("a", "b")) == repr(own().Saying("a", "c"))
    first, second = (_corpus_of(own(), "document", tokenizer, hidden).tokens.tolist() for hidden in ("of it", "on it"))
    assert first != second


def test_code_that_cannot_be_told_tokenises_every_time_into_one_file(own, tokenizer, tokenised, folder):
    for _ in range(2):
        _corpus_of(own("\nimport importlib\n"), "template", tokenizer)
    assert len(tokenised) == 2 and len(list(folder.iterdir())) == 1


def test_a_change_of_a_users_own_recipe_is_seen_and_trains_once(own, trainings):
    for recipe, times in ((280, 1), (280, 1), (275, 2), (280, 2)):
        assert cache.trained(own(recipe=recipe).Recipe(), TEXTS).vocabulary == recipe
        assert len(trainings) == times


@pytest.mark.parametrize("what", ["text/chat.py", "text/jinja.py", "data/documents.py", "data/cache.py", "package"])
def test_a_correction_of_ours_reaches_a_warm_cache(what, tokenizer, tokenised, monkeypatch):
    code._source.cache_clear()
    cache.corpus(DOCUMENTS, tokenizer, Rendering())
    read, version = Path.read_bytes, cache.importlib.metadata.version
    if what == "package":
        monkeypatch.setattr("importlib.metadata.version", lambda name: version(name) + ".1" * (name == "tokenizers"))
    monkeypatch.setattr(Path, "read_bytes", lambda path: read(path) + b"\n" * path.as_posix().endswith(what))
    code._source.cache_clear()
    cache.corpus(DOCUMENTS, tokenizer, Rendering())
    assert len(tokenised) == 2
    code._source.cache_clear()


def test_a_run_goes_on_where_code_changed_and_tokens_did_not(own, tokenizer):
    def batches(kind, **said):
        document = own(**said).Saying("a text " * 9, "of it " * 9) if kind else Text("of it " * 9)
        return Data(Listing((document,)), length=8, batch=1, split=ByHash(0.0)).train(tokenizer, seed=0)

    state = batches(True).save()
    batches(True, after="\n# a comment\n").restore(state)
    old = {name: value for name, value in state.items() if name != "content"}
    batches(True).restore(old)  # of a run that did not write it down
    with pytest.raises(InputError, match="the code that renders them was changed"):
        batches(True, after="\nSaying.tokens = lambda self, *_: Text(self.hidden).tokens(*_)\n").restore(state)
    with pytest.raises(InputError, match="another stream"):
        batches(False).restore(state)


@dataclasses.dataclass(frozen=True)
class Listing(Source):
    held: tuple[Text, ...]

    def documents(self):
        return iter(self.held)
