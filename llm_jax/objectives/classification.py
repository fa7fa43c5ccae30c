"""Telling which classes a text or an image is of, or a number for it; and what the scores mean after that."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np

from llm_jax.core.auxiliary import ASIDE, heard
from llm_jax.core.errors import InputError
from llm_jax.core.parts import NonNegative, Rate
from llm_jax.layers.moe import routing
from llm_jax.objectives.objective import Objective, ProblemType, cross_entropy, smoothed

# What the scores [B, O] of a classifier are made into: `function_to_apply` of transformers' pipelines.
ACTIVATIONS: dict[ProblemType, Callable[[jax.Array], jax.Array]] = {
    "single_label_classification": jax.nn.softmax,
    "multi_label_classification": jax.nn.sigmoid,
    "regression": lambda score_BO: score_BO,
}


def usual_problem(outputs: int) -> ProblemType:
    """What so many scores mean where nothing says it, as in transformers' pipelines: one alone is of yes or no."""
    return "multi_label_classification" if outputs == 1 else "single_label_classification"


class _Classifying(Objective):
    """An objective of a model that gives scores [B, O] by `classify(batch, key)`."""

    needs: ClassVar[tuple[str, ...]]  # the arrays of which a batch must have one
    advice: ClassVar[str]  # what makes batches that have it

    def _scores(self, model: Any, params: Any, batch: Any, key: Any) -> tuple[jax.Array, Any]:
        """The scores [B, O] in float32, and what layers said.

        Raises:
          InputError: the model does not classify, or the batch lacks what it is to tell.
        """
        if not hasattr(model, "classify"):
            raise InputError(f"{type(model).__name__} does not classify: use an ImageClassifier or a Classifier")
        if not any(name in batch for name in self.needs):
            raise InputError(f"{type(self).__name__} needs {self.advice}")
        classified: Any = model.apply({"params": params}, batch, key, method="classify", mutable=[ASIDE])
        return classified[0], heard(classified[1])


def _numbers(documents: Sequence[Any]) -> list[float]:
    """What is known of each document: the number of its class, those of several, or of a regression."""
    known = (getattr(document, "label", document.number) for document in documents)
    each = (number if isinstance(number, tuple) else (number,) for number in known)
    return [number for numbers in each for number in numbers if number is not None]


@dataclasses.dataclass(frozen=True)
class Classification(_Classifying):
    """Cross-entropy in nats of the classes `label_B`, summed over the rows; a row whose label is negative has none.

    The model's `classify(batch, key)` gives the scores [B, O]; their softmax is how probable each class is. Sums:
    weight (rows), loss and, in evaluation, correct. `smoothing` is the share of each target that is spread over all
    classes (Szegedy et al. 2016); evaluation measures without it, and in training the sum `cross_entropy` is without
    it. Of a mixture of experts there are the sums of `routing` too.

    Attributes:
      class_weights: how much a row of each class counts in training, in the order of the classes, as PyTorch's
        `CrossEntropyLoss(weight)` has it; "balanced": inversely to how many training documents the class has, 1 on
        average over the documents (scikit-learn's). Evaluation measures without it.

    Raises:
      InputError: the model does not classify, has one class alone or lacks a class, the batch has no labels, or there
        are not as many weights as classes.
    """

    smoothing: Rate = 0.0
    class_weights: tuple[NonNegative, ...] | Literal["balanced"] | None = None
    problem_type: ClassVar[ProblemType] = "single_label_classification"
    needs: ClassVar[tuple[str, ...]] = ("label_B",)
    advice: ClassVar[str] = "labels: use data=Images(...), or data.presentation=WithLabel()"

    def prepare(self, data, tokenizer):
        if self.class_weights != "balanced":
            return None
        count_O = np.bincount(np.array(_numbers(data.documents("train")), np.int64))
        there_O = count_O > 0
        weight_O = np.where(there_O, count_O.sum() / (there_O.sum() * np.maximum(count_O, 1)), 1.0)
        return dict(class_weight_O=weight_O.astype(np.float32))

    def check(self, model, documents):
        classes = getattr(model, "classes", None)
        if classes is None:
            return
        if isinstance(self.class_weights, tuple) and (
            len(self.class_weights) != classes or not any(self.class_weights)
        ):
            raise InputError(
                f"objective.class_weights has {len(self.class_weights)} weights, the model {classes} classes: give one "
                "each, not all of them 0, or 'balanced'"
            )
        if classes == 1:
            raise InputError(
                "Classification chooses one of several classes, and model.classes=1: of one alone every text is "
                "certain, and nothing is learnt. Set model.classes=2; or, with data.presentation=WithNumber(), "
                "objective=MultiLabelClassification() for yes or no, or objective=Regression() for a number"
            )
        if (most := max(_numbers(documents), default=-1)) >= classes:
            raise InputError(
                f"a document is of class {most:g}, and the model's classes are 0 to {classes - 1}: set model.classes"
            )

    def __call__(self, model, params, frozen, batch, key):
        score_BO, said = self._scores(model, params, batch, key)
        label_B = batch["label_B"]
        weight_B = (label_B >= 0).astype(jnp.float32)
        loss_B, weighted = cross_entropy(score_BO, label_B), key is not None and self.class_weights is not None
        if weighted:
            class_O = self._class_weights(frozen, score_BO.shape[1])
            weight_B = weight_B * jnp.where(label_B >= 0, class_O[label_B], 0)
            sums = dict(loss=self._weighted(score_BO, loss_B, weight_B, label_B, class_O))
        else:
            smooth_B = smoothed(score_BO, label_B, 0.0 if key is None else self.smoothing)
            sums = dict(loss=jnp.where(label_B >= 0, smooth_B, 0).sum())
        sums["weight"] = weight_B.sum()
        if key is not None and self.smoothing:
            sums["cross_entropy"] = jnp.where(weight_B > 0, loss_B * weight_B, 0).sum()
        if key is None:
            sums["correct"] = jnp.where(score_BO.argmax(-1) == label_B, weight_B, 0).sum()
        return sums | routing(said, weight_B)

    def _class_weights(self, frozen: Any, classes: int) -> jax.Array:
        """float32 [O]."""
        if self.class_weights != "balanced":
            return jnp.asarray(self.class_weights, jnp.float32)
        found_O = frozen["class_weight_O"]  # the last classes may have no document
        return jnp.pad(found_O, (0, classes - len(found_O)), constant_values=1.0)

    def _weighted(
        self, score_BO: jax.Array, loss_B: jax.Array, weight_B: jax.Array, label_B: jax.Array, class_O: jax.Array
    ) -> jax.Array:  # fmt: skip
        """The loss of all rows, where each class counts by its weight in the smoothed target too."""
        sharp = jnp.where(weight_B > 0, loss_B * weight_B, 0).sum()
        if not self.smoothing:
            return sharp
        spread_B = -(jax.nn.log_softmax(score_BO) * class_O[None]).mean(-1)
        return (1 - self.smoothing) * sharp + self.smoothing * jnp.where(label_B >= 0, spread_B, 0).sum()


@dataclasses.dataclass(frozen=True)
class MultiLabelClassification(_Classifying):
    """Binary cross-entropy in nats, of each class by itself, summed over rows and classes: PyTorch's BCEWithLogitsLoss.

    The sigmoid of a score is how probable it is that the class is one of the row's (`WithLabels`). A model of one class
    tells yes from no; its target is the number of the document, from 0 to 1 (`WithNumber`). Sums: weight (rows times
    classes), loss and, in evaluation, correct (answers on the right side of a half).

    Raises:
      InputError: the model does not classify, or the targets are not as many as its classes, or not from 0 to 1.
    """

    likelihood: ClassVar[bool] = False
    problem_type: ClassVar[ProblemType] = "multi_label_classification"
    needs: ClassVar[tuple[str, ...]] = ("labels_BL", "number_B")
    advice: ClassVar[str] = (
        "the classes of each document: use data.presentation=WithLabels(); or of one class a number from 0 (no) to 1 "
        "(yes): WithNumber()"
    )

    def check(self, model, documents):
        several = any(isinstance(document.number, tuple) for document in documents)
        if (classes := getattr(model, "classes", 1)) != 1 or several:
            if (most := max(_numbers(documents), default=-1)) >= classes:
                named = f"the model's classes are 0 to {classes - 1}: set model.classes"
                raise InputError(f"a document is of class {most:g}, and {named}")
            return
        if wrong := [number for number in _numbers(documents) if not 0 <= number <= 1]:
            raise InputError(
                f"MultiLabelClassification needs numbers from 0 (no) to 1 (yes), and a document has {wrong[0]:g}: "
                "objective=Regression() learns any"
            )

    def __call__(self, model, params, frozen, batch, key):
        score_BO, said = self._scores(model, params, batch, key)
        target_BO = self._target(batch, score_BO.shape[1])
        real_B = _real(batch)
        loss_BO = jax.nn.softplus(score_BO) - score_BO * target_BO
        sums = dict(weight=real_B.sum() * score_BO.shape[1], loss=(loss_BO * real_B[:, None]).sum())
        if key is None:
            sums["correct"] = jnp.where((score_BO > 0) == (target_BO > 0.5), real_B[:, None], 0).sum()
        return sums | routing(said, real_B * score_BO.shape[1])

    def _target(self, batch: Any, classes: int) -> jax.Array:
        """float32 [B, O]: how much each class is one of the row's.

        Raises:
          InputError: the batch has a number for one class alone, and the model several.
        """
        if "labels_BL" in batch:  # -1, in the place of a class, is none
            return jax.nn.one_hot(batch["labels_BL"], classes, dtype=jnp.float32).sum(1)
        if classes != 1:
            raise InputError(
                f"WithNumber() tells yes from no, and model.classes={classes}: set model.classes=1, or "
                "data.presentation=WithLabels(), or objective=Classification()"
            )
        return batch["number_B"][:, None]


@dataclasses.dataclass(frozen=True)
class Regression(_Classifying):
    """Squared error between the one score of a row and the number of its document: PyTorch's MSELoss.

    Sums: weight (rows) and loss.

    Raises:
      InputError: the model does not classify or has more than one score, or the batch has no numbers.
    """

    likelihood: ClassVar[bool] = False
    problem_type: ClassVar[ProblemType] = "regression"
    needs: ClassVar[tuple[str, ...]] = ("number_B",)
    advice: ClassVar[str] = "the number of each document: use data.presentation=WithNumber()"

    def check(self, model, documents):
        if (classes := getattr(model, "classes", 1)) != 1:
            raise InputError(f"Regression learns one number, and model.classes={classes}: set model.classes=1")

    def __call__(self, model, params, frozen, batch, key):
        score_BO, said = self._scores(model, params, batch, key)
        real_B = _real(batch)
        loss_B = jnp.square(score_BO[:, 0] - batch["number_B"])
        return dict(weight=real_B.sum(), loss=(loss_B * real_B).sum()) | routing(said, real_B)


def _real(batch: Any) -> jax.Array:
    """float32 [B]: 1 where a row has a document, 0 where it is padding."""
    return (batch["segment_BT"] >= 0).any(1).astype(jnp.float32)


OBJECTIVES = dict(
    Classification=Classification, MultiLabelClassification=MultiLabelClassification, Regression=Regression
)
