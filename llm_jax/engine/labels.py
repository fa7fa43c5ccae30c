"""The names of a run's classes, and their order: as it began, or as the run has it whose classifier is trained on."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from llm_jax.core.errors import InputError
from llm_jax.core.files import user_path
from llm_jax.core.user_modules import user_modules
from llm_jax.engine.check import check_labels
from llm_jax.experiment import Experiment
from llm_jax.runs.checkpoint_files import saved_steps
from llm_jax.runs.folder import Run


def with_labels(experiment: Experiment, workdir: str | Path) -> Experiment:
    """The experiment with the names of its classes filled in, so that its manifest has them.

    They are those of the run in `workdir`; else those that `data.labels` says; else those of the run of `init_from`,
    whose classes the scores of an inherited head are of; else those of the documents.

    Raises:
      InputError: `data.labels` has the names of that run in another order.
    """
    data = experiment.data
    begun = saved_steps(user_path(workdir) / "checkpoints")
    if begun and data.labels is None:
        data = dataclasses.replace(data, labels=_labels(Run.existing(workdir)))
    elif not begun:
        before = _inherited(experiment)
        if before is not None and data.labels not in (None, before) and sorted(data.labels or ()) == sorted(before):
            raise InputError(
                f"data.labels={data.labels} are the classes of {experiment.init_from} in another order, which is "
                f"{before}: leave data.labels out"
            )
        data = (data if before is None or data.labels else dataclasses.replace(data, labels=before)).with_labels()
    return check_labels(experiment if data is experiment.data else experiment.override({"data": data}))


def _inherited(experiment: Experiment) -> tuple[str, ...] | None:
    """The names of the classes of `init_from`, where its model has as many as this one: the head is the same."""
    if not experiment.init_from:
        return None
    run = Run.existing(experiment.init_from)
    classes = getattr(experiment.model, "classes", None)
    before = Experiment.of(run.manifest, user_modules()).model
    return _labels(run) if classes is not None and getattr(before, "classes", None) == classes else None


def _labels(run: Run) -> tuple[str, ...] | None:
    found: Any = run.manifest.get("data")
    labels = found.get("labels") if isinstance(found, dict) else None
    return None if labels is None else tuple(labels)
