"""What the harness measures of whole texts, beside `eval` on the same texts and beside a plain sum in PyTorch."""

import dataclasses
import math
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest

from llm_jax.apps.harness import Harness
from llm_jax.data.documents import Document, Rendering, Text
from llm_jax.data.packing import One
from llm_jax.data.pipeline import Data
from llm_jax.data.sources import Source
from llm_jax.engine.evaluation import evaluate
from llm_jax.engine.step import Program
from llm_jax.experiment import Experiment
from llm_jax.inference.language_model import LanguageModel
from llm_jax.layers.attention import Attention
from llm_jax.layers.block import Block
from llm_jax.layers.embedding import Embed
from llm_jax.layers.feedforward import SwiGLU
from llm_jax.layers.positions import Rope
from llm_jax.models.decoder import Decoder
from llm_jax.models.stack import Stack
from llm_jax.objectives.next_token import NextToken
from llm_jax.optim.optimizers import AdamW
from llm_jax.optim.precision import Precision
from llm_jax.optim.schedules import Constant
from llm_jax.parallel.layout import Layout
from llm_jax.text.recipes import Bytes

pytestmark = pytest.mark.filterwarnings("ignore")  # those of the harness and what it imports
LONG = 24  # tokens in view
SHORT = ("The weather is nice.", "é ½", "a", "So it is, I think.")  # each fits with its bos and eos


@dataclasses.dataclass(frozen=True)
class Texts(Source):
    """The same texts to train on and to measure."""

    texts: tuple[str, ...] = ()

    def documents(self) -> Iterator[Document]:
        return map(Text, self.texts)

    def validation(self) -> Iterator[Document]:
        return map(Text, self.texts)


@pytest.fixture(scope="module")
def lm() -> LanguageModel:
    tokenizer = Bytes().train([])
    stack = Stack((Block(Attention(2, 1, 8), SwiGLU(24)),), 1)
    model = Decoder(Embed(16, tokenizer.vocabulary), stack, Rope(), context=LONG)
    program = Program(experiment(model, Data(Texts(SHORT))), Layout(1).mesh())
    drawn = jax.tree.map(lambda x: 4 * x, program.begin().params)  # so that some tokens are likelier than others
    return LanguageModel(model, drawn, tokenizer)


def experiment(model: Decoder, data: Data) -> Experiment:
    return Experiment(
        name="texts", model=model, tokenizer=Bytes(), data=data, objective=NextToken(),
        optimizer=AdamW(learning_rate=1e-3, schedule=Constant()), layout=Layout(1), precision=Precision(), steps=1,
    )  # fmt: skip


def evaluated(lm: LanguageModel, texts: tuple[str, ...], eos: bool = True) -> dict[str, float]:
    """What `eval` says of the texts, a text a row."""
    data = Data(Texts(texts), length=LONG, batch=2, packing=One("split"), rendering=Rendering(eos=eos))
    model: Any = lm.model
    program = Program(experiment(model, data), Layout(1).mesh(), lm.tokenizer)
    return evaluate(program, lm.params, data.evaluation(lm.tokenizer))


def request(*args: Any) -> Any:
    return SimpleNamespace(args=args)


def test_whole_texts_have_the_bits_per_byte_that_eval_gives_them(lm):
    two_views = ("Nobody knows what is to come of it, and so on.. " * 2)[: 2 * LONG]
    for texts in (SHORT, (*SHORT, two_views)):
        logp = sum(Harness(lm, 3).loglikelihood_rolling([request(text) for text in texts], True))
        wanted = evaluated(lm, texts, eos=False)
        count = sum(len(text.encode()) for text in texts)
        assert -logp / math.log(2) / count == pytest.approx(wanted["bits_per_byte"], abs=1e-5)
        assert -logp / count == pytest.approx(wanted["loss"], abs=1e-5)  # a byte is a token


def test_with_the_end_of_the_text_they_have_the_loss_that_eval_gives_them(lm):
    harness, tokens = Harness(lm, 3), sum(len(text.encode()) + 1 for text in SHORT)
    logp = sum(harness.loglikelihood_rolling([request(text) for text in SHORT], True))
    ends = harness.loglikelihood([request(text, [lm.tokenizer.special["eos"]]) for text in SHORT], True)
    assert -(logp + sum(end for end, _ in ends)) / tokens == pytest.approx(evaluated(lm, SHORT)["loss"], abs=1e-5)


def test_a_bos_that_a_text_has_already_is_read_once(lm):
    special = lm.tokenizer.special
    spelt = LanguageModel(lm.model, lm.params, lm.tokenizer.having({"<s>": special["bos"]}))
    text = "The weather"
    (wanted,) = Harness(lm).loglikelihood_rolling([request(text)], True)
    ids = [*text.encode()]
    asked = [request("<s>" + text), request(ids), request([special["bos"], *ids])]
    for bos in (None, True, False):
        for parsing in ("text", "parse"):
            harness = Harness(spelt, add_bos_token=bos, special_tokens=parsing)
            np.testing.assert_allclose(harness.loglikelihood_rolling(asked, True), wanted, rtol=1e-6)
