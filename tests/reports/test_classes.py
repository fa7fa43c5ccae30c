"""The report on a classifier beside scikit-learn's, and Wilson's interval beside statsmodels' numbers."""

from __future__ import annotations

import io
from types import SimpleNamespace
from typing import Any

import jax
import matplotlib.image
import numpy as np
import pytest
import sklearn.metrics

from llm_jax.core.dims import Normal, weigh
from llm_jax.core.errors import InputError
from llm_jax.models.model import Model
from llm_jax.optim.precision import Precision
from llm_jax.reports.classes import ClassificationReport, areas, by_class, confusions, draw, rank_of, scored
from llm_jax.reports.statistics import wilson

ROWS = 60
ZERO: Any = 0


class Fixed(Model):
    """Its parameters are the scores of the rows."""

    classes: int

    def setup(self):
        self.score_BO = weigh(self, "score", "BO", dict(B=ROWS, O=self.classes), Normal(1.0), 1)

    def classify(self, batch, dropout_key):
        return self.score_BO[batch["row_B"]]


def finished(classes: int, seed: int, skip: int | None = None, labelled: bool = True) -> tuple[Any, Any, Any]:
    """A model with random scores on random labels, the labels, and what it says; a class may be left out."""
    rng = np.random.default_rng(seed)
    label_N = rng.integers(classes, size=ROWS)
    score_NO = rng.standard_normal((ROWS, classes)).astype(np.float32)
    score_NO[np.arange(ROWS), label_N] += 1.5
    if skip is not None:
        label_N[label_N == skip] = 0
        score_NO[:, skip] = -9
    label_N[::7] = -1 if labelled else label_N[::7]
    batches = [
        dict(row_B=np.arange(i, i + 20), **({"label_B": label_N[i : i + 20].astype(np.int32)} if labelled else {}))
        for i in range(0, ROWS, 20)
    ]
    data = SimpleNamespace(evaluation=lambda tokenizer, split: batches, labels=None)
    experiment = SimpleNamespace(model=Fixed(classes), data=data, precision=Precision())
    known = label_N >= 0
    told = SimpleNamespace(experiment=experiment, tokenizer=None, params=dict(score=jax.numpy.asarray(score_NO)))
    return told, label_N[known], score_NO.argmax(-1)[known]


def test_a_class_of_two_that_does_not_occur_has_no_f1():
    """It would be 0 for any model that predicts it. The other class's is told."""
    told, _, said_N = finished(2, 0)
    told.experiment.data.evaluation = lambda tokenizer, split: [
        dict(row_B=np.arange(ROWS), label_B=np.where(np.arange(ROWS) < len(said_N), 0, -1).astype(np.int32))
    ]
    found = ClassificationReport()(told)
    assert "validation_f1" not in found.metrics and found.metrics["validation_absent_classes"] == 1
    other = ClassificationReport(positive=0)(told).metrics
    assert other["validation_f1"] == pytest.approx(2 * other["validation_f1_macro"])
    with pytest.raises(InputError, match=r"report\.positive=2 is not one of the two classes, 0 and 1"):
        ClassificationReport(positive=2)(told)


@pytest.mark.parametrize(("classes", "skip"), [(2, None), (5, None), (5, 3), (10, 4)])
def test_the_numbers_are_those_of_scikit_learn(classes, skip):
    told, true_N, said_N = finished(classes, classes, skip)
    score_NO, label_N = scored(told, "validation")
    np.testing.assert_array_equal(label_N, true_N)
    table_OO = confusions(score_NO, label_N)
    np.testing.assert_array_equal(
        table_OO, sklearn.metrics.confusion_matrix(true_N, said_N, labels=list(range(classes)))
    )
    found = ClassificationReport()(told)
    wanted = {
        "validation_accuracy": sklearn.metrics.accuracy_score(true_N, said_N),
        "validation_f1_macro": sklearn.metrics.f1_score(true_N, said_N, average="macro", zero_division=ZERO),
    }
    if classes == 2:
        wanted["validation_f1"] = sklearn.metrics.f1_score(true_N, said_N)
        other = ClassificationReport(positive=0)(told).metrics["validation_f1"]
        assert other == pytest.approx(sklearn.metrics.f1_score(true_N, said_N, pos_label=0), abs=1e-12)
    if skip is not None:
        wanted["validation_absent_classes"] = 1
        assert f"  of 1 classes the validation documents have none: {skip}" in found.lines
    share_NO = np.asarray(jax.nn.softmax(score_NO.astype(np.float64)))
    theirs = [
        sklearn.metrics.roc_auc_score(true_N == o, share_NO[:, o]) if (true_N == o).any() else np.nan
        for o in range(classes)
    ]
    np.testing.assert_allclose(areas(score_NO, true_N), theirs, atol=1e-12)
    wanted["validation_auc"] = np.nanmean(theirs)
    if classes > 5:
        ranked = sklearn.metrics.top_k_accuracy_score(true_N, score_NO, k=5, labels=list(range(classes)))
        wanted["validation_top_5"] = ranked
        assert ranked < 1
    assert found.metrics == pytest.approx(wanted, abs=1e-12) and 0.2 < wanted["validation_accuracy"] < 0.95
    there = sorted({*true_N, *said_N})
    theirs: Any = sklearn.metrics.precision_recall_fscore_support(true_N, said_N, labels=there, zero_division=ZERO)
    for ours, their in zip(by_class(table_OO), theirs, strict=False):
        np.testing.assert_allclose(ours[there], their, atol=1e-12)
    if skip is not None:
        assert f"  {skip}: never, of 0" in found.lines


def test_ties_are_half_and_certainty_makes_none():
    """Of scores that a softmax in float32 would round to 1, the order counts."""
    label_N = np.array([0, 1, 0, 1])
    certain_NO = np.array([[0, 50], [0, 55], [0, 60], [0, 80]], np.float32)
    np.testing.assert_allclose(areas(certain_NO, label_N), [0.75, 0.75])
    np.testing.assert_allclose(areas(np.zeros((4, 2), np.float32), label_N), [0.5, 0.5])
    np.testing.assert_array_equal(rank_of(np.array([[1, 1, 1], [0, 2, 1]], np.float32), np.array([1, 2])), [1, 1])


def test_a_class_that_is_never_predicted_has_no_f1_to_speak_of():
    precision_O, recall_O, f1_O = by_class(np.array([[3, 0, 0], [2, 0, 0], [0, 0, 0]]))
    np.testing.assert_allclose(precision_O, [0.6, 0, np.nan])
    np.testing.assert_allclose(recall_O, [1, 0, np.nan])
    np.testing.assert_allclose(f1_O, [0.75, 0, np.nan])


def test_lines_and_the_figure():
    told, true_N, said_N = finished(2, 0)
    found = ClassificationReport(names=("ham $", "spam"))(told)
    right, (low, high) = int((true_N == said_N).sum()), wilson((true_N == said_N).sum(), len(true_N))
    assert found.lines[0].startswith(f"validation: {right}/{len(true_N)} right, accuracy {right / len(true_N):.4f} ")
    assert f"(95%: {low:.4f} to {high:.4f})" in found.lines[0] and found.lines[1].startswith("  ham $: precision ")
    (name,) = found.figures
    pixels = matplotlib.image.imread(io.BytesIO(found.figures[name]), format="png")
    assert name == "validation_confusions.png" and pixels.shape[0] > 200
    whole = matplotlib.image.imread(io.BytesIO(draw(np.diag([4, 0]), ("a", "b"), "")), format="png")
    assert whole[..., 0].min() < 0.2  # a class that is always right is dark


def test_wilsons_interval():
    # statsmodels.stats.proportion.proportion_confint(count, nobs, method="wilson")
    for (count, trials), wanted in {
        (0, 10): (0.0, 0.27753279), (10, 10): (0.72246720, 1.0), (7, 20): (0.18119182, 0.56714572),
        (50, 100): (0.40383153, 0.59616847),
    }.items():  # fmt: skip
        assert wilson(count, trials) == pytest.approx(wanted, abs=1e-6)


def test_the_interval_holds_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    shares = rng.uniform(0.05, 0.95, 3000)
    intervals = [wilson(rng.binomial(80, share), 80) for share in shares]
    held = np.mean([low <= share <= high for share, (low, high) in zip(shares, intervals, strict=True)])
    assert 0.935 < held < 0.965


def test_refusals():
    told, _, _ = finished(3, 0)
    with pytest.raises(InputError, match="2 names for the model's 3 classes"):
        ClassificationReport(names=("a", "b"))(told)
    with pytest.raises(InputError, match="needs labels, and the validation documents have none"):
        ClassificationReport()(finished(3, 0, labelled=False)[0])
    told.experiment.model = object()
    with pytest.raises(InputError, match="object does not"):
        ClassificationReport()(told)
