import dataclasses
import itertools
import subprocess
import sys

import numpy as np
import pytest

from llm_jax.core.errors import InputError
from llm_jax.core.parts import check, override
from llm_jax.core.serialization import from_json, to_json
from llm_jax.data.denoising import Denoising, SpanCorruption, TextInfilling
from llm_jax.data.documents import Conversation, Document, Example, Labelled, Preference, Rendering, Text
from llm_jax.data.examples import SourceAndTarget, TwoTexts
from llm_jax.data.noising import Masked
from llm_jax.data.packing import BestFit, ConcatThenSplit, One, Windows
from llm_jax.data.pipeline import Data
from llm_jax.data.preferences import Pairs
from llm_jax.data.presentation import AsIs, WithLabel
from llm_jax.data.sources import Mixture, PythonHelp, Source, TextFiles
from llm_jax.data.split import ByHash, LastDocuments, WithinText
from llm_jax.text.chat import Message
from llm_jax.text.recipes import Bytes, Characters, WordPiece


@dataclasses.dataclass(frozen=True)
class Listed(Source):
    texts: tuple[str, ...] = ()

    def documents(self):
        yield from map(Text, self.texts)


@dataclasses.dataclass(frozen=True)
class Sums(Source):
    """A generated source that brings its own split."""

    def documents(self):
        for a, b in itertools.product(range(9), range(10)):
            yield Example(f"{a}+{b}=", str(a + b))

    def validation(self):
        for b in range(10):
            yield Example(f"9+{b}=", str(9 + b))


@dataclasses.dataclass(frozen=True)
class Chats(Source):
    def documents(self):
        yield Conversation((Message("user", "hi"), Message("assistant", "yo")))
        yield Conversation((Message("user", "alone"),))


def test_data_is_a_part():
    data = Data(Mixture((PythonHelp(), Sums()), (1.0, 2.0)), packing=BestFit(), split=WithinText(0.2))
    assert from_json(to_json(check(data)), (__name__,)) == data
    assert override(data, "packing.too_long", "refuse").packing == BestFit("refuse")
    assert override(data, "rendering.learn", "answers").rendering == Rendering(learn="answers")


def test_the_tokenizer_sees_only_training_documents():
    data = Data(Listed(("aaa", "bbb", "zzz")), split=LastDocuments(0.3))
    tokenizer = data.prepare(Characters())
    assert tokenizer.decode(tokenizer.encode("ab")) == "ab"
    assert tokenizer.encode("z") == [tokenizer.special["unk"]]


def test_a_source_may_bring_its_own_split(tokenizer):
    data = Data(Sums(), length=8, batch=10, packing=One(), rendering=Rendering(learn="answers"))
    assert len(data.documents("train")) == 90
    (batch,) = data.evaluation(tokenizer)
    for row, document in enumerate(data.documents("validation")):
        assert isinstance(document, Example)
        learnt = batch["targets_BT"][row][batch["weight_BT"][row] > 0]
        assert learnt[-1] == tokenizer.special["eos"]
        assert tokenizer.decode(learnt) == document.answer
        assert tokenizer.decode(batch["tokens_BT"][row]).startswith(document.prompt)


@pytest.mark.parametrize("recipe", [WordPiece(120), Characters(), Bytes()])
def test_bytes_are_exact_also_where_tokens_lose_text(recipe):
    """White space that is dropped, and characters that the tokenizer does not know, are bytes all the same."""
    seen = ("plain words and letters " * 9, "letters and plain words")
    odd = "  plain\t\twörds \N{SNOWMAN}\n and  letters"
    tokenizer = Data(Listed((*seen, odd)), split=LastDocuments(0.3)).prepare(recipe)
    size = len(odd.encode())
    for rendering, missing in ((Rendering(), 0), (Rendering(bos=False), tokenizer.count_bytes(odd)[0])):
        data = Data(Listed((*seen, odd)), length=8, batch=2, split=LastDocuments(0.3), rendering=rendering)
        counted = sum(int((b["bytes_BT"] * b["weight_BT"]).sum()) for b in data.evaluation(tokenizer))
        assert counted == size - missing
    chat = Data(Chats(), length=30, batch=2, packing=One(), split=ByHash(0.0), shuffle=False)
    batch = next(chat.train(tokenizer, seed=0))
    whole = sum(len(s.encode()) for d in Chats().documents() for s in d.strings())
    assert batch["bytes_BT"].sum() == whole


def test_only_what_the_assistant_says_is_learnt(tokenizer):
    data = Data(
        Chats(),
        length=30,
        batch=1,  # the other conversation has no answer: it has no row
        packing=One(),
        split=ByHash(0.0),
        shuffle=False,
        rendering=Rendering(learn="answers"),
    )
    batch = next(data.train(tokenizer, seed=0))
    learnt = batch["targets_BT"][batch["weight_BT"] > 0].tolist()
    assert learnt == [*tokenizer.encode("yo"), tokenizer.special["end_of_turn"]]


def test_windows_over_one_long_text_are_nano_gpts(tokenizer):
    text = "".join(chr(97 + i % 26) for i in range(1000))
    data = Data(
        Listed((text,)),
        length=64,
        batch=12,
        packing=Windows(),
        split=WithinText(0.1),
        rendering=Rendering(bos=False, eos=False),
    )
    batch = next(data.train(tokenizer, seed=0))
    assert np.all(batch["weight_BT"] == 1) and np.all(batch["segment_BT"] == 0)
    assert np.all(batch["position_BT"] == np.arange(64))
    assert np.all((batch["targets_BT"] - batch["tokens_BT"]) % 26 == 1)
    assert sum(b["weight_BT"].sum() for b in data.evaluation(tokenizer)) == 99


BAD = [
    (lambda: Data(Listed(())), "the corpus is empty"),
    (lambda: Data(Listed(("only one",)), split=LastDocuments(0.5)), "leaves no train documents"),
    (lambda: Data(Listed(("one", "two")), split=LastDocuments(0.0)), "leaves no validation documents"),
    (
        lambda: Data(Listed(("one", "two")), split=LastDocuments(0.5), rendering=Rendering(learn="answers")),
        "nothing is learnt of the train documents .*learn='answers'",
    ),
    (
        lambda: Data(
            Mixture((Chats(), Listed(("one", "two"))), (1.0, 1.0)),
            split=LastDocuments(0.5),
            rendering=Rendering(learn="answers"),
        ),  # half of the rows would teach nothing
        r"nothing is learnt of the train documents of Listed\(.*learn='answers'",
    ),
    (
        lambda: Data(Listed(("x", "y")), split=LastDocuments(0.5), rendering=Rendering(bos=False, eos=False)),
        "nothing is learnt of the train documents",
    ),
    (
        lambda: Data(
            Mixture((Listed(("one", "two")), Listed(("x", "y"))), (1.0, 1.0)),
            split=LastDocuments(0.5),
            rendering=Rendering(bos=False, eos=False),
        ),
        r"\('x', 'y'\)\) has no training documents",
    ),
    (lambda: Data(Listed(("long" * 99, "2")), length=16, packing=One(), split=LastDocuments(0.5)), "longer than a row"),
    (lambda: Data(TextFiles("nowhere.txt")), "there is no nowhere.txt"),
    (lambda: Data(PythonHelp(), batch=0), "data.batch must be at least 1, not 0"),
    (lambda: Data(PythonHelp(), length=0), "data.length must be at least 1"),
]


@pytest.mark.parametrize(("make", "message"), BAD, ids=[message for _, message in BAD])
def test_bad_input_is_one_clear_line(make, message, tokenizer):
    with pytest.raises(InputError, match=message) as raised:
        data = make()
        data.train(tokenizer, seed=0)
        data.evaluation(tokenizer)
    assert "\n" not in str(raised.value)


def test_a_batch_that_cannot_be_divided_is_refused(tokenizer):
    data = Data(PythonHelp(), batch=6)
    with pytest.raises(InputError, match=r"data.batch=6 cannot be divided among 4 processes"):
        data.train(tokenizer, seed=0, processes=4)
    with pytest.raises(InputError, match="process 2 is not one of 0 to 1"):
        data.evaluation(tokenizer, process=2, processes=2)
    with pytest.raises(InputError, match="no split named 'test'"):
        data.evaluation(tokenizer, split="test")  # pyright: ignore[reportArgumentType]


def test_importing_data_starts_no_device():
    code = "import llm_jax.data.pipeline, sys; from jax._src import xla_bridge; sys.exit(bool(xla_bridge._backends))"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


ODD = dict(
    texts=(Text("a"), Text(""), Text("bc"), Text(" ")),
    long=(Text("abc " * 40),),
    labelled=(Labelled("a", 0), Labelled("", 1)),
    examples=(Example("a", "b"), Example("", "b"), Example("a", "")),
    conversations=(Conversation((Message("user", "a"), Message("assistant", "b"))), Conversation(())),
    preferences=(Preference((Message("user", "a"),), "b", "c d e"), Preference((), "b", "c")),
)
PRESENTED = (
    AsIs(), WithLabel(), SourceAndTarget(2), TwoTexts(), Pairs(), Masked(), Denoising(SpanCorruption()),
    Denoising(TextInfilling(), sources=3),
)  # fmt: skip
PACKED = (Windows(), Windows(50), ConcatThenSplit(), BestFit(), BestFit("truncate"), One("truncate"), One("split"))


@pytest.mark.parametrize("presentation", PRESENTED, ids=lambda part: type(part).__name__)
@pytest.mark.parametrize("documents", ODD.values(), ids=ODD)
def test_odd_documents_in_short_rows_are_presented_or_refused(documents, presentation):
    tokenizer = Bytes(sentinels=8).train([])
    for packing, length, learn in itertools.product(PACKED, (1, 2, 3, 16), ("everything", "answers")):
        data = Data(
            Odd(documents), length, 2, packing, ByHash(0.0), Rendering(learn=learn), presentation=presentation
        )  # fmt: skip
        try:
            batches = [next(data.train(tokenizer, seed=0)), *data.evaluation(tokenizer, split="train")]
        except InputError as error:
            assert "\n" not in str(error)
            continue
        for batch in batches:
            real = batch["segment_BT"] >= 0
            assert real.any() and (batch["tokens_BT"][real] != tokenizer.special["pad"]).all()


@dataclasses.dataclass(frozen=True)
class Odd(Source):
    held: tuple[Document, ...]

    def documents(self):
        return iter(self.held)
