"""Which family each field of an experiment is of, which `Experiment` itself, above them all, cannot say; and what
model and data must agree on."""

from __future__ import annotations

from typing import Any, cast

from llm_jax.core.errors import InputError
from llm_jax.core.parts import check, conform, show
from llm_jax.data.packing import One, Windows
from llm_jax.data.pipeline import Data
from llm_jax.experiment import Experiment
from llm_jax.models.model import Model, Translator
from llm_jax.objectives.objective import Objective
from llm_jax.optim.optimizers import Optimizer
from llm_jax.optim.precision import Precision
from llm_jax.optim.trainable import Tuning
from llm_jax.parallel.layout import Layout
from llm_jax.reports.base import Report
from llm_jax.text.recipes import TokenizerRecipe

SHOWN = 5  # names of classes that a message lists
FAMILIES = dict(
    model=Model, tokenizer=TokenizerRecipe, data=Data, objective=Objective, optimizer=Optimizer, layout=Layout,
    precision=Precision, tuning=Tuning | None, report=tuple[Report, ...],
)  # fmt: skip


def check_families(experiment: Experiment) -> None:
    """Nothing, if every field holds a part of its family, and every number of every part is in its range.

    Raises:
      InputError: one does not, or is not; the message names the setting and what it may be.
    """
    for name, family in FAMILIES.items():
        conform(getattr(experiment, name), family, name)
    check(experiment)
    check_labels(experiment)


def check_labels(experiment: Experiment) -> Experiment:
    """The experiment, whose model has a score for each class that has a name.

    Raises:
      InputError: it has more, or fewer.
    """
    labels, classes = cast(Any, experiment.data).labels, getattr(experiment.model, "classes", None)
    if labels is not None and classes is not None and classes != len(labels):
        shown = ", ".join(labels[:SHOWN]) + ", ..." * (len(labels) > SHOWN)
        raise InputError(
            f"model.classes={classes}, and there are {len(labels)} classes by name ({shown}): set "
            f"model.classes={len(labels)}"
        )
    return experiment


def check_openings(experiment: Experiment) -> None:
    """Nothing, if there is room for what the model writes before a text.

    Raises:
      InputError: it writes `start` and another token, and several texts may share a row, which has room for one each.
    """
    model, data = experiment.model, cast(Any, experiment.data)
    if isinstance(model, Translator) and len(model.opening()) > 1 and not isinstance(data.packing, One | Windows):
        raise InputError(
            f"model.forced={model.opening()[1]} needs a text a row: set data.packing=One(), not "
            f"{show(data.packing, whole=True)}"
        )
