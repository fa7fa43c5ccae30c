"""Contrastive learning: InfoNCE in float64, and the whole batch's loss by microbatches and over devices."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm_jax.core.errors import InputError
from llm_jax.data.documents import Rendering
from llm_jax.data.examples import TwoTexts
from llm_jax.data.packing import One
from llm_jax.data.pipeline import Data
from llm_jax.data.sources import JsonLines
from llm_jax.engine.step import Program, fill
from llm_jax.experiment import Experiment
from llm_jax.layers.attention import Attention
from llm_jax.layers.block import Block
from llm_jax.layers.embedding import Embed
from llm_jax.layers.feedforward import FeedForward
from llm_jax.layers.masks import Full
from llm_jax.layers.tokens import Tokens
from llm_jax.models.encoder import Encoder
from llm_jax.models.stack import Stack
from llm_jax.objectives.contrastive import Contrastive
from llm_jax.optim.optimizers import AdamW
from llm_jax.optim.precision import Precision
from llm_jax.optim.schedules import Constant
from llm_jax.parallel.layout import Layout, place
from llm_jax.text.recipes import Bytes

TOKENIZER = Bytes().train([])
ROWS = 8


@pytest.fixture(scope="module")
def experiment(tmp_path_factory) -> Experiment:
    path = tmp_path_factory.mktemp("pairs") / "pairs.jsonl"
    lines = [f'{{"prompt": "{chr(97 + i) * (i % 5 + 1)}", "answer": "{chr(65 + i) * (i % 3 + 2)}"}}' for i in range(26)]
    path.write_text("\n".join(lines))
    block = Block(Attention(2, head=4, mask=Full()), FeedForward(12), dropout=0.2)
    made = Experiment(
        model=Encoder(Embed(8), Stack((block,), 1)), tokenizer=Bytes(),
        data=Data(
            JsonLines(str(path)), length=8, batch=ROWS, packing=One(), rendering=Rendering(learn="answers"),
            presentation=TwoTexts(),
        ),
        objective=Contrastive(0.5), optimizer=AdamW(schedule=Constant()), layout=Layout(1), precision=Precision(),
        steps=3,
    )  # fmt: skip
    return fill(made, TOKENIZER)


@pytest.fixture(scope="module")
def batch(experiment) -> Any:
    return next(experiment.data.train(TOKENIZER, seed=0))


def test_pairs_are_whole_and_framed_alike(experiment, batch):
    bos, eos = TOKENIZER.special["bos"], TOKENIZER.special["eos"]
    wanted = {(d.prompt, d.answer) for d in experiment.data.documents("train")}
    for row in range(ROWS):
        texts = []
        for name, axes, before in (("source", "BS", "source_"), ("tokens", "BT", "")):
            ids = batch[f"{name}_{axes}"][row][batch[f"{before}segment_{axes}"][row] == 0]
            assert ids[0] == bos and ids[-1] == eos and len(ids) <= 8
            texts.append(TOKENIZER.decode(ids))
        assert tuple(texts) in wanted
    blank = experiment.data.blank(ROWS)
    assert {n: (a.shape, a.dtype) for n, a in blank.items()} == {n: (a.shape, a.dtype) for n, a in batch.items()}
    seen = sum(int((b["segment_BT"] == 0).any(1).sum()) for b in experiment.data.evaluation(TOKENIZER, split="train"))
    assert seen == len(wanted)


def test_the_loss_is_that_of_the_papers(experiment, batch):
    model = experiment.model
    params = nn.meta.unbox(model.init(jax.random.key(0), jnp.zeros((1, 2), jnp.int32)))["params"]
    batch = {name: array.copy() for name, array in batch.items()}
    for name in ("segment_BT", "source_segment_BS"):
        batch[name][5] = -1  # a row of padding
    sums = Contrastive(0.5)(model, params, None, batch, None)
    vectors = []
    for name, axes, before in (("source", "BS", "source_"), ("tokens", "BT", "")):
        at = Tokens(batch[f"{before}position_{axes}"], batch[f"{before}segment_{axes}"])
        x = np.asarray(model.apply({"params": params}, batch[f"{name}_{axes}"], at), np.float64)
        pooled = [x[row][batch[f"{before}segment_{axes}"][row] == 0].mean(0) for row in range(ROWS) if row != 5]
        vectors.append(np.stack([v / np.linalg.norm(v) for v in pooled]))
    scores = vectors[0] @ vectors[1].T / 0.5
    losses = np.log(np.exp(scores).sum(1)) - np.diag(scores)
    np.testing.assert_allclose(sums["loss"], losses.sum(), rtol=1e-5)
    assert float(sums["weight"]) == 7 and float(sums["correct"]) == (scores.argmax(1) == np.arange(7)).sum()


def test_another_right_answer_is_no_rival(experiment, batch):
    """Rows 1 and 2 have one second text, rows 3 and 4 one first: what is left of each row's rivals, in float64."""
    alike = {name: array.copy() for name, array in batch.items()}
    for name, two, one in (("tokens_BT", 2, 1), ("source_BS", 4, 3)):
        alike[name][two] = alike[name][one]
    rng = np.random.default_rng(0)
    vectors = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in rng.normal(size=(2, ROWS, 5))]
    scores = vectors[0] @ vectors[1].T / 0.5
    for one, two in ((1, 2), (3, 4)):
        scores[one, two] = scores[two, one] = -np.inf
    wanted = (np.log(np.exp(scores).sum(1)) - np.diag(scores)).sum()
    given: Any = tuple((jnp.asarray(x, jnp.float32), {}) for x in vectors)
    np.testing.assert_allclose(Contrastive(0.5).relate(given, alike, None)["loss"], wanted, rtol=1e-5)
    assert abs(float(Contrastive(0.5).relate(given, batch, None)["loss"]) - wanted) > 0.01


def gradients(experiment: Experiment, batch: Any, **changes: Any) -> tuple[Any, Any]:
    program = Program(experiment.override(changes), experiment.override(changes).layout.mesh())
    state = program.begin()
    with jax.set_mesh(program.mesh):
        found = jax.jit(program._gradients)(state, place(batch, program.mesh), jax.random.key(7))
    return jax.device_get(found)


def test_a_row_without_another_to_be_told_from_has_no_weight(experiment, batch):
    """Its loss would be 0 and its answer right, whatever the model: a last batch of one row, or of one pair twice."""
    program = Program(experiment, experiment.layout.mesh())
    state = program.begin()

    def measured(rows: list[int]) -> Any:
        """Those rows of the batch, and padding."""
        some = {name: array.copy() for name, array in experiment.data.blank(ROWS).items()}
        for place_, row in enumerate(rows):
            for name, array in batch.items():
                some[name][place_] = array[row]
        sums = program.measure(state.params, state.frozen, place(some, program.mesh))
        return {name: float(value) for name, value in sums.items()}

    for rows in ([0], [2, 2]):
        assert {measured(rows)[name] for name in ("weight", "loss", "correct")} == {0.0}
    assert measured([0, 1])["weight"] == 2 and measured([0, 1])["loss"] > 0
    assert measured([2, 2, 1])["weight"] == 3
    alone = Program(experiment.override({"data.batch": 1}), experiment.layout.mesh())
    with pytest.raises(InputError, match=r"Contrastive compares each row with .* 1 at once: raise data.batch=1$"):
        alone.update  # noqa: B018


def test_the_whole_batch_counts_by_microbatches_and_over_devices(experiment, batch):
    plain = {"model.stack.pattern.0.dropout": 0.0}
    wanted, sums = gradients(experiment, batch, **plain)
    assert float(sums["weight"]) == ROWS and 0.5 * np.log(ROWS) < float(sums["loss"]) / ROWS < 2 * np.log(ROWS)
    for changes in ({"microbatches": 4}, {"microbatches": 2, "layout.data": 4}, {"layout": Layout(2, 2, 2)}):
        found, told = gradients(experiment, batch, **plain, **changes)
        np.testing.assert_allclose(told["loss"], sums["loss"], rtol=1e-5)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), found, wanted)
    assert max(np.abs(leaf).max() for leaf in jax.tree.leaves(wanted)) > 0.01


def test_both_passes_of_a_piece_drop_the_same(experiment, batch):
    """The gradient by pieces is that of the loss which is differentiated at once, with the pieces' keys."""
    found, sums = gradients(experiment, batch, microbatches=2)
    program = Program(experiment, experiment.layout.mesh())
    params, keys = program.begin().params, jax.random.split(jax.random.key(7), 2)
    pieces = [{name: array[i::2] for name, array in batch.items()} for i in range(2)]

    def loss(params):
        made = [
            Contrastive(0.5).represent(experiment.model, params, None, piece, key)
            for piece, key in zip(pieces, keys, strict=True)
        ]
        together = jax.tree.map(lambda a, b: jnp.stack([a, b], 1).reshape(ROWS, -1), *made)
        return Contrastive(0.5).relate(together, batch, keys[0])["loss"]

    value, wanted = jax.value_and_grad(loss)(params)
    np.testing.assert_allclose(sums["loss"], value, rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), found, wanted)
    plain = Contrastive(0.5)(experiment.model, params, None, batch, None)  # nothing is dropped
    assert abs(float(value) - float(plain["loss"])) > 1e-3


def test_refusals(experiment, batch):
    with pytest.raises(InputError, match=r"needs two texts a row: set data.presentation=TwoTexts\(\)"):
        Contrastive()(experiment.model, {}, None, batch | {"targets_BT": 0}, None)
    for changes, message in [
        ({"data.rendering": Rendering()}, "by what is learnt: set data.rendering"),
        ({"data.packing": One("split")}, r"an example a row: set data.packing=One\(\)"),
        ({"data.length": 6}, "have a text of more than 5 tokens .* raise data.length=6"),
    ]:
        data: Any = experiment.override(changes).data
        with pytest.raises(InputError, match=message):
            data.train(TOKENIZER, seed=0)
    short: Any = experiment.override({"data.length": 5, "data.packing": One("truncate")}).data
    assert (next(short.train(TOKENIZER, seed=0))["source_segment_BS"] == 0).sum(1).max() == 5
