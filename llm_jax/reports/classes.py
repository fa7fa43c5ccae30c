"""What a finished classifier gets right and wrong, by class, in numbers and in a figure."""

from __future__ import annotations

import dataclasses
import functools
import io
from typing import Any

import jax
import numpy as np

from llm_jax.core.errors import InputError
from llm_jax.core.parts import Count, Size
from llm_jax.data.pipeline import SplitName
from llm_jax.experiment import Finding, Report
from llm_jax.reports.statistics import wilson
from llm_jax.reports.text import Finished


@dataclasses.dataclass(frozen=True)
class ClassificationReport(Report):
    """Accuracy, with its 95% interval, and F1 on a split; the figure is the table of confusions.

    F1 is the harmonic mean of precision and recall of a class. `f1_macro` is its mean over the classes that occur or
    are predicted; where there are two classes, `f1` is that of the class `positive`. Of a class that does not occur
    nothing can be right: its F1 is 0 whatever the model, where it is predicted. `absent_classes` counts these, a line
    names them, and there is no `f1` of one.

    `auc` is the area under the receiver operating characteristic: how often a document of the class has a higher score
    than one of another class (a tie is half). Of several classes it is the mean over those that occur. Where there are
    more classes than `top`, `top_{top}` is how often the true one is among so many best scores.

    Attributes:
      names: of the classes, in the order of their numbers; none: those of the run (`data.labels`), or the numbers.

    Raises:
      InputError: the model does not classify, the split has no labels, or the names are not as many as the classes.
    """

    split: SplitName = "validation"
    names: tuple[str, ...] = ()
    positive: Count = 1
    top: Size = 5

    def check(self, planned):
        model, data = _classifier(planned), planned.experiment.data
        if self.names and len(self.names) != model.classes:
            raise InputError(
                f"{len(self.names)} names for the model's {model.classes} classes: report.names must be as many"
            )
        self._check_positive(model.classes)
        if "label_B" not in data.blank(1):
            raise InputError(f"ClassificationReport needs labels, and the {self.split} documents have none")

    def _check_positive(self, classes: int) -> None:
        if classes == 2 and self.positive > 1:
            raise InputError(f"report.positive={self.positive} is not one of the two classes, 0 and 1")

    def __call__(self, finished):
        score_NO, label_N = scored(finished, self.split)
        classes = score_NO.shape[1]
        confusion_OO = confusions(score_NO, label_N)
        self._check_positive(classes)
        if self.names and len(self.names) != classes:
            raise InputError(f"{len(self.names)} names for the model's {classes} classes: report.names must be as many")
        names = self.names or finished.experiment.data.labels or tuple(map(str, range(classes)))
        count, right = int(confusion_OO.sum()), int(confusion_OO.trace())
        precision_O, recall_O, f1_O = by_class(confusion_OO)
        low, high = wilson(right, count)
        found = dict(accuracy=right / count, f1_macro=float(np.nanmean(f1_O)))
        lines = [
            f"{self.split}: {right}/{count} right, accuracy {right / count:.4f} (95%: {low:.4f} to {high:.4f}), "
            f"macro F1 {found['f1_macro']:.4f}"
        ]
        wanted_O = confusion_OO.sum(1)
        absent = [name for name, wanted in zip(names, wanted_O, strict=True) if not wanted]
        if absent:
            found["absent_classes"] = float(len(absent))
            lines.append(f"  of {len(absent)} classes the {self.split} documents have none: {', '.join(absent[:20])}")
        if classes == 2 and wanted_O[self.positive]:
            found["f1"] = float(f1_O[self.positive])
        for name, total, *scores in zip(names, confusion_OO.sum(1), precision_O, recall_O, f1_O, strict=True):
            said = ", ".join(f"{what} {s:.4f}" for what, s in zip(("precision", "recall", "F1"), scores, strict=True))
            lines.append(f"  {name}: {said if np.isfinite(scores[-1]) else 'never'}, of {total}")
        auc_O = areas(score_NO, label_N)
        if np.isfinite(auc_O).any():
            found["auc"] = float(np.nanmean(auc_O))
            ranked = f"  area under the curve {found['auc']:.4f}" + " (mean over the classes)" * (classes > 2)
            if classes > self.top:
                found[f"top_{self.top}"] = float((rank_of(score_NO, label_N) < self.top).mean())
                ranked += f"; the true class is among the best {self.top} in {found[f'top_{self.top}']:.4f}"
            lines.append(ranked)
        drawing = draw(confusion_OO, names, f"{self.split}: accuracy {right / count:.3f} of {count}")
        metrics = {f"{self.split}_{name}": value for name, value in found.items()}
        return Finding(lines, metrics, {f"{self.split}_confusions.png": drawing})


def scored(finished: Finished, split: SplitName) -> tuple[np.ndarray, np.ndarray]:
    """The scores [N, O] of all texts or images of a split whose class is known, and their classes [N].

    Raises:
      InputError: the model does not classify, or the split has no labels.
    """
    experiment: Any = finished.experiment
    model = _classifier(finished)
    params = experiment.precision.cast(finished.params)
    score_NO, label_N = [], []
    for batch in experiment.data.evaluation(finished.tokenizer, split=split):
        if "label_B" not in batch:
            break
        known_B = batch["label_B"] >= 0
        score_NO.append(np.asarray(_classify(model, params, dict(batch)))[known_B])
        label_N.append(batch["label_B"][known_B])
    if not sum(map(len, label_N)):
        raise InputError(f"ClassificationReport needs labels, and the {split} documents have none")
    return np.concatenate(score_NO), np.concatenate(label_N)


def confusions(score_NO: np.ndarray, label_N: np.ndarray) -> np.ndarray:
    """int64 [O, O]: how often what is of the one class was taken for the other. Rows are the true classes."""
    confusion_OO = np.zeros((score_NO.shape[1],) * 2, np.int64)
    np.add.at(confusion_OO, (label_N, score_NO.argmax(-1)), 1)
    return confusion_OO


def areas(score_NO: np.ndarray, label_N: np.ndarray) -> np.ndarray:
    """float64 [O]: the area under each class's curve (Hanley & McNeil 1982); NaN where it, or any other, is absent.

    By the log-odds of the class in the softmax, which are never so near 0 or 1 that rounding makes ties. Of two classes
    both have the same area.
    """
    area_O = np.full(score_NO.shape[1], np.nan)
    for o in range(len(area_O)):
        is_N = label_N == o
        if 0 < is_N.sum() < len(is_N):
            others_NO = np.delete(score_NO, o, 1).astype(np.float64)
            odds_N = score_NO[:, o] - np.logaddexp.reduce(others_NO, axis=1)
            _, place_N, count = np.unique(odds_N, return_inverse=True, return_counts=True)
            rank_N = (np.cumsum(count) - (count - 1) / 2)[place_N.reshape(-1)]  # the mean of those that are equal
            above = rank_N[is_N].sum() - is_N.sum() * (is_N.sum() + 1) / 2
            area_O[o] = above / (is_N.sum() * (~is_N).sum())
    return area_O


def rank_of(score_NO: np.ndarray, label_N: np.ndarray) -> np.ndarray:
    """[N]: how many classes have a higher score than the true one, or the same and a smaller number."""
    own_N1 = score_NO[np.arange(len(label_N)), label_N][:, None]
    before_NO = np.arange(score_NO.shape[1])[None] < label_N[:, None]
    return ((score_NO > own_N1) | ((score_NO == own_N1) & before_NO)).sum(-1)


def _classifier(finished: Finished) -> Any:
    model = finished.experiment.model
    if not hasattr(model, "classify"):
        raise InputError(f"ClassificationReport needs a model that classifies, and {type(model).__name__} does not")
    return model


@functools.partial(jax.jit, static_argnums=0)
def _classify(model: Any, params: Any, batch: Any) -> Any:
    return model.apply({"params": params}, batch, None, method="classify")


def by_class(confusion_OO: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """float64 [O] each: precision, recall and F1. All are NaN of a class that neither occurs nor is predicted.

    Of one that only occurs, or is only predicted, all are 0.
    """
    right_O = confusion_OO.diagonal().astype(np.float64)
    wanted_O, given_O = confusion_OO.sum(1), confusion_OO.sum(0)
    there_O = wanted_O + given_O > 0
    divisors = given_O, wanted_O, (wanted_O + given_O) / 2
    precision_O, recall_O, f1_O = (np.where(there_O, right_O / np.maximum(d, 0.5), np.nan) for d in divisors)
    return precision_O, recall_O, f1_O


def draw(confusion_OO: np.ndarray, names: tuple[str, ...], title: str) -> bytes:
    """A PNG of the table: counts, on the share of their row."""
    from matplotlib.figure import Figure  # slow to import, and only reports draw

    classes = len(names)
    side = max(3.2, 0.55 * classes + 1.6)
    figure = Figure(figsize=(side + 0.8, side), layout="constrained")
    axis: Any = figure.subplots()
    share_OO = confusion_OO / np.maximum(confusion_OO.sum(1, keepdims=True), 1)
    image = axis.imshow(share_OO, cmap="Blues", vmin=0, vmax=1)
    if classes <= 30:  # more would not be read
        for true, given in np.ndindex(confusion_OO.shape):
            if number := confusion_OO[true, given]:
                colour = "white" if share_OO[true, given] > 0.5 else "black"
                axis.text(given, true, f"{number}", ha="center", va="center", color=colour, fontsize=8)
    shown = [name.replace("$", r"\$") for name in names]
    slant = {"rotation": 45, "ha": "right"} if max(map(len, names)) > 3 else {}
    axis.set_xticks(range(classes), shown, **slant)
    axis.set_yticks(range(classes), shown)
    axis.set(xlabel="predicted", ylabel="true", title=title)
    figure.colorbar(image, ax=axis, shrink=0.8, label="share of the true class")
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=100)
    return png.getvalue()


REPORTS = dict(ClassificationReport=ClassificationReport)
