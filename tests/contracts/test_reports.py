"""Every report of every table, on a run that has learnt nothing, at the least lengths that its data accept.

What a training accepts, a report takes: it is checked before the first step, and made after the last.
"""

from __future__ import annotations

import dataclasses
import importlib
import math
import pkgutil
from types import SimpleNamespace
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import pytest

import llm_jax
from llm_jax.core.errors import InputError
from llm_jax.data.documents import Conversation, Document, Example, Labelled, Picture, Preference, Rendering, Text
from llm_jax.data.examples import SourceAndTarget
from llm_jax.data.images import Images
from llm_jax.data.packing import BestFit, ConcatThenSplit, One
from llm_jax.data.pipeline import Data
from llm_jax.data.preferences import Pairs
from llm_jax.data.presentation import WithLabel
from llm_jax.data.sources import Source
from llm_jax.engine.trained import Finished
from llm_jax.experiment import Report
from llm_jax.layers.attention import Attention, CrossAttention
from llm_jax.layers.block import Block
from llm_jax.layers.embedding import Embed
from llm_jax.layers.feedforward import FeedForward
from llm_jax.layers.masks import Full, Prefix
from llm_jax.layers.norms import NoNorm, RMSNorm
from llm_jax.layers.positions import Learned, Sinusoidal
from llm_jax.models.decoder import Decoder
from llm_jax.models.encoder_decoder import EncoderDecoder
from llm_jax.models.heads import Classifier, Scorer
from llm_jax.models.model import Model
from llm_jax.models.pretrained import Pretrained
from llm_jax.models.stack import Stack
from llm_jax.models.transformer import Side
from llm_jax.models.vision import Captioner, ImageEncoder, Patches
from llm_jax.models.word2vec import Word2Vec
from llm_jax.objectives.next_token import NextToken
from llm_jax.optim.precision import Precision
from llm_jax.rl.rollouts import ExactAnswer
from llm_jax.text.chat import Message
from llm_jax.text.recipes import Characters, Words
from llm_jax.text.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class Told(Source):
    """The same documents to train on and held out."""

    given: tuple[Any, ...]

    def documents(self):
        return iter(self.given)

    validation = documents


LETTERS = "abcdefgh r0123456789."
TOKENIZER = Characters().train([LETTERS])
BLOCK = Block(Attention(1, 1, 8), FeedForward(8))
READS = Block(Attention(1, 1, 8, mask=Full()), FeedForward(8))
WRITES = Block(Attention(1, 1, 8), FeedForward(8), cross=CrossAttention(1, 1, 8))
DECODER = Decoder(Embed(8), Stack((BLOCK,), 1))
SIDE, WRITER = (Side(Stack((b,), 1), Sinusoidal(), RMSNorm(), NoNorm()) for b in (READS, WRITES))
TRANSLATOR = EncoderDecoder(Embed(8), SIDE, WRITER)
IMAGE = ImageEncoder(Patches(8, (4, 4), 2, 1), Stack((READS,), 1), Learned(4), leading=0)
PREFIX = Block(Attention(1, 1, 8, mask=Prefix(4)), FeedForward(8))
CAPTIONER = Captioner(IMAGE, Decoder(Embed(8), Stack((PREFIX,), 1)))

ANSWERS = Rendering(learn="answers")
TWO = (Example("a" * 5 + "b", "c"), Example("d", "e" * 5 + "f"))  # the longest prompt, and the longest answer
LONG = (*TWO, Example("abcdefgh" * 3, "gh"))
SAID = (Message("user", "ab"), Message("assistant", "cd"), Message("user", "e"), Message("assistant", "fgh"))
CHATS = (Conversation(SAID), Conversation((*SAID[:2], Message("user", "abcdefgh"), Message("assistant", "b"))))
PICTURES = tuple(Picture(np.full((4, 4, 1), i / 9, np.float32), "abcde"[: i + 1], i) for i in range(5))


def data(documents: tuple[Document, ...], length: int = 1, packing: Any = One(), **settings: Any) -> Data:
    kind = Images if isinstance(documents[0], Picture) else Data
    return kind(Told(documents), length=length, batch=2, packing=packing, **settings)


def translations(documents: tuple[Document, ...], packing: Any, sources: int) -> Data:
    return data(documents, packing=packing, rendering=ANSWERS, presentation=SourceAndTarget(sources))


ASKED = [
    (DECODER, data(TWO)),
    (DECODER, data(TWO, packing=ConcatThenSplit(), rendering=ANSWERS, length=8)),
    (DECODER, data(LONG, packing=One("truncate"), length=8)),
    (DECODER, data(CHATS, rendering=ANSWERS)),
    (TRANSLATOR, translations(TWO, BestFit("refuse"), 7)),
    (TRANSLATOR, translations(LONG, BestFit("truncate"), 7)),
]
JUDGED = [(DECODER, data(TWO, length=20)), (DECODER, data(CHATS, length=32))]
RUNS = {"judge": Scorer(DECODER), "against": DECODER}
JUDGE, AGAINST = (Pretrained(name, model.filled(TOKENIZER.vocabulary, 40)) for name, model in RUNS.items())
WORDS = (Text("a b c d"), Text("a b 9"), Text("a c 5"), Text("b c 1"))
CASES: dict[str, list[tuple[dict[str, Any], Model, Data]]] = {
    "ExactMatch": [({}, *case) for case in ASKED],
    "Bleu": [({}, *case) for case in ASKED],
    "Samples": [(dict(prompts=("ab", "abcd"), max_tokens=9), *case) for case in ASKED],
    "Compression": [({}, DECODER, data((Text("a"),)))],
    "SampledConversations": [(dict(max_tokens=2), DECODER, data(CHATS))],
    "Captions": [({}, CAPTIONER, data(PICTURES))],
    "ClassificationReport": [
        ({}, Classifier(DECODER, 3), data(tuple(Labelled(t, i) for i, t in enumerate("abc")), presentation=WithLabel()))
    ],
    "PairAccuracy": [({}, Scorer(DECODER), data((Preference(SAID[:1], "a", "b"),), presentation=Pairs()))],
    "Rewarded": [(dict(reward=ExactAnswer(), max_tokens=2), *JUDGED[1])],
    "WinRate": [(dict(judge=JUDGE, against=AGAINST, max_tokens=2), *JUDGED[0])],
    "Neighbours": [(dict(words=("a",), count=2), Word2Vec(Embed(4)), data(WORDS, rendering=Rendering(bos=False)))],
    "Analogies": [(dict(questions=Told(WORDS[:1])), Word2Vec(Embed(4)), data(WORDS))],
    "Similarity": [(dict(pairs=Told(WORDS[1:]),), Word2Vec(Embed(4)), data(WORDS))],
    "AttentionMaps": [(dict(text="ab"), DECODER, data(TWO)), (dict(text="ab"), Classifier(DECODER), data(TWO))],
}  # fmt: skip


def entries() -> dict[str, type[Report]]:
    """The reports of every table."""
    found: dict[str, type[Report]] = {}
    for info in pkgutil.walk_packages(llm_jax.__path__, "llm_jax."):
        if info.name.startswith("llm_jax.reports."):
            for name, value in vars(importlib.import_module(info.name)).items():
                found |= value if name.endswith("REPORTS") else {}
    return found


def least(given: Data, tokenizer: Tokenizer) -> Data:
    """At the least length that a training of these accepts."""
    for length in range(given.length, 99):
        shorter = dataclasses.replace(given, length=length)
        try:
            shorter.train(tokenizer, seed=0)
            shorter.evaluation(tokenizer)
            return shorter
        except InputError:
            pass
    raise AssertionError("no length is accepted")


def drawn(model: Any, seed: int = 0) -> Any:
    """Parameters without compiling a model's own `init`."""
    random = np.random.default_rng(seed)
    boxed = jax.eval_shape(model.begin, jax.random.key(0))
    return jax.tree.map(lambda x: random.standard_normal(x.shape).astype(np.float32), nn.meta.unbox(boxed))


def planned(model: Model, given: Data) -> Finished:
    tokenizer = Words(99).train(["a b c d"]) if isinstance(model, Word2Vec) else TOKENIZER
    given = least(given, tokenizer)
    filled = model.filled(tokenizer.vocabulary, given.length, given.presentation.source(), tokenizer.special["bos"])
    experiment: Any = SimpleNamespace(
        name="tiny", model=filled, data=given, precision=Precision(), objective=NextToken()
    )
    experiment.override = lambda changes: SimpleNamespace(**vars(experiment) | changes)
    return Finished(experiment, tokenizer, None)


def test_every_report_is_tried():
    assert CASES.keys() == entries().keys()


@pytest.mark.parametrize("name", CASES)
def test_what_its_data_accept_a_report_takes(name):
    for settings, model, given in CASES[name]:
        report, before = entries()[name](**settings), planned(model, given)
        report.check(before)
        runs = {"pretrained": {part.run: drawn(part.model, 1) for part in (JUDGE, AGAINST)}}
        found = report(dataclasses.replace(before, params=drawn(before.experiment.model), frozen=runs))
        assert found.lines and not found.failed
        assert all(math.isfinite(value) for value in found.metrics.values()), found.metrics


@pytest.mark.parametrize("name", CASES)
def test_what_a_report_cannot_be_made_of_is_refused_before_the_first_step(name):
    """By the same words as after the last."""
    settings, *_ = CASES[name][0]
    model = (
        DECODER if name in ("ClassificationReport", "PairAccuracy", "Captions", "Compression") else Classifier(DECODER)
    )
    before = planned(TRANSLATOR if name == "AttentionMaps" else model, data(TWO))
    if name == "Compression":  # of any text
        before = dataclasses.replace(before, experiment=before.experiment.override({"data": data((Text(""),))}))
    report = entries()[name](**settings)
    with pytest.raises(InputError) as early:
        report.check(before)
    with pytest.raises(InputError) as late:
        report(dataclasses.replace(before, params={}, frozen={"pretrained": {"judge": {}, "against": {}}}))
    assert str(early.value) == str(late.value) and "\n" not in str(early.value)
