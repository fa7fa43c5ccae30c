"""Classification: PyTorch's cross-entropy with label smoothing, in sums that add up."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from sklearn.utils.class_weight import compute_class_weight

import llm_jax
from experiments import spam
from llm_jax.core.dims import Normal, weigh
from llm_jax.core.errors import InputError
from llm_jax.data.documents import Labelled
from llm_jax.data.presentation import WithLabel, WithLabels, WithNumber
from llm_jax.data.sources import JsonLines
from llm_jax.engine.evaluation import means
from llm_jax.layers.attention import Attention
from llm_jax.layers.block import Block
from llm_jax.layers.embedding import Embed
from llm_jax.layers.feedforward import FeedForward
from llm_jax.layers.pooling import Last
from llm_jax.models.decoder import Decoder
from llm_jax.models.heads import Classifier
from llm_jax.models.model import Model
from llm_jax.models.stack import Stack
from llm_jax.objectives.classification import Classification, MultiLabelClassification, Regression
from llm_jax.text.recipes import Bytes
from llm_jax.training.loop import train

CLASSES = 5


class Table(Model):
    """Its parameters are the scores of the batch's rows."""

    rows: int
    classes: int = CLASSES

    def setup(self):
        self.score_BO = weigh(self, "score", "BO", dict(B=self.rows, O=self.classes), Normal(3.0), 1)

    def classify(self, batch: Mapping[str, jax.Array], dropout_key: jax.Array | None) -> jax.Array:
        return self.score_BO[batch["row_B"]]


ROWS = 7
SCORES = (np.random.default_rng(0).standard_normal((ROWS, CLASSES)) * 4).astype(np.float32)
LABELS = np.array([0, 4, -1, 2, 2, -1, 1], np.int32)


def sums(
    smoothing: float, key: Any, rows: Any = slice(None), scores: Any = SCORES, weights: Any = None, frozen: Any = None
) -> dict[str, Any]:
    batch: Any = dict(label_B=jnp.asarray(LABELS[rows]), row_B=jnp.arange(ROWS)[rows])
    objective = Classification(smoothing, weights)
    return objective(Table(ROWS), dict(score=jnp.asarray(scores)), frozen, batch, key)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_and_its_gradient_are_pytorchs(smoothing):
    scores = torch.tensor(SCORES.astype(np.float64), requires_grad=True)
    wanted = torch.nn.functional.cross_entropy(
        scores, torch.tensor(LABELS).long(), ignore_index=-1, label_smoothing=smoothing, reduction="sum"
    )
    (slope,) = torch.autograd.grad(wanted, scores)
    key = jax.random.key(0)
    found, gradient = jax.value_and_grad(lambda s: sums(smoothing, key, scores=s)["loss"])(jnp.asarray(SCORES))
    np.testing.assert_allclose(found, wanted.item(), rtol=1e-5)
    np.testing.assert_allclose(gradient, slope.numpy(), atol=1e-5)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("balanced", [False, True])
def test_weights_of_classes_are_pytorchs_and_those_that_balance_are_scikit_learns(smoothing, balanced):
    """In training; an evaluation is as without."""
    weights: Any = (0.5, 2.0, 1.5, 3.0, 0.0)
    frozen: Any = None
    if balanced:
        documents = [Labelled(f"text {i}", int(label)) for i, label in enumerate([0, 0, 0, 0, 1, 2, 2, 3])]
        data: Any = SimpleNamespace(documents=lambda split: documents if split == "train" else [])
        frozen = Classification(class_weights="balanced").prepare(data, Bytes().train([]))
        weights = [*compute_class_weight("balanced", classes=np.arange(4), y=[0, 0, 0, 0, 1, 2, 2, 3]), 1.0]
        np.testing.assert_allclose(frozen["class_weight_O"], weights[:4], rtol=1e-6)
    scores = torch.tensor(SCORES.astype(np.float64), requires_grad=True)
    wanted = torch.nn.functional.cross_entropy(
        scores, torch.tensor(LABELS).long(), torch.tensor(weights).double(), ignore_index=-1, label_smoothing=smoothing
    )
    (slope,) = torch.autograd.grad(wanted, scores)

    def measured(scores: Any, key: Any = jax.random.key(0)) -> Any:
        found = sums(smoothing, key, scores=scores, weights="balanced" if balanced else weights, frozen=frozen)
        return found["loss"] / found["weight"]

    found, gradient = jax.value_and_grad(measured)(jnp.asarray(SCORES))
    np.testing.assert_allclose(found, wanted.item(), rtol=1e-5)
    np.testing.assert_allclose(gradient, slope.numpy(), atol=1e-5)
    plain = sums(smoothing, None)
    np.testing.assert_allclose(measured(jnp.asarray(SCORES), None), plain["loss"] / plain["weight"], rtol=1e-6)


def test_as_many_weights_as_classes():
    for weights, count in (((1.0, 2.0), 2), ((0.0,) * 5, 5)):
        with pytest.raises(InputError, match=f"class_weights has {count} weights, the model 5 classes: give one each"):
            Classification(class_weights=weights).check(Table(ROWS), [])
    Classification(class_weights="balanced").check(Table(ROWS), [])


NUMBERS = np.array([0.0, 1.0, 0.3, 1.0, 0.0, 0.8, 0.5], np.float32)
PROBLEMS: Any = [
    (MultiLabelClassification(), torch.nn.functional.binary_cross_entropy_with_logits),
    (Regression(), torch.nn.functional.mse_loss),
]


@pytest.mark.parametrize(("objective", "loss"), PROBLEMS)
def test_a_number_is_learnt_with_pytorchs_loss_and_padding_has_none(objective, loss):
    """The last row is padding."""
    scores = torch.tensor(SCORES[:-1, 0].astype(np.float64), requires_grad=True)
    wanted = loss(scores, torch.tensor(NUMBERS[:-1]).double())
    (slope,) = torch.autograd.grad(wanted, scores)
    segment_BT = jnp.where(jnp.arange(ROWS) < ROWS - 1, 0, -1)[:, None]
    batch: Any = dict(number_B=jnp.asarray(NUMBERS), row_B=jnp.arange(ROWS), segment_BT=segment_BT)

    def measured(scores: jax.Array, key: Any) -> Any:
        sums = objective(Table(ROWS, 1), dict(score=scores[:, None]), None, batch, key)
        return sums["loss"] / sums["weight"], sums

    (found, _), gradient = jax.value_and_grad(measured, has_aux=True)(jnp.asarray(SCORES[:, 0]), jax.random.key(0))
    np.testing.assert_allclose(found, wanted.item(), rtol=1e-6)
    np.testing.assert_allclose(gradient[:-1], slope.numpy(), atol=1e-6)
    assert gradient[-1] == 0
    sums = measured(jnp.asarray(SCORES[:, 0]), None)[1]
    right = np.sum((SCORES[:-1, 0] > 0) == (NUMBERS[:-1] > 0.5))
    assert objective.problem_type == "regression" or float(sums["correct"]) == right
    assert means(sums, objective.likelihood).keys() <= {"loss", "accuracy"}


def test_several_classes_of_a_row_are_learnt_with_pytorchs_loss():
    """One of all, and none at all, too; the last row is padding."""
    labels_BL = np.array([[0, 3, -1], [2, -1, -1], [-1] * 3, [4, 0, 1], [1, 2, 3], [3, -1, -1], [-1] * 3], np.int32)
    target = np.zeros((ROWS, CLASSES))
    for row, labels in enumerate(labels_BL):
        target[row, labels[labels >= 0]] = 1
    scores = torch.tensor(SCORES[:-1].astype(np.float64), requires_grad=True)
    wanted = torch.nn.functional.binary_cross_entropy_with_logits(scores, torch.tensor(target[:-1]))
    (slope,) = torch.autograd.grad(wanted, scores)
    segment_BT = jnp.where(jnp.arange(ROWS) < ROWS - 1, 0, -1)[:, None]
    batch: Any = dict(labels_BL=jnp.asarray(labels_BL), row_B=jnp.arange(ROWS), segment_BT=segment_BT)

    def measured(scores: jax.Array, key: Any = None) -> Any:
        sums = MultiLabelClassification()(Table(ROWS), dict(score=scores), None, batch, key)
        return sums["loss"] / sums["weight"], sums

    (found, sums), gradient = jax.value_and_grad(measured, has_aux=True)(jnp.asarray(SCORES))
    np.testing.assert_allclose(found, wanted.item(), rtol=1e-6)
    np.testing.assert_allclose(gradient[:-1], slope.numpy(), atol=1e-6)
    assert not np.asarray(gradient[-1]).any()
    assert float(sums["correct"]) == ((SCORES[:-1] > 0) == (target[:-1] > 0.5)).sum()
    with pytest.raises(InputError, match=r"WithNumber\(\) tells yes from no, and model.classes=5: set model.classes=1"):
        one = batch | dict(number_B=jnp.zeros(ROWS))
        del one["labels_BL"]
        MultiLabelClassification()(Table(ROWS), dict(score=jnp.asarray(SCORES)), None, one, None)


def test_texts_of_several_classes_by_name_are_trained_on(tmp_path):
    """From a file, in a run that keeps the names and says of each class how probable it is."""
    said = [["b"], [], ["c", "a"], ["a", "b", "c"]]
    lines = [dict(text=f"text {i}", labels=said[i % 4]) for i in range(40)]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, lines)))
    decoder = Decoder(Embed(8), Stack((Block(Attention(1, head=8), FeedForward(8)),), 1))
    settings = {
        "data.source": JsonLines(str(tmp_path / "a.jsonl")), "data.presentation": WithLabels(3), "data.batch": 8,
        "tokenizer": Bytes(), "steps": 1, "model": Classifier(decoder, classes=3, pooling=Last()),
        "objective": MultiLabelClassification(), "best_by": "loss", "report": (), "layout.data": 1,
    }  # fmt: skip
    run: Any = spam.experiment().override(settings)
    train(run, tmp_path / "run")
    lm = llm_jax.load(tmp_path / "run")
    assert lm.labels == ("a", "b", "c") and lm.problem_type == "multi_label_classification"
    assert lm.classify(["text 1", "text 2"]).shape == (2, 3)
    data = dataclasses.replace(run.data, labels=lm.labels)
    batch = next(data.train(lm.tokenizer, seed=0))
    for tokens, labels in zip(batch["tokens_BT"], batch["labels_BL"], strict=True):
        text = lm.tokenizer.decode(tokens[tokens < 256].tolist())
        wanted = sorted("abc".index(name) for name in said[int(text.split()[1]) % 4])
        assert sorted(labels[labels >= 0].tolist()) == wanted
    for changes, why in (
        ({"data.presentation": WithLabels(2)}, r"a document has 3 classes: raise data.presentation.most=2"),
        ({"model.classes": 2}, r"model.classes=2, and there are 3 classes by name"),
        ({"data.presentation": WithLabel(), "objective": Classification(), "best_by": "accuracy"},
         r"WithLabel needs documents of one class each, not MultiLabelled ones: set data.presentation=WithLabels\(\)"),
        ({"data.presentation": WithNumber()}, "WithNumber needs documents with a number"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=why):
            train(run.override(changes), tmp_path / "refused")


def test_perplexity_is_not_of_smoothed_targets():
    smoothed, plain = (means(sums(smoothing, jax.random.key(0))) for smoothing in (0.1, 0.0))
    assert smoothed["loss"] != pytest.approx(plain["loss"], rel=1e-2)
    assert smoothed["perplexity"] == pytest.approx(plain["perplexity"]) == math.exp(smoothed["cross_entropy"])


def test_evaluation_counts_what_is_right_and_does_not_smooth():
    found = sums(0.3, None)
    right = (SCORES.argmax(-1) == LABELS).sum()
    assert float(found["weight"]) == 5 and float(found["correct"]) == right
    assert found.keys() == {"weight", "loss", "correct"} and "correct" not in sums(0.3, jax.random.key(0))
    np.testing.assert_allclose(found["loss"], sums(0.0, jax.random.key(0))["loss"], rtol=1e-6)


def test_pieces_of_a_batch_add_up():
    whole, pieces = sums(0.1, None), [sums(0.1, None, slice(0, 3)), sums(0.1, None, slice(3, None))]
    for name, value in whole.items():
        np.testing.assert_allclose(pieces[0][name] + pieces[1][name], value, rtol=1e-6, err_msg=name)


def test_a_class_that_the_model_does_not_have_is_not_learnt_in_silence():
    """The loss is not finite, at which a training stops."""
    batch: Any = dict(label_B=jnp.array([CLASSES]), row_B=jnp.arange(1))
    found = Classification()(Table(ROWS), dict(score=jnp.asarray(SCORES)), None, batch, None)
    assert not np.isfinite(found["loss"])


def test_a_class_that_the_model_does_not_have_is_refused_before_the_training(tmp_path):
    lines = [json.dumps(dict(text=f"text {i}", label=i % 3)) for i in range(20)]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    block = Block(Attention(1, head=8), FeedForward(8))
    made = spam.experiment().override(
        {
            "data.source": JsonLines(str(tmp_path / "a.jsonl")),
            "tokenizer": Bytes(),
            "model": Classifier(Decoder(Embed(8), Stack((block,), 1)), classes=2, pooling=Last()),
        }
    )
    with pytest.raises(InputError, match=r"of class 2, and the model's classes are 0 to 1: set model.classes"):
        train(made, tmp_path / "run")
    Classification().check(Classifier(Decoder(Embed(8), Stack((block,), 1)), 3), made.data.documents("train"))  # pyright: ignore[reportAttributeAccessIssue]


def test_one_class_is_refused_and_the_advice_works(tmp_path):
    """By the model's classes, and by the data's; a loss of 0 and an accuracy of 100% are no result."""

    def made(labels: list[Any], name: str, **changes: Any) -> Any:
        lines = [json.dumps(dict(text=f"text {i}", label=label)) for i, label in enumerate(labels)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
        decoder = Decoder(Embed(8), Stack((Block(Attention(1, head=8), FeedForward(8)),), 1))
        return spam.experiment().override(
            {
                "data.source": JsonLines(str(tmp_path / f"{name}.jsonl")), "tokenizer": Bytes(), "steps": 1,
                "data.batch": 8, "model": Classifier(decoder, classes=1, pooling=Last()), **changes,
            }
        )  # fmt: skip

    def advised(experiment: Any) -> None:
        experiment.objective.check(experiment.model, experiment.data.documents("train"))
        assert next(experiment.data.train(Bytes().train([]), seed=0))

    with pytest.raises(
        InputError, match=r"model.classes=1: .* Set model.classes=2; or, with data.presentation=WithNum"
    ):
        train(made([0] * 30, "one"), tmp_path / "run")
    with pytest.raises(InputError, match=r"all \d+ training documents are of class 0, so that nothing tells it from"):
        train(made([0] * 30, "one", **{"model.classes": 2}), tmp_path / "run")
    advised(made([0, 1] * 15, "two", **{"model.classes": 2}))
    numbers = {"data.presentation": WithNumber(), "best_by": "loss"}
    advised(made([0, 1] * 15, "two", objective=MultiLabelClassification(), **numbers))
    with pytest.raises(
        InputError, match=r"from 0 \(no\) to 1 \(yes\), and a document has -2.5: objective=Regression\(\)"
    ):
        train(made([0, -2.5] * 15, "any", objective=MultiLabelClassification(), **numbers), tmp_path / "run")
    advised(made([0, -2.5] * 15, "any", objective=Regression(), **numbers))
    with pytest.raises(InputError, match=r"the number -2.5; data.presentation=WithNumber\(\) is for numbers"):
        train(made([0, -2.5] * 15, "any", **{"model.classes": 2}), tmp_path / "run")
    with pytest.raises(InputError, match=r"Regression learns one number, and model.classes=2: set model.classes=1"):
        train(made([0, 1], "few", objective=Regression(), **numbers, **{"model.classes": 2}), tmp_path / "run")


def test_refusals():
    decoder = Decoder(Embed(8, 13), Stack((Block(Attention(1, head=8), FeedForward(8)),), 1))
    with pytest.raises(InputError, match="Decoder does not classify: use an ImageClassifier or a Classifier"):
        Classification()(decoder, {}, None, dict(label_B=jnp.zeros(1, jnp.int32)), None)
    with pytest.raises(InputError, match="Classification needs labels"):
        Classification()(Table(ROWS), {}, None, {}, None)
