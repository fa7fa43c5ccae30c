"""What the model and the data of an experiment must agree on."""

from __future__ import annotations

from llm_jax.core.errors import InputError
from llm_jax.core.parts import show
from llm_jax.data.packing import One, Windows
from llm_jax.experiment import Experiment
from llm_jax.models.model import Translator

SHOWN = 5  # names of classes that a message lists


def check_labels(experiment: Experiment) -> Experiment:
    """The experiment, whose model has a score for each class that has a name.

    Raises:
      InputError: it has more, or fewer.
    """
    labels, classes = experiment.data.labels, getattr(experiment.model, "classes", None)
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
    model, data = experiment.model, experiment.data
    if isinstance(model, Translator) and len(model.opening()) > 1 and not isinstance(data.packing, One | Windows):
        raise InputError(
            f"model.forced={model.opening()[1]} needs a text a row: set data.packing=One(), not "
            f"{show(data.packing, whole=True)}"
        )
