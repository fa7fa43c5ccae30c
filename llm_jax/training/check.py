"""Which family each field of an experiment is of, which `Experiment` itself, above them all, cannot say."""

from __future__ import annotations

from llm_jax.core.parts import conform
from llm_jax.data.pipeline import Data
from llm_jax.experiment import Experiment
from llm_jax.models.model import Model
from llm_jax.objectives.objective import Objective
from llm_jax.parallel.layout import Layout
from llm_jax.text.recipes import TokenizerRecipe
from llm_jax.training.optimizers import Optimizer
from llm_jax.training.precision import Precision
from llm_jax.training.report import Report
from llm_jax.training.tuning import Tuning

FAMILIES = dict(
    model=Model, tokenizer=TokenizerRecipe, data=Data, objective=Objective, optimizer=Optimizer, layout=Layout,
    precision=Precision, tuning=Tuning | None, report=tuple[Report, ...],
)  # fmt: skip


def check_families(experiment: Experiment) -> None:
    """Nothing, if every field holds a part of its family.

    Raises:
      InputError: one does not; the message names the field and what it may be.
    """
    for name, family in FAMILIES.items():
        conform(getattr(experiment, name), family, name)
