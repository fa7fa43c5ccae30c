"""A run of Word2Vec: what it prepares is kept and comes back, resuming is exact, and its reports."""

import dataclasses

import jax
import numpy as np
import pytest

import llm_jax
from experiments.word2vec_planted import Planted
from llm_jax.core.errors import InputError
from llm_jax.data.documents import Rendering, Text
from llm_jax.data.pipeline import Data
from llm_jax.data.sources import Source
from llm_jax.engine.evaluation import evaluate
from llm_jax.engine.restore import restore
from llm_jax.engine.trained import Finished
from llm_jax.experiment import Experiment
from llm_jax.layers.embedding import Embed
from llm_jax.models.word2vec import Word2Vec
from llm_jax.objectives.word2vec import SkipGram
from llm_jax.optim.optimizers import AdamW
from llm_jax.optim.precision import Precision
from llm_jax.optim.schedules import Constant
from llm_jax.parallel.layout import Layout
from llm_jax.reports.words import Analogies, Neighbours, Similarity
from llm_jax.runs import metrics
from llm_jax.text.recipes import Words


@dataclasses.dataclass(frozen=True)
class Questions(Source):
    texts: tuple[str, ...] = ("r0e0 r0e1 r1e0 r1e1", "r0e0 r0e1 r1e0 nothing")

    def documents(self):
        yield from map(Text, self.texts)


PAIRS = ("r0e0 r0n0 9.5", "r0e0 r1n1 1.5", "r0e0 nothing 5")
EXPERIMENT = Experiment(
    name="words", model=Word2Vec(Embed(8)), tokenizer=Words(400),
    data=Data(Planted(1500), length=16, batch=8, rendering=Rendering(bos=False)), objective=SkipGram(2),
    optimizer=AdamW(learning_rate=1e-2, schedule=Constant()), layout=Layout(2), precision=Precision(), steps=4,
    log_every=1, eval_every=4, save_every=2,
    report=(Neighbours(("r0e0",), 3), Analogies(Questions()), Similarity(Questions(PAIRS))),
)  # fmt: skip


def test_a_resumed_run_is_the_same_run(tmp_path, capfd):
    whole = llm_jax.train(EXPERIMENT, tmp_path / "whole")
    assert "nearest to r0e0: " in (said := capfd.readouterr().out)
    assert "/1 right, and 1 have unknown words" in said
    assert "of 2 pairs; 1 have unknown words" in said
    llm_jax.train(EXPERIMENT.override({"steps": 2}), tmp_path / "parts")
    again = llm_jax.train(EXPERIMENT, tmp_path / "parts")
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(again), strict=True):
        np.testing.assert_array_equal(a, b)
    assert set(whole.frozen) == {"keep_V", "noise_V"}

    program, tokenizer, params = restore(tmp_path / "whole", modules=(__name__,))
    data = EXPERIMENT.data
    assert isinstance(data, Data)
    logged = [line for line in metrics.read(tmp_path / "whole" / "metrics.jsonl") if line["split"] == "validation"]
    assert evaluate(program, params, data.evaluation(tokenizer))["loss"] == pytest.approx(logged[-1]["loss"], abs=1e-6)
    with pytest.raises(InputError, match="model must be a Generator"):
        llm_jax.load(tmp_path / "whole", modules=(__name__,))


def test_questions_that_are_none_are_refused():
    tokenizer = Words(400).train(["r0e0 r0n0"] * 9)
    finished = Finished(EXPERIMENT, tokenizer, {"embed": {"table": np.ones((tokenizer.vocabulary, 8))}})
    for report, text, message in (
        (Analogies, "a b c", "an analogy has four words, not 'a b c'"),
        (Analogies, "a b c d", "none of the 1"),
        (Similarity, "a b c", "a pair to rank is two words and a number, not 'a b c'"),
        (Similarity, "a b 1", "only 0 of 1 pairs of words are in the vocabulary"),
    ):
        with pytest.raises(InputError, match=message):
            report(Questions((text,)))(finished)
